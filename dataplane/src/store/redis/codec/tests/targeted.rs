//! What random schedules do not reach.

use std::sync::Arc;

use chatgateway_core::{
    error::ErrorCode,
    limits::TURN_RECORDS_MAX,
    log::{
        BeginReply, ClaimReason, Entry, EntryId, EntryKind, FinishReply, Ownership, Reply, Request, TakeoverReason,
        TurnId, TurnState, Usage,
    },
};
use chatgateway_redis_server::Options;
use redis::Value;

use super::{
    super::{decode_news, encode_news},
    News, Server, Twin, command, decode,
    faults::{POD, begin, check, claim, delta, finish, key, owned, reset},
    keys,
};

#[test]
fn news_come_back_as_they_were() {
    let texts = ["", "x", "a\nb\n", "Grüße 🦀", "k 1\nt\n", "\u{0}"];
    let mut kinds =
        vec![EntryKind::Reset, EntryKind::Cancelled, EntryKind::Takeover { reason: TakeoverReason::Expired }];
    for text in texts {
        kinds.push(EntryKind::Turn { seq: u64::MAX, text: text.into() });
        kinds.push(EntryKind::Delta { text: text.into() });
        kinds.push(EntryKind::Failed { code: ErrorCode::Internal, message: text.into() });
        let usage = Usage { prompt_tokens: 1, completion_tokens: 0, total_tokens: u64::MAX };
        kinds.push(EntryKind::Done { finish_reason: text.into(), usage });
    }
    let turn = TurnId::parse("a turn: of 1 client").unwrap();
    let entries = kinds.into_iter().zip([None, Some(EntryId::ZERO), Some(EntryId::new(7, 3))].into_iter().cycle());
    for (kind, after) in entries {
        let news = News::Entry(Arc::new(Entry { id: EntryId::new(9, 1), after, turn: turn.clone(), kind }));
        let message = encode_news(&news);
        assert_eq!(decode_news(&message), Some(news));
        for cut in 0..message.len() {
            assert_eq!(decode_news(&message[..cut]).filter(|news| !matches!(news, News::Entry(_))), None);
        }
    }
    for news in [News::Reread, News::Deleted] {
        assert_eq!(decode_news(&encode_news(&news)), Some(news));
    }
    for message in
        [&b""[..], b"X", b"E", b"E 1-1", b"E 1-1\n", b"E 1-1\nk 9\nd\n", b"E 1-1\nk 99999999999999999999\nd", b"\xff"]
    {
        assert_eq!(decode_news(message), None, "{message:?}");
    }
}

#[test]
fn records_of_ended_turns_are_bounded() {
    let mut server = Server::start(Options::default());
    let mut twin = Twin::new(&server, key("s"));
    for i in 0..TURN_RECORDS_MAX + 20 {
        let own = owned(twin.ask_only(&mut server, &begin(&format!("t{i}"))));
        let reply = twin.ask_only(&mut server, &finish(&own));
        assert!(matches!(reply, Reply::Finish(FinishReply::Ended { next: None, .. })));
        if i % 100 == 0 || i > TURN_RECORDS_MAX + 15 {
            twin.compare(&mut server, &i);
        }
    }
    let state_of = |reply| match reply {
        Reply::Begin(BeginReply::Known(known)) => Some(known.state),
        Reply::Begin(BeginReply::Owner { .. } | BeginReply::Queued { .. }) => None,
        other => panic!("{other:?}"),
    };
    assert!(matches!(state_of(twin.ask(&mut server, &begin("t20"))), Some(TurnState::Ended(_))));
    assert_eq!(state_of(twin.ask(&mut server, &begin("t19"))), None, "new again");
    for i in 0..8 {
        assert_eq!(state_of(twin.ask(&mut server, &begin(&format!("t{i}")))), None);
    }
    assert_eq!(twin.ask(&mut server, &begin("t9")), Reply::Begin(BeginReply::Busy));
    // More records than one call takes arguments.
    assert_eq!(twin.ask(&mut server, &Request::Delete), Reply::Delete(Some(POD)));
    assert_eq!(twin.slot.as_ref().unwrap().root.turns.len(), TURN_RECORDS_MAX + 9);
    assert_eq!(twin.ask(&mut server, &begin("t1000")), Reply::Begin(BeginReply::Gone));
    let own = owned(twin.ask(&mut server, &begin("anew")));
    twin.ask(&mut server, &finish(&own));
    assert_eq!(twin.slot.as_ref().unwrap().root.turns.len(), TURN_RECORDS_MAX);
}

/// Every kind of request, in the order in which one turn needs them.
fn one_of_each(server: &mut Server) -> Vec<(Request, Value)> {
    use redis::ConnectionLike as _;
    let session = key("mine");
    let mut own = owned(server.ask(&session, &begin("t0")).unwrap().reply);
    let requests = [
        begin("t0"),
        begin("t1"),
        check(&own),
        Request::Read { after: EntryId::ZERO, count: 9 },
        Request::Snapshot,
        reset(&own),
        delta(&Ownership { end: EntryId::new(own.epoch, 1), ..own.clone() }, "x"),
        Request::Cancel { turn: own.turn.clone() },
        {
            own.end.n += 2;
            own.len += 2;
            finish(&own)
        },
        Request::Snapshot,
        claim(ClaimReason::Loss { epoch: own.epoch }),
        Request::EndLease { pod: POD, epoch: own.epoch },
        Request::Delete,
    ];
    let mut answers = Vec::new();
    for request in requests {
        let value = server.gateway.req_command(&command(&session, &request)).unwrap();
        answers.push((request, value));
    }
    answers
}

#[test]
fn another_sessions_answer_is_never_taken() {
    let mut server = Server::start(Options::default());
    let (mine, other) = (key("mine"), key("other"));
    for (request, value) in one_of_each(&mut server) {
        decode(&mine, &request, value.clone()).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        if let Request::Append(entry) = &request {
            let next = Entry { id: EntryId::new(entry.id.epoch, entry.id.n + 1), ..(**entry).clone() };
            decode(&mine, &Request::Append(next.into()), value).unwrap_err();
        } else {
            decode(&other, &request, value).unwrap_err();
        }
    }
}

#[test]
fn an_answer_to_something_else_is_an_error_and_no_panic() {
    let mut server = Server::start(Options::default());
    let mine = key("mine");
    let answers = one_of_each(&mut server);
    for (request, value) in &answers {
        let Value::Array(items) = value else { continue };
        // Each answer cut short, with something else at each place, and in place of each other answer.
        for place in 0..items.len() {
            // What the end of an answer holds may be left out: who runs next, what is still running.
            let _ = decode(&mine, request, Value::Array(items[..place].to_vec()));
            let mut broken = items.clone();
            broken[place] = Value::Array(Vec::new());
            let _ = decode(&mine, request, Value::Array(broken.clone()));
            broken[place] = Value::BulkString(vec![0xff]);
            decode(&mine, request, Value::Array(broken)).unwrap_err();
        }
        decode(&mine, request, Value::Array(items[..3].to_vec())).unwrap_err();
        for (other, _) in &answers {
            let _ = decode(&mine, other, value.clone());
        }
        decode(&mine, request, Value::Nil).unwrap_err();
        decode(&mine, request, Value::Okay).unwrap_err();
    }
}

#[test]
fn every_call_names_all_keys() {
    let mut server = Server::start(Options::default());
    let session = key("a/b {c}");
    let [log, ses, dlg] = keys(&session);
    assert_eq!(log, "log:{t/p/a%2Fb%20%7Bc%7D}");
    for (request, _) in one_of_each(&mut server) {
        let args: Vec<_> = command(&session, &request)
            .args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        match request {
            Request::Append(_) => assert_eq!(args[..3], ["XADD", &*log, "NOMKSTREAM"]),
            _ => assert_eq!(args[2..7], ["4", &*log, &*ses, &*dlg, "ch:{t/p/a%2Fb%20%7Bc%7D}"], "{request:?}"),
        }
    }
}
