//! The script of rate limits on a real server: the same replies and the same state as the pure function, in random schedules.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use chatgateway_core::limiter::{
    Limit, Per, Rule, Rules, Unit,
    bucket::Bucket,
    table::{Done, Mark, Op, Outcome, Table, Terms},
};
use chatgateway_redis_server::{Cluster, Options, RedisServer, User};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use redis::{Cmd, Connection, ConnectionLike as _, Value};

use super::{decisions, scripts};

/// What the script needs of a gateway's rights.
const RULES: &str = "~rl:{*}:* -@all +evalsha +script|load +time +get +set +exists +del";

const GATEWAY: &str = "assistant";

const USERS: [&str; 2] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"];

/// Enough for every outcome, and for every fault of `mutations`.
const SCHEDULES: u64 = 100;

const STEPS: usize = 60;

struct Server {
    server: RedisServer,
    gateway: Connection,
    admin: Connection,
    /// The hash of the script that is called in place of the right one.
    instead: Option<String>,
}

impl Server {
    fn start() -> Self {
        let user = User { rules: RULES.into(), ..User::new("gateway", "pass") };
        let server = RedisServer::start(Options { user: Some(user), ..Options::default() }).unwrap();
        let connect = |credentials: &str| {
            redis::Client::open(format!("redis://{credentials}@{}", server.endpoint()))
                .unwrap()
                .get_connection()
                .unwrap()
        };
        let (mut gateway, admin) = (connect("gateway:pass"), connect("admin:of-this-test-only"));
        load(&mut gateway, scripts::TAKE.source);
        Self { gateway, admin, server, instead: None }
    }

    fn admin<T: redis::FromRedisValue>(&mut self, args: &[&str]) -> T {
        let mut command = Cmd::new();
        for arg in args {
            command.arg(arg);
        }
        command.query(&mut self.admin).unwrap()
    }

    fn ask(&mut self, rules: &Rules, steps: &[Op]) -> (u64, Vec<Outcome>) {
        let mut packed = decisions::command(GATEWAY, rules, steps).get_packed_command();
        if let Some(other) = &self.instead {
            let sha = scripts::TAKE.sha.as_bytes();
            let at = packed.windows(sha.len()).position(|window| window == sha).unwrap();
            packed[at..at + sha.len()].copy_from_slice(other.as_bytes());
        }
        let reply = self.gateway.req_packed_command(&packed).unwrap();
        decisions::decode(steps, reply).unwrap()
    }
}

fn load(connection: &mut Connection, source: &str) -> String {
    redis::cmd("SCRIPT").arg("LOAD").arg(source).query(connection).unwrap()
}

fn name(text: &str) -> Arc<str> {
    text.into()
}

/// Limits that some milliseconds fill, and some that they do not.
fn rules(random: &mut StdRng) -> Rules {
    let kinds = [
        (Per::Gateway, Unit::Requests, 5..20_u64),
        (Per::User, Unit::Requests, 2..10),
        (Per::User, Unit::Tokens, 30..300),
        (Per::Gateway, Unit::Tokens, 50..400),
    ];
    let rule = |(per, unit, burst): (Per, Unit, std::ops::Range<u64>)| {
        let per_minute = [1, 77, 60_000, 1_000_000, 6_000_000_000][random.random_range(0..5)];
        let most = random.random_range(0..12) == 0;
        let burst = if most { 100_000_000 } else { random.random_range(burst) };
        Rule { per, unit, limit: Limit { per_minute, burst } }
    };
    Rules(kinds.into_iter().map(rule).collect())
}

struct Twin {
    table: Table,
    rules: Rules,
    random: StdRng,
    marks: usize,
}

impl Twin {
    fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    fn mark(&mut self) -> Arc<str> {
        let n = if self.below(3) == 0 || self.marks == 0 {
            self.marks += 1;
            self.marks
        } else {
            self.marks - self.random.random_range(0..self.marks.min(4))
        };
        name(&format!("m:{n:032x}"))
    }

    fn step(&mut self) -> Op {
        let user = USERS[self.below(2) as usize];
        let (requests, tokens) = ([name("gr"), name(&format!("ur:{user}"))], [name(&format!("ut:{user}")), name("gt")]);
        match self.below(12) {
            0..6 => {
                let mark = if self.below(6) == 0 { None } else { Some(self.mark()) };
                let mut buckets = requests.to_vec();
                let with_tokens = self.below(4) > 0;
                if with_tokens {
                    buckets.extend(tokens);
                }
                Op::Take { mark, tokens: if with_tokens { self.below(80) } else { 0 }, buckets }
            }
            6..8 => Op::Extend { mark: self.mark(), tokens: self.below(160) },
            8..10 => Op::Settle { mark: self.mark(), used: self.below(120) },
            10 => {
                let mark = self.mark();
                Op::Undo { mark, buckets: if self.below(2) == 0 { requests.to_vec() } else { Vec::new() } }
            }
            _ => {
                let bucket = [&requests[0], &tokens[0], &tokens[1]][self.below(3) as usize].clone();
                Op::Owe { bucket, units: self.below(200) * 17_000_001 }
            }
        }
    }

    /// What is not a step: time, a clock that jumps, limits that change.
    fn happen(&mut self, server: &mut Server, now: u64) {
        match self.below(24) {
            0 => std::thread::sleep(Duration::from_micros(self.random.random_range(0..3_000))),
            1 => {
                // The clock was put back, by little or by much.
                let by = [1_000, 3_000_000, 3_600_000_000][self.below(3) as usize];
                let terms = Terms { rules: &self.rules, now, shares: 1 };
                let level = self.table.bucket(terms, "gr").unwrap().level;
                self.table.set(Terms { now: now + by, ..terms }, &name("gr"), level);
                let key = format!("{}gr", decisions::prefix(GATEWAY));
                let value: Vec<u8> =
                    [level, now + by].iter().flat_map(|number| (*number as f64).to_le_bytes()).collect();
                let () = redis::cmd("SET").arg(&key).arg(value).query(&mut server.admin).unwrap();
                let limit = &mut self.rules.0[0].limit;
                limit.burst = (limit.burst / 2).max(1);
            }
            2 => {
                let changed = rules(&mut self.random);
                let at = self.below(4) as usize;
                // The rates stay: an expiry is for the rate that was.
                self.rules.0[at].limit.burst = changed.0[at].limit.burst.min(self.rules.0[at].limit.burst);
            }
            _ => {}
        }
    }

    fn compare(&self, server: &mut Server, now: u64, steps: &[Op]) {
        let prefix = decisions::prefix(GATEWAY);
        let terms = Terms { rules: &self.rules, now, shares: 1 };
        for bucket in ["gr", "gt", "ur", "ut"] {
            for user in USERS {
                let bucket = if bucket.starts_with('g') { bucket.into() } else { format!("{bucket}:{user}") };
                let kept: Option<Vec<u8>> = server.admin(&["GET", &format!("{prefix}{bucket}")]);
                let ours = self.table.bucket(terms, &bucket).unwrap();
                let theirs = kept.map_or(ours, |kept| {
                    let number = |at: usize| f64::from_le_bytes(kept[at..at + 8].try_into().unwrap()) as u64;
                    let kept = Bucket { level: number(0), at: number(8) };
                    kept.refilled(&self.rules.of(&bucket).unwrap().limit, now)
                });
                assert_eq!(theirs, ours, "{bucket} after {steps:?}");
            }
        }
        for n in 1..=self.marks {
            let mark = format!("m:{n:032x}");
            let kept: Option<String> = server.admin(&["GET", &format!("{prefix}{mark}")]);
            let ours = self.table.mark(now, &mark).map(|mark| match mark {
                Mark::Admitted => "1".to_owned(),
                Mark::Settled => "s".to_owned(),
                Mark::Reserved { tokens, buckets } => format!("{tokens} {}", buckets.join(" ")),
            });
            assert_eq!(kept, ours, "{mark} after {steps:?}");
        }
    }
}

fn schedule(server: &mut Server, seed: u64, reached: &mut BTreeMap<String, u32>) {
    let mut random = StdRng::seed_from_u64(seed);
    let rules = rules(&mut random);
    let mut twin = Twin { table: Table::default(), rules, random, marks: 0 };
    let mut now = 0;
    for _ in 0..STEPS {
        if now > 0 {
            twin.happen(server, now);
        }
        let count = if twin.below(3) == 0 { 1 } else { 1 + twin.below(8) };
        let steps: Vec<Op> = (0..count).map(|_| twin.step()).collect();
        let (at, outcomes) = server.ask(&twin.rules, &steps);
        now = at;
        for (step, outcome) in steps.iter().zip(outcomes) {
            let terms = Terms { rules: &twin.rules, now, shares: 1 };
            let ours = twin.table.execute(terms, step);
            assert_eq!(outcome, ours, "seed {seed}: {step:?} of {steps:?}");
            let kind = format!("{step:?}");
            let kind = kind.split_once(' ').unwrap().0;
            *reached.entry(format!("{kind}: {:?}", ours.done)).or_default() += 1;
        }
        twin.compare(server, now, &steps);
    }
}

#[test]
fn redis_decides_as_the_pure_function_does() {
    let mut server = Server::start();
    let mut reached = BTreeMap::new();
    for seed in 1..=SCHEDULES {
        let _: () = server.admin(&["FLUSHALL"]);
        schedule(&mut server, seed, &mut reached);
    }
    // Schedules that reach less than they did prove less.
    for outcome in [
        "Take: Done",
        "Take: Refused",
        "Take: Known",
        "Extend: Done",
        "Extend: Refused",
        "Extend: Nothing",
        "Settle: Done",
        "Settle: Nothing",
        "Undo: Done",
        "Undo: Nothing",
        "Owe: Done",
    ] {
        assert!(reached.get(outcome).is_some_and(|n| *n >= 20), "hardly or never reached: {outcome}\n{reached:#?}");
    }
    assert_eq!(server.server.cli(&["ACL", "LOG"]), "", "more rights are needed than the manual says");
}

#[test]
fn schedules_find_what_is_wrong() {
    let mut server = Server::start();
    let mutations = [
        ("level = math.min(level, cap)", ""),
        ("math.min(level + (NOW - stamp) * rate, cap), NOW", "level + (NOW - stamp) * rate, NOW"),
        ("math.min(level + (NOW - stamp) * rate, cap), NOW", "math.min(level + (NOW - stamp) * rate, cap), stamp"),
        ("if NOW >= stamp then", "if true then"),
        ("(stamp - NOW) * rate > cap then", "false then"),
        ("changed = kept == 'stale'", "changed = false"),
        ("      done = REFUSED\n      break", "      break"),
        ("call('EXISTS', mark) == 1 and KNOWN or REFUSED", "REFUSED"),
        ("value, 'NX', 'PX', ttl) and DONE or KNOWN", "value, 'PX', ttl) and DONE or KNOWN"),
        ("of_tokens(key) and buckets[key] then", "buckets[key] then"),
        ("if b and done == DONE then", "if b and done ~= REFUSED then"),
        ("if more <= 0 then", "if more < -1e9 then"),
        ("wait = math.max(wait, floor(", "wait = math.min(wait, floor("),
        ("if wait > 0 then", "if false then"),
        ("b.rate - 1) / b.rate", "b.rate) / b.rate"),
        ("b.level, b.changed = b.level - more * UNIT, true", "b.level = b.level - more * UNIT"),
        ("call('SET', mark, format('%.0f ', tokens) .. names, 'PX', HELD)", ""),
        ("math.max(0, held - used)", "held - used"),
        ("call('SET', mark, 's', 'PX', KEPT)", ""),
        ("math.min(b.level + count * UNIT, b.cap), true", "b.level + count * UNIT, true"),
        ("if not kept or kept == 's' then", "if not kept then"),
        ("call('DEL', mark)", ""),
        ("units = math.min(units, b.level)", ""),
        ("give_back(KEYS[tonumber(ARGV[i])], 1)", ""),
        ("struct.pack('<dd', b.level, b.at)", "struct.pack('<dd', b.level, NOW)"),
    ];
    let mut unfound = Vec::new();
    for (right, wrong) in mutations {
        assert_eq!(scripts::TAKE.source.matches(right).count(), 1, "{right:?} stands once in the script");
        server.instead = Some(load(&mut server.gateway, &scripts::TAKE.source.replace(right, wrong)));
        let found = (1..=SCHEDULES).find(|seed| {
            let _: () = server.admin(&["FLUSHALL"]);
            catch_unwind(AssertUnwindSafe(|| schedule(&mut server, *seed, &mut BTreeMap::new()))).is_err()
        });
        if found.is_none() {
            unfound.push((right, wrong));
        }
    }
    assert!(unfound.is_empty(), "nobody noticed: {unfound:#?}");
}

#[test]
fn keys_expire_when_they_say_nothing_any_more() {
    let mut server = Server::start();
    let rule = |per, unit, per_minute, burst| Rule { per, unit, limit: Limit { per_minute, burst } };
    let rules = Rules(vec![rule(Per::Gateway, Unit::Requests, 60, 100), rule(Per::Gateway, Unit::Tokens, 600, 1_000)]);
    let take = |mark: &str, tokens| Op::Take { mark: Some(name(mark)), tokens, buckets: vec![name("gr"), name("gt")] };
    server.ask(&rules, &[take("m:1", 0), take("m:2", 200), take("m:3", 1), Op::Settle { mark: name("m:3"), used: 1 }]);
    let mut left = |key: &str| {
        let ms: i64 = server.admin(&["PTTL", &format!("{}{key}", decisions::prefix(GATEWAY))]);
        (ms + 500) / 1_000
    };
    // Three requests at one a second, and the margin; 201 tokens at ten a second.
    assert_eq!((left("gr"), left("gt")), (4, 21));
    assert_eq!((left("m:1"), left("m:2"), left("m:3")), (600, 3_600, 600));
}

#[test]
fn the_keys_of_a_gateway_are_in_one_slot_of_a_cluster() {
    let cluster = Cluster::start(3).unwrap();
    let rule = |unit| Rule { per: Per::User, unit, limit: Limit { per_minute: 60, burst: 100 } };
    let rules = Rules(vec![rule(Unit::Requests), rule(Unit::Tokens)]);
    let steps: Vec<Op> = (0..40)
        .flat_map(|n| {
            let (mark, user) = (name(&format!("m:{n:032x}")), format!("{n:032x}"));
            let buckets = vec![name(&format!("ur:{user}")), name(&format!("ut:{user}"))];
            [
                Op::Take { mark: Some(mark.clone()), tokens: 50, buckets },
                Op::Extend { mark: mark.clone(), tokens: 60 },
                Op::Settle { mark, used: 10 },
            ]
        })
        .collect();
    for gateway in ["assistant", "another"] {
        let owner = cluster.owner_of(cluster.slot_of(&decisions::prefix(gateway)).unwrap()).unwrap();
        let node = &cluster.nodes()[owner];
        let client = redis::Client::open(format!("redis://{}", node.endpoint())).unwrap();
        let mut connection = client.get_connection().unwrap();
        load(&mut connection, scripts::TAKE.source);
        let reply = connection.req_packed_command(&decisions::command(gateway, &rules, &steps).get_packed_command());
        let (_, outcomes) = decisions::decode(&steps, reply.unwrap()).unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.done == Done::Done), "{outcomes:?}");
    }
}

/// Not a test: prints how many decisions one core of a Redis makes a second. `cargo test … decisions_cost -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn decisions_cost() {
    let mut server = Server::start();
    let rule = |per, unit, per_minute, burst| Rule { per, unit, limit: Limit { per_minute, burst } };
    let one = Rules(vec![rule(Per::Gateway, Unit::Requests, 120_000, 4_000)]);
    let open = Rules(vec![rule(Per::Gateway, Unit::Requests, 6_000_000_000, 100_000_000)]);
    let four = Rules(vec![
        rule(Per::Gateway, Unit::Requests, 6_000_000_000, 100_000_000),
        rule(Per::User, Unit::Requests, 6_000_000_000, 100_000_000),
        rule(Per::Address, Unit::Requests, 6_000_000_000, 100_000_000),
        rule(Per::User, Unit::Tokens, 6_000_000_000, 100_000_000),
    ]);
    let cases: [(&str, &Rules, bool); 5] = [
        ("one limit, mostly refused", &one, true),
        ("one limit, all admitted", &open, true),
        ("one limit, all admitted, no marks", &open, false),
        ("four limits, all admitted, then settled", &four, true),
        ("four limits, all admitted, no marks", &four, false),
    ];
    for (what, rules, marked) in cases {
        for batch in [1, 16, 64, 256] {
            let (calls, mut n) = (20_000 / batch, 0_u64);
            let packed: Vec<Vec<u8>> = (0..calls)
                .map(|_| {
                    let mut steps = Vec::new();
                    for _ in 0..batch {
                        n += 1;
                        let mark = marked.then(|| name(&format!("m:{n:032x}")));
                        let user = format!("{:032x}", n % 1_000);
                        let buckets = rules.0.iter().map(|rule| match rule.per {
                            Per::Gateway => name(rule.code()),
                            _ => name(&format!("{}:{user}", rule.code())),
                        });
                        let tokens = if rules.0.len() > 1 { 500 } else { 0 };
                        steps.push(Op::Take { mark: mark.clone(), tokens, buckets: buckets.collect() });
                        if let (Some(mark), 1..) = (mark, tokens) {
                            steps.push(Op::Settle { mark, used: 300 });
                        }
                    }
                    decisions::command(GATEWAY, rules, &steps).get_packed_command()
                })
                .collect();
            let _: () = server.admin(&["FLUSHALL"]);
            let _: () = server.admin(&["CONFIG", "RESETSTAT"]);
            let began = Instant::now();
            for call in &packed {
                let Value::Array(_) = server.gateway.req_packed_command(call).unwrap() else { panic!("refused") };
            }
            let elapsed = began.elapsed();
            let stats: String = server.admin(&["INFO", "commandstats"]);
            let usec = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap();
            let usec: f64 = usec.split(',').find_map(|part| part.strip_prefix("usec=")).unwrap().parse().unwrap();
            let cpu: String = server.admin(&["INFO", "cpu"]);
            let cpu =
                cpu.lines().find(|line| line.starts_with("used_cpu_user_main_thread")).unwrap_or_default().to_owned();
            println!(
                "{what}, {batch} a call: {:.0} decisions/s of script time, {:.2} µs each; {:.0}/s by the clock; {cpu}",
                1e6 * n as f64 / usec,
                usec / n as f64,
                n as f64 / elapsed.as_secs_f64()
            );
        }
    }
}
