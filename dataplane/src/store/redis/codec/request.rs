//! Requests as commands.

use chatgateway_core::{
    limits::{DELETED_RECORDS_TTL, QUEUED_TURNS_MAX, TURN_RECORDS_MAX, UNFINISHED_TTL},
    log::{Begin, Check, Claim, ClaimReason, Entry, EntryId, Finish, Request, Reset, SessionKey, Terms},
};
use redis::Cmd;

use super::{channel, entry, history, keys};
use crate::store::redis::scripts::{self, Script};

/// Times beyond this are not told apart. A sum with today stays far below what a script's numbers hold exactly.
const TIME_MAX_MS: u64 = 100 * 365 * 86_400_000;

/// Arguments of a script beside its own: its hash, the number of its keys, and those.
const SCRIPT_ARGS: usize = 7;

/// A request as the command that carries it out.
pub(in crate::store::redis) fn command(session: &SessionKey, request: &Request) -> Cmd {
    match request {
        Request::Begin(request) => begin(session, request),
        Request::Append(entry) => append(session, entry),
        Request::Check(request) => check(session, request),
        Request::Finish(request) => finish(session, request),
        Request::Claim(request) => claim(session, request),
        Request::Reset(request) => reset(session, request),
        Request::EndLease { pod, epoch } => {
            let mut command = script(session, &scripts::END_LEASE, 0);
            command.arg(pod.to_string()).arg(*epoch);
            command
        }
        Request::Cancel { turn } => {
            let mut command = script(session, &scripts::CANCEL, turn.as_str().len());
            command.arg(turn.as_str());
            command
        }
        Request::Read { after, count } => {
            let mut command = script(session, &scripts::READ, 0);
            command.arg(readable(*after).to_string()).arg(*count);
            command
        }
        Request::Snapshot => script(session, &scripts::SNAPSHOT, 0),
        Request::Delete => {
            let mut command = script(session, &scripts::DELETE, 0);
            command.arg(DELETED_RECORDS_TTL.as_millis() as u64);
            command
        }
    }
}

/// No entry can have the greatest id there is; a server refuses to look for what comes after it.
fn readable(after: EntryId) -> EntryId {
    let last = EntryId::new(u64::MAX, u64::MAX);
    if after == last { EntryId::new(u64::MAX, u64::MAX - 1) } else { after }
}

/// A call of a script, all keys named, with room for so many bytes of texts.
fn script(session: &SessionKey, script: &Script, bytes: usize) -> Cmd {
    /// Arguments that most scripts stay below, and their bytes without the texts.
    const ARGS: (usize, usize) = (24, 512);
    let key_bytes = 4 * (session.as_str().len() + 8);
    let mut command = Cmd::with_capacity(SCRIPT_ARGS + ARGS.0, ARGS.1 + key_bytes + bytes);
    command.arg("EVALSHA").arg(&script.sha).arg(4);
    for key in keys(session) {
        command.arg(key);
    }
    command.arg(channel(session));
    command
}

/// The times of a request: lease in microseconds, then the session's in milliseconds, idle and with an unfinished turn.
fn times(terms: &Terms) -> (u64, u64, u64) {
    let lease_us = terms.lease_ms.min(TIME_MAX_MS) * 1_000;
    let idle_ms = terms.ttl_ms.min(TIME_MAX_MS);
    (lease_us, idle_ms, idle_ms.max(UNFINISHED_TTL.as_millis() as u64))
}

fn hex(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}

fn append(session: &SessionKey, entry: &Entry) -> Cmd {
    const ARGS: (usize, usize) = (14, 128);
    let bytes = entry.payload_bytes() + entry.turn.as_str().len() + session.as_str().len();
    let mut command = Cmd::with_capacity(ARGS.0, ARGS.1 + bytes);
    let [log, ..] = keys(session);
    command.arg("XADD").arg(log).arg("NOMKSTREAM").arg(entry.id.to_string());
    add_fields(&mut command, entry);
    command
}

fn add_fields(command: &mut Cmd, entry: &Entry) {
    entry::fields(entry, |name, value| {
        command.arg(name).arg(value);
    });
}

fn begin(session: &SessionKey, request: &Begin) -> Cmd {
    let (lease_us, _, busy_ms) = times(&request.terms);
    let body = &request.body;
    let mut command = script(session, &scripts::BEGIN, body.text.len() + body.extra.len());
    command.arg(request.pod.to_string()).arg(request.nonce.0).arg(request.turn.as_str());
    command.arg(request.seq.map_or_else(String::new, |seq| seq.to_string()));
    command.arg(hex(&body.hash)).arg(&*body.text).arg(&*body.extra).arg(request.jump);
    command.arg(lease_us).arg(busy_ms).arg(QUEUED_TURNS_MAX);
    command
}

fn check(session: &SessionKey, request: &Check) -> Cmd {
    let (lease_us, idle_ms, busy_ms) = times(&request.terms);
    let mut command = script(session, &scripts::CHECK, 0);
    command.arg(request.pod.to_string()).arg(request.epoch).arg(lease_us).arg(idle_ms).arg(busy_ms);
    command
}

fn finish(session: &SessionKey, request: &Finish) -> Cmd {
    let (lease_us, idle_ms, busy_ms) = times(&request.terms);
    let (entry, end) = (&request.entry, request.entry.kind.end());
    let next = EntryId::new(entry.id.epoch, entry.id.n.saturating_add(1));
    let mut command = script(session, &scripts::FINISH, request.answer.len() + entry.payload_bytes());
    command.arg(request.pod.to_string()).arg(request.epoch).arg(request.follows.to_string()).arg(request.len);
    command.arg(entry.turn.as_str()).arg(u8::from(end.is_some() && entry.id > request.follows));
    command.arg(end.map_or("", entry::end_name)).arg(entry.id.to_string()).arg(next.to_string());
    command.arg(&*request.answer).arg(history::meta(session, request)).arg(request.terms.keep_turns);
    command.arg(lease_us).arg(idle_ms).arg(busy_ms).arg(TURN_RECORDS_MAX);
    add_fields(&mut command, entry);
    command
}

fn claim(session: &SessionKey, request: &Claim) -> Cmd {
    let (lease_us, _, busy_ms) = times(&request.terms);
    let (why, epoch) = match request.why {
        ClaimReason::Expired => ("expired", 0),
        ClaimReason::Loss { epoch } => ("loss", epoch),
    };
    let mut command = script(session, &scripts::CLAIM, 0);
    command.arg(request.pod.to_string()).arg(request.nonce.0).arg(why).arg(epoch).arg(request.jump);
    command.arg(lease_us).arg(busy_ms);
    command
}

fn reset(session: &SessionKey, request: &Reset) -> Cmd {
    let entry = &request.entry;
    let mut command = script(session, &scripts::RESET, entry.payload_bytes());
    command.arg(request.pod.to_string()).arg(request.epoch).arg(request.follows.to_string()).arg(request.len);
    command.arg(entry.turn.as_str()).arg(u8::from(entry.id > request.follows)).arg(entry.id.to_string());
    add_fields(&mut command, entry);
    command
}
