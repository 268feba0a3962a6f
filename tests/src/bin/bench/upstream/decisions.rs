//! What a decision of the limiter costs: round trips to Redis, and Redis' time.

use chatgateway_redis_server::RedisServer;
use serde_json::{Value, json};

use super::{
    flood::{Answers, Flood, flood},
    limits::{limited, redis},
};
use crate::{
    redis::{
        cost::Stats,
        relay::{Counts, Relay, since},
    },
    report::{Bound, Row},
    setup::Setup,
};

/// Commands that carry a decision.
const SCRIPTS: [&str; 3] = ["evalsha", "eval", "fcall"];

/// What some requests cost.
struct Cost {
    answers: Answers,
    sent: Counts,
    before: Stats,
    after: Stats,
}

impl Cost {
    fn decisions(&self) -> u64 {
        SCRIPTS.iter().filter_map(|name| self.sent.get(*name)).sum()
    }

    /// Microseconds of Redis' time in a script.
    fn script_us(&self) -> f64 {
        let all = |stats: &Stats| {
            SCRIPTS.iter().map(|name| stats.of(name)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        let ((calls_before, us_before), (calls, us)) = (all(&self.before), all(&self.after));
        (us - us_before) as f64 / (calls - calls_before) as f64
    }

    /// Microseconds of the whole process a decision, with its reads and writes.
    fn process_us(&self) -> f64 {
        self.after.cpu.saturating_sub(self.before.cpu).as_secs_f64() * 1e6 / self.decisions() as f64
    }

    fn round_trips(&self) -> f64 {
        self.decisions() as f64 / self.answers.all() as f64
    }

    fn note(&self) -> String {
        let names: Vec<String> = self.sent.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{}; {}", names.join(", "), self.answers)
    }
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let many = 100_000_000;
    let one = json!([{"per": "Gateway", "requestsPerSecond": many}]);
    let three = json!([
        {"per": "Gateway", "requestsPerSecond": many},
        {"per": "User", "requestsPerMinute": many},
        {"per": "Address", "requestsPerSecond": many},
    ]);
    let tokens = json!([
        {"per": "Gateway", "requestsPerSecond": many},
        {"per": "User", "tokensPerMinute": many},
        {"per": "Address", "requestsPerSecond": many},
    ]);
    let (one, three, tokens) = (cost(setup, &one).await?, cost(setup, &three).await?, cost(setup, &tokens).await?);
    let case = "a decision of the limiter";
    Ok(vec![
        Row::figure(format!("{case}, three limits: round trips to Redis"), three.round_trips(), "")
            .must(Bound::AtMost(1.0))
            .note(format!(
                "{}; with one of tokens, whose rest is given back: {:.2}",
                three.note(),
                tokens.round_trips()
            )),
        Row::figure(format!("{case}, one limit: decisions of one Redis core"), 1e6 / one.script_us(), "1/s")
            .bounds(Bound::AtLeast(100_000.0), Bound::AtLeast(150_000.0))
            .note(format!(
                "{:.2} µs a decision, {:.2} with reads and writes of the process; three limits {:.2} µs; {}",
                one.script_us(),
                one.process_us(),
                three.script_us(),
                one.note()
            )),
    ])
}

/// Redis has the servers' core for itself, since commandstats count the time on the clock. A round before makes it touch its
/// memory.
async fn cost(setup: &Setup, limits: &Value) -> anyhow::Result<Cost> {
    let redis: RedisServer = redis(setup.server_core)?;
    let relay = Relay::start(redis.endpoint().parse()?).await?;
    let beside = Setup { server_core: setup.generator_core, ..*setup };
    let gateway = beside.gateway(&limited(&relay.address().to_string(), limits)).await?;
    let load = |length| Flood { connections: 64, rate: None, length };
    flood(&[gateway.http()], load(setup.seconds(1, 3)), |_| {}).await?;
    let (before, sent) = (Stats::read(&redis)?, relay.counts());
    let answers = flood(&[gateway.http()], load(setup.seconds(4, 15)), |_| {}).await?;
    let (sent, after) = (since(&sent, &relay.counts()), Stats::read(&redis)?);
    anyhow::ensure!(answers.limited == 0 && answers.others.is_empty(), "not all were admitted: {answers}");
    let cost = Cost { answers, sent, before, after };
    anyhow::ensure!(2 * cost.decisions() > cost.answers.all(), "Redis was not asked: {}", cost.note());
    Ok(cost)
}
