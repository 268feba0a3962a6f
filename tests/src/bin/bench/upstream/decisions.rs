//! What a decision of the limiter costs: round trips to Redis, and Redis' time. A pod that has many requests at once sends their
//! decisions together, as one script.

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

/// Commands that carry decisions.
const SCRIPTS: [&str; 3] = ["evalsha", "eval", "fcall"];

/// What some requests cost.
struct Cost {
    answers: Answers,
    sent: Counts,
    before: Stats,
    after: Stats,
}

impl Cost {
    fn scripts(&self) -> u64 {
        SCRIPTS.iter().filter_map(|name| self.sent.get(*name)).sum()
    }

    /// Requests, each of which is one decision about all limits.
    fn decisions(&self) -> f64 {
        self.answers.all() as f64
    }

    /// Microseconds of Redis' time in scripts, a decision.
    fn script_us(&self) -> f64 {
        let all = |stats: &Stats| SCRIPTS.iter().map(|name| stats.of(name).1).sum::<u64>();
        (all(&self.after) - all(&self.before)) as f64 / self.decisions()
    }

    /// Microseconds of the whole process a decision, with its reads and writes.
    fn process_us(&self) -> f64 {
        self.after.cpu.saturating_sub(self.before.cpu).as_secs_f64() * 1e6 / self.decisions()
    }

    fn round_trips(&self) -> f64 {
        self.scripts() as f64 / self.decisions()
    }

    fn note(&self) -> String {
        let names: Vec<String> = self.sent.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{}; {:.1} decisions a script; {}", names.join(", "), 1.0 / self.round_trips(), self.answers)
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
    // Heartbeats alone are not as many.
    anyhow::ensure!(cost.round_trips() > 0.001, "Redis was not asked: {}", cost.note());
    Ok(cost)
}
