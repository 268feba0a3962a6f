//! Full memory, the end of a session's time, a slot that moves.

use std::sync::Arc;

use chatgateway_core::log::{
    Begin, BeginReply, Check, Claim, ClaimReason, Entry, EntryId, EntryKind, Finish, FinishReply, Nonce, Ownership,
    PodId, Reply, Request, Reset, SessionId, SessionKey, Terms, TurnBody, TurnId, Usage,
};
use chatgateway_redis_server::{Cluster, Options};
use redis::{ConnectionLike as _, Value};

use super::{Server, Twin, command, decode, keys, scripts, view};

pub(super) const POD: PodId = PodId(1);

pub(super) const TERMS: Terms = Terms { ttl_ms: 900_000, lease_ms: 4_000, keep_turns: 40 };

pub(super) fn key(name: &str) -> SessionKey {
    SessionKey::new("t", "p", &SessionId::parse(name).unwrap())
}

pub(super) fn begin(turn: &str) -> Request {
    let body = Arc::new(TurnBody::new("Hello, how are you?".into(), "".into()));
    let turn = TurnId::parse(turn).unwrap();
    Request::Begin(Begin { pod: POD, nonce: Nonce(1), turn, seq: None, body, jump: 0, terms: TERMS })
}

pub(super) fn delta(own: &Ownership, text: &str) -> Request {
    let id = EntryId::new(own.end.epoch, own.end.n + 1);
    Request::Append(Arc::new(Entry {
        id,
        after: None,
        turn: own.turn.clone(),
        kind: EntryKind::Delta { text: text.into() },
    }))
}

pub(super) fn finish_on(own: &Ownership, terms: Terms) -> Request {
    let id = EntryId::new(own.end.epoch, own.end.n + 1);
    let kind = EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() };
    let entry = Arc::new(Entry { id, after: None, turn: own.turn.clone(), kind });
    let answer = "Very well, thank you.".into();
    Request::Finish(Finish { pod: POD, epoch: own.epoch, follows: own.end, len: own.len, entry, answer, terms })
}

pub(super) fn finish(own: &Ownership) -> Request {
    finish_on(own, TERMS)
}

pub(super) fn reset(own: &Ownership) -> Request {
    let entry = Entry {
        id: EntryId::new(own.end.epoch, own.end.n + 1),
        after: None,
        turn: own.turn.clone(),
        kind: EntryKind::Reset,
    };
    Request::Reset(Reset { pod: POD, epoch: own.epoch, follows: own.end, len: own.len, entry: entry.into() })
}

pub(super) fn check(own: &Ownership) -> Request {
    Request::Check(Check { pod: POD, epoch: own.epoch, terms: TERMS })
}

pub(super) fn claim(why: ClaimReason) -> Request {
    Request::Claim(Claim { pod: POD, nonce: Nonce(2), why, jump: 0, terms: TERMS })
}

pub(super) fn owned(reply: Reply) -> Ownership {
    match reply {
        Reply::Begin(BeginReply::Owner { own, .. }) => own,
        Reply::Finish(FinishReply::Ended { next: Some(own), .. }) => own,
        other => panic!("{other:?}"),
    }
}

#[test]
fn full_memory_makes_no_half_turn() {
    let mut server = Server::start(Options::default());
    let mut running = Twin::new(&server, key("running"));
    let mut idle = Twin::new(&server, key("idle"));
    let mut orphan = Twin::new(&server, key("orphan"));
    let new = Twin::new(&server, key("new"));
    let own = owned(running.ask(&mut server, &begin("t1")));
    running.ask(&mut server, &begin("t2"));
    for twin in [&mut idle, &mut orphan] {
        let own = owned(twin.ask(&mut server, &begin("t1")));
        twin.ask(&mut server, &finish(&own));
    }
    let turn = TurnId::parse("t1").unwrap();
    let grow = [
        (&running, begin("t3")),
        (&running, delta(&own, "x")),
        (&running, check(&own)),
        (&running, finish(&own)),
        (&running, reset(&own)),
        (&running, claim(ClaimReason::Loss { epoch: own.epoch })),
        (&running, Request::Cancel { turn }),
        (&running, Request::EndLease { pod: POD, epoch: own.epoch }),
        (&idle, begin("t2")),
        (&new, begin("t1")),
    ];
    server.admin(&["CONFIG", "SET", "maxmemory", "1"]);
    for (twin, request) in &grow {
        let error = server.ask(&twin.key, request).unwrap_err();
        assert!(error.starts_with("OOM"), "{request:?}: {error}");
        // Whatever was refused has changed nothing, not even when a session ends.
        twin.compare(&mut server, request);
        assert_eq!(view::of_redis(&mut server, &new.key), None);
    }
    assert_eq!(server.admin(&["EXISTS", &keys(&new.key)[0]]), Value::Int(0));
    // What needs no memory still works, and so does what gives some back.
    running.ask(&mut server, &Request::Snapshot);
    running.ask(&mut server, &Request::Read { after: EntryId::ZERO, count: 10 });
    server.admin(&["DEL", &keys(&orphan.key)[1]]);
    orphan.slot = None;
    assert!(matches!(orphan.ask(&mut server, &begin("t2")), Reply::Begin(BeginReply::Owner { .. })));
    idle.ask(&mut server, &Request::Delete);
    server.admin(&["CONFIG", "SET", "maxmemory", "0"]);
    let next = owned(running.ask(&mut server, &finish(&own)));
    running.ask(&mut server, &finish(&next));
}

#[test]
fn all_keys_end_at_one_instant() {
    let mut server = Server::start(Options::default());
    let mut twin = Twin::new(&server, key("s"));
    let own = owned(twin.ask(&mut server, &begin("t1")));
    twin.ask(&mut server, &finish_on(&own, Terms { ttl_ms: 300, ..TERMS }));
    let keys = keys(&twin.key);
    let mut seen = Vec::new();
    while seen.last() != Some(&Value::Int(0)) {
        let count = server.admin(&["EXISTS", &keys[0], &keys[1], &keys[2]]);
        if seen.last() != Some(&count) {
            seen.push(count);
        }
    }
    assert_eq!(seen, [Value::Int(3), Value::Int(0)]);
    twin.slot = None;
    assert_eq!(owned(twin.ask(&mut server, &begin("t1"))).seq, 1, "unknown again");
}

#[test]
fn a_slot_that_moves_makes_no_half_turn() {
    let cluster = Cluster::start(3).unwrap();
    let session = key("s");
    let keys = keys(&session);
    let slot = cluster.slot_of(&keys[0]).unwrap();
    let from = cluster.owner_of(slot).unwrap();
    let to = (from + 1) % 3;
    let mut nodes = [from, to].map(|node| {
        let client = redis::Client::open(format!("redis://{}", cluster.nodes()[node].endpoint())).unwrap();
        let mut connection = client.get_connection().unwrap();
        for load in scripts::loads() {
            load.exec(&mut connection).unwrap();
        }
        connection
    });
    let mut ask = |node: usize, request: &Request| match nodes[node].req_command(&command(&session, request)).unwrap() {
        Value::ServerError(error) => Err(error.code().to_owned()),
        value => Ok(decode(&session, request, value).unwrap().reply),
    };
    let own = owned(ask(0, &begin("t1")).unwrap());
    let own = owned(ask(0, &finish(&own)).and_then(|_| ask(0, &begin("t2"))).unwrap());
    let read = Request::Read { after: EntryId::ZERO, count: 100 };
    let Ok(Reply::Read(before)) = ask(0, &read) else { unreachable!() };
    cluster.begin_move(slot, from, to).unwrap();
    // One of the keys that a script names is the channel's, which never exists: while the slot moves, scripts wait. What
    // needs the log alone goes on.
    assert_eq!(ask(0, &check(&own)).unwrap_err(), "TRYAGAIN");
    assert!(matches!(ask(0, &delta(&own, "x")), Ok(Reply::Append(true))));
    cluster.move_named(&[&keys[1]], from, to).unwrap();
    for request in [check(&own), finish(&own), begin("t3"), Request::Snapshot, Request::Delete, reset(&own)] {
        assert_eq!(ask(0, &request).unwrap_err(), "TRYAGAIN", "{request:?}");
        assert_eq!(ask(1, &request).unwrap_err(), "MOVED", "{request:?}");
    }
    cluster.move_keys(slot, from, to).unwrap();
    cluster.end_move(slot, from, to).unwrap();
    assert_eq!(ask(0, &check(&own)).unwrap_err(), "MOVED");
    let Ok(Reply::Read(after)) = ask(1, &read) else { unreachable!() };
    assert_eq!(after.entries[..before.entries.len()], before.entries);
    let own = Ownership { end: after.end, len: own.len + 1, ..own };
    assert!(matches!(ask(1, &finish(&own)), Ok(Reply::Finish(FinishReply::Ended { next: None, .. }))));
}
