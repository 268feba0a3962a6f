//! What the scripts cost the server. Not a test: `cargo test … costs -- --ignored --nocapture` prints it.

use chatgateway_core::log::{ClaimReason, EntryId, Request};
use chatgateway_redis_server::Options;

use redis::ConnectionLike as _;

use super::{
    Server, command, decode,
    faults::{begin, check, claim, delta, finish, key, owned, reset},
};

const CALLS: usize = 3_000;

/// The quietest of many batches counts: a busy machine adds to all the others.
const BATCH: usize = 50;

/// Entries of an answer.
const DELTAS: usize = 20;

#[test]
#[ignore = "measures"]
fn costs() {
    let mut server = Server::start(Options::default());
    let mut totals: Vec<(&str, f64)> = Vec::new();
    let mut add = |server: &mut Server, name: &'static str, calls: &[(usize, Request)]| {
        let executed = if name == "append" { "xadd" } else { "evalsha" };
        let (mut replies, mut best) = (Vec::new(), f64::MAX);
        for batch in calls.chunks(BATCH) {
            server.admin(&["CONFIG", "RESETSTAT"]);
            let session = |number: &usize| key(&format!("s{number}"));
            // At once, as the gateway does under load.
            let packed: Vec<u8> = batch
                .iter()
                .flat_map(|(number, request)| command(&session(number), request).get_packed_command())
                .collect();
            let values = server.gateway.req_packed_commands(&packed, 0, batch.len()).unwrap();
            for ((number, request), value) in batch.iter().zip(values) {
                replies.push(decode(&session(number), request, value).unwrap().reply);
            }
            let stats = server.server.info("commandstats", &format!("cmdstat_{executed}")).unwrap();
            let us = stats.split(',').find_map(|part| part.strip_prefix("usec_per_call=")).unwrap();
            best = best.min(us.parse().unwrap());
        }
        totals.push((name, best));
        replies
    };
    let all = |request: &dyn Fn(usize) -> Request| (0..CALLS).map(|i| (i, request(i))).collect::<Vec<_>>();
    let begun = add(&mut server, "begin: owner, new session", &all(&|_| begin("b6f4d1b0-0000-4000-8000-000000000001")));
    let mut owns: Vec<_> = begun.into_iter().map(owned).collect();
    for _ in 0..DELTAS {
        let calls: Vec<_> = owns.iter().enumerate().map(|(i, own)| (i, delta(own, "and then "))).collect();
        add(&mut server, "append", &calls);
        for own in &mut owns {
            own.end.n += 1;
            own.len += 1;
        }
    }
    add(&mut server, "check", &all(&|i| check(&owns[i])));
    add(&mut server, "read: at the end", &all(&|i| Request::Read { after: owns[i].end, count: 100 }));
    add(
        &mut server,
        "read: 20 entries",
        &all(&|i| Request::Read { after: EntryId::new(owns[i].epoch, 0), count: 100 }),
    );
    add(&mut server, "snapshot", &all(&|_| Request::Snapshot));
    add(&mut server, "finish: idle", &all(&|i| finish(&owns[i])));
    let begun = add(&mut server, "begin: owner", &all(&|_| begin("b6f4d1b0-0000-4000-8000-000000000002")));
    let mut owns: Vec<_> = begun.into_iter().map(owned).collect();
    add(&mut server, "begin: queued", &all(&|_| begin("b6f4d1b0-0000-4000-8000-000000000003")));
    add(&mut server, "begin: known", &all(&|_| begin("b6f4d1b0-0000-4000-8000-000000000001")));
    add(&mut server, "reset", &all(&|i| reset(&owns[i])));
    for own in &mut owns {
        own.end.n += 1;
        own.len += 1;
    }
    let finished = add(&mut server, "finish: next", &all(&|i| finish(&owns[i])));
    let owns: Vec<_> = finished.into_iter().map(owned).collect();
    add(&mut server, "claim", &all(&|i| claim(ClaimReason::Loss { epoch: owns[i].epoch })));
    add(&mut server, "delete", &all(&|_| Request::Delete));
    for (name, us) in totals.iter().filter(|(name, _)| *name != "append") {
        println!("{name}: {us:.1} us");
    }
    let appends: Vec<_> = totals.iter().filter(|(name, _)| *name == "append").map(|(_, us)| us).collect();
    println!("append: {:.2} us", appends.iter().copied().sum::<f64>() / appends.len() as f64);
}
