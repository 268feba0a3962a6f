//! Scripts with one thing wrong: the random schedules find each of them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use chatgateway_redis_server::Options;

use super::{
    Server,
    differential::{SCHEDULES, schedule},
};
use crate::store::redis::scripts::{self, Script};

/// A script, what stands in it, and what would be wrong there.
type Mutation = (&'static Script, &'static str, &'static str);

fn mutations() -> Vec<Mutation> {
    let (begin, check, finish) = (&*scripts::BEGIN, &*scripts::CHECK, &*scripts::FINISH);
    let (claim, reset, read) = (&*scripts::CLAIM, &*scripts::RESET, &*scripts::READ);
    let (snapshot, delete, cancel) = (&*scripts::SNAPSHOT, &*scripts::DELETE, &*scripts::CANCEL);
    vec![
        (begin, "return format('%.0f', number)", "return tostring(number)"),
        (begin, "top = math.max(top, tonumber(match(last, '^%d+')))", ""),
        (begin, "top + 1 + jump", "top + 1"),
        (begin, "call('PEXPIREAT', LOG, at)", ""),
        (begin, "and root[3] == nonce then", "then"),
        (begin, "and owner == pod and root[3]", "and root[3]"),
        (begin, "if its_hash ~= hash then", "if false then"),
        (begin, "waiting >= queue_max", "waiting > queue_max"),
        (begin, "call('DEL', LOG, DLG)", ""),
        (begin, "from = last and root[6] or '0'", ""),
        (begin, "if not last then", "if false then"),
        (begin, "waiting - 1 +", "waiting +"),
        (check, "root[2] == pod and root[1] == epoch", "root[2] == pod"),
        (check, "and busy_ms or idle_ms", "and idle_ms or idle_ms"),
        (finish, "call('XLEN', LOG) ~= len then", "false then"),
        (finish, "last ~= follows or", ""),
        (finish, "if fits ~= '1' or", "if"),
        (finish, "or run ~= turn or", "or"),
        (finish, "if text and state ~= 'failed' then", "if text then"),
        (finish, "-keep - 1", "-keep - 2"),
        (finish, "'kt', kept + 1", "'kt', kept"),
        (finish, "'MINID', '=', cut)", "'MINID', '~', cut)"),
        (finish, "math.max(keep, 1)", "keep"),
        (finish, "'q', rest, 'lease', lease_until(lease_us)", "'q', rest"),
        (finish, "'nonce', '', 'q'", "'q'"),
        (finish, "len = len - call", "call"),
        (finish, "'x:' .. turn }", "}"),
        (finish, "0 %s %s', its_seq", "0 0 0', its_seq"),
        (finish, "if tonumber(seq) > keep then", "if tonumber(seq) > keep + 1 then"),
        (claim, "if owner == pod and root[3] == nonce then", "if root[3] == nonce then"),
        (claim, "tonumber(root[4]) <= NOW", "true"),
        (claim, "owner == pod and root[1] == lost_epoch", "owner == pod"),
        (claim, "tries = tries + 1", ""),
        (claim, "base = last and base or '0'", ""),
        (claim, "start, its_from, base = id, from, from", "start, its_from = id, from"),
        (claim, "in_log(start) and start or '0'", "start"),
        (claim, "call('HSET', SES, 'owner', '', 'nonce', '')", ""),
        (reset, "or length ~= len or", "or"),
        (reset, "call('HSET', SES, 'base', follows)", ""),
        (reset, "and root[4] == follows then", "then"),
        (read, "'(' .. ARGV[1]", "ARGV[1]"),
        (read, "local base = last and root[6] or '0'", "local base = root[6]"),
        (snapshot, "call('ZRANGE', DLG, 0, -1)", "call('ZRANGE', DLG, 0, -2)"),
        (delete, "call('DEL', SES, LOG, DLG)", "call('DEL', SES, DLG)"),
        (delete, "epoch = math.max(epoch, tonumber(match(last, '^%d+')))", ""),
        (cancel, "string.sub(root[1], 1, -2) .. '1'", "root[1]"),
    ]
}

#[test]
fn schedules_find_what_is_wrong() {
    let mut server = Server::start(Options::default());
    let mut unfound = Vec::new();
    for (script, right, wrong) in mutations() {
        assert_eq!(script.source.matches(right).count(), 1, "{right:?} stands once in the script");
        let source = script.source.replace(right, wrong);
        let mut load = redis::cmd("SCRIPT");
        let other: String = load.arg("LOAD").arg(&source).query(&mut server.gateway).unwrap();
        server.instead = Some((script.sha.clone(), other));
        let found = (1..=SCHEDULES).find(|seed| {
            server.admin(&["FLUSHALL"]);
            let run = || schedule(&mut server, *seed, &mut Vec::new(), &mut BTreeMap::new());
            catch_unwind(AssertUnwindSafe(run)).is_err()
        });
        match found {
            Some(seed) => eprintln!("{right:?} -> {wrong:?}: found by schedule {seed}"),
            None => unfound.push((right, wrong)),
        }
    }
    assert!(unfound.is_empty(), "nobody noticed: {unfound:#?}");
}
