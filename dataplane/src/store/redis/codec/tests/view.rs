//! A session's state in a form in which Redis' and the model's can be compared.

use std::collections::BTreeMap;

use chatgateway_core::log::{
    Entry, EntryId, HistoryTurn, PodId, SessionKey, TurnId, TurnState,
    store::{Record, SessionState},
};
use redis::Value;

use super::{
    super::{entry, history, reply::stream_entry, value::Items},
    Server, keys,
};

#[derive(Debug, PartialEq)]
pub(super) struct View {
    log: Option<Vec<Entry>>,
    epoch: u64,
    owner: Option<PodId>,
    nonce: Option<u64>,
    lease_until: u64,
    running: Option<TurnId>,
    base: EntryId,
    seq: u64,
    queue: Vec<TurnId>,
    turns: BTreeMap<TurnId, RecordView>,
    ended: Vec<TurnId>,
    kept: Vec<EntryId>,
    history: Vec<HistoryTurn>,
    /// Of each key that exists: milliseconds.
    expires: Vec<i64>,
}

#[derive(Debug, PartialEq)]
struct RecordView {
    state: TurnState,
    seq: u64,
    hash: [u8; 16],
    body: Option<(String, String)>,
    start: EntryId,
    from: EntryId,
    end: EntryId,
    tries: u32,
    cancel: bool,
}

pub(super) fn of_model(state: &SessionState) -> View {
    let root = &state.root;
    let record = |record: &Record| RecordView {
        state: record.state,
        seq: record.seq,
        hash: record.hash,
        body: record.body.as_ref().map(|body| (body.text.to_string(), body.extra.to_string())),
        start: record.start,
        from: record.from,
        end: record.end,
        tries: record.tries,
        cancel: record.cancel,
    };
    let keys = 1 + usize::from(state.log.is_some()) + usize::from(!state.history.is_empty());
    View {
        log: state.log.as_ref().map(|log| log.iter().map(|entry| (**entry).clone()).collect()),
        epoch: root.epoch,
        owner: root.owner,
        nonce: root.nonce.map(|nonce| nonce.0),
        lease_until: root.lease_until.0,
        running: root.running.clone(),
        base: root.base,
        seq: root.seq,
        queue: root.queue.iter().cloned().collect(),
        turns: root.turns.iter().map(|(turn, known)| (turn.clone(), record(known))).collect(),
        ended: root.ended.iter().cloned().collect(),
        kept: root.kept.iter().copied().collect(),
        history: state.history.iter().cloned().collect(),
        expires: vec![state.expires.0.div_ceil(1_000) as i64; keys],
    }
}

type Hash = BTreeMap<String, String>;

/// What Redis has of a session. Without its root there is none, whatever else is left.
pub(super) fn of_redis(server: &mut Server, session: &SessionKey) -> Option<View> {
    let [log, ses, dlg] = keys(session);
    let mut all = redis::pipe();
    all.cmd("HGETALL").arg(&ses).cmd("XRANGE").arg(&log).arg("-").arg("+").cmd("ZRANGE").arg(&dlg).arg(0).arg(-1);
    for key in [&ses, &log, &dlg] {
        all.cmd("PEXPIRETIME").arg(key);
    }
    type All = (Hash, Value, Vec<String>, i64, i64, i64);
    let (mut hash, entries, rows, ses_ends, log_ends, dlg_ends): All = all.query(&mut server.admin).unwrap();
    if hash.is_empty() {
        return None;
    }
    let mut log = Vec::new();
    let mut entries = Items::of(&entries).unwrap();
    while !entries.is_empty() {
        log.push((*stream_entry(entries.next().unwrap()).unwrap()).clone());
    }
    let records: Hash = hash.extract_if(.., |name, _| name.starts_with("t:")).collect();
    let turns = records.iter().map(|(name, record)| {
        let turn = &name[2..];
        let body =
            hash.remove(&format!("b:{turn}")).map(|text| (text, hash.remove(&format!("x:{turn}")).unwrap_or_default()));
        (TurnId::parse(turn).unwrap(), record_view(record, body))
    });
    let turns = turns.collect();
    let view = View {
        log: (log_ends != GONE).then_some(log),
        epoch: take(&mut hash, "epoch").unwrap().parse().unwrap(),
        owner: take(&mut hash, "owner").map(|owner| PodId(u128::from_str_radix(&owner, 16).unwrap())),
        nonce: take(&mut hash, "nonce").map(|nonce| nonce.parse().unwrap()),
        lease_until: take(&mut hash, "lease").map_or(0, |lease| lease.parse().unwrap()),
        running: take(&mut hash, "run").map(|turn| TurnId::parse(&turn).unwrap()),
        base: take(&mut hash, "base").map_or(EntryId::ZERO, |base| base.parse().unwrap()),
        seq: take(&mut hash, "seq").unwrap().parse().unwrap(),
        queue: take(&mut hash, "q").map_or(Vec::new(), |q| q.split('\n').map(|t| TurnId::parse(t).unwrap()).collect()),
        ended: ring(&mut hash, 'e').iter().map(|turn| TurnId::parse(turn).unwrap()).collect(),
        kept: ring(&mut hash, 'k').iter().map(|id| id.parse().unwrap()).collect(),
        history: rows.iter().map(|row| history::turn(session, row).unwrap()).collect(),
        turns,
        expires: [ses_ends, log_ends, dlg_ends].into_iter().filter(|ends| *ends != GONE).collect(),
    };
    assert!(hash.is_empty(), "fields that nobody gives up: {hash:?}");
    Some(view)
}

/// What PEXPIRETIME says of a key that does not exist.
const GONE: i64 = -2;

fn take(hash: &mut Hash, name: &str) -> Option<String> {
    hash.remove(name).filter(|value| !value.is_empty())
}

fn ring(hash: &mut Hash, kind: char) -> Vec<String> {
    let mut counter = |which| take(hash, &format!("{kind}{which}")).map_or(0, |n| n.parse::<u64>().unwrap());
    let (first, end) = (counter('h'), counter('t'));
    (first..end).map(|n| hash.remove(&format!("{kind}:{n}")).unwrap()).collect()
}

fn record_view(record: &str, body: Option<(String, String)>) -> RecordView {
    let parts: Vec<_> = record.split(' ').collect();
    let [state, seq, hash, start, from, end, tries, cancel] = parts[..] else { panic!("record {record:?}") };
    RecordView {
        state: entry::state(state).unwrap(),
        seq: seq.parse().unwrap(),
        hash: u128::from_str_radix(hash, 16).unwrap().to_be_bytes(),
        body,
        start: start.parse().unwrap(),
        from: from.parse().unwrap(),
        end: end.parse().unwrap(),
        tries: tries.parse().unwrap(),
        cancel: cancel == "1",
    }
}
