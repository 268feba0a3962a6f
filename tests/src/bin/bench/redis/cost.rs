//! What a token costs Redis.
//!
//! Commands are counted by a relay on their way (see there). The server's time is that of its commandstats, which count a
//! script's time once for the script and once more for each command in it: so the time of each command is taken by the share
//! of its calls that were sent.

use std::time::Duration;

use anyhow::Context as _;

use super::{
    ground::Ground,
    live::{SPREAD, Stream, measure, stamped},
    relay::{Counts, Relay, since},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

const ANSWERS: usize = 200;

/// Tokens of an answer: ten seconds.
const TOKENS: u64 = 500;

/// What Redis says of itself.
struct Stats {
    /// Calls and microseconds by command.
    commands: Vec<(String, u64, u64)>,
    /// All commands, those of scripts too.
    processed: u64,
    /// Processor time of the process.
    cpu: Duration,
}

impl Stats {
    fn read(ground: &Ground) -> anyhow::Result<Self> {
        let redis = &ground.redis;
        let field =
            |section: &str, name: &str| redis.info(section, name).with_context(|| format!("INFO {section}: {name}"));
        let seconds = |name: &str| anyhow::Ok(field("cpu", name)?.parse::<f64>()?);
        let cpu = Duration::from_secs_f64(seconds("used_cpu_user")? + seconds("used_cpu_sys")?);
        let processed = field("stats", "total_commands_processed")?.parse()?;
        let commands = redis.cli(&["INFO", "commandstats"]).lines().filter_map(command_stats).collect();
        Ok(Self { commands, processed, cpu })
    }
}

/// A line of commandstats: name, calls, microseconds.
fn command_stats(line: &str) -> Option<(String, u64, u64)> {
    let (name, fields) = line.trim_end().strip_prefix("cmdstat_")?.split_once(':')?;
    let field = |name: &str| {
        let value = fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
        value.parse::<u64>().ok()
    };
    // Only the first part of a subcommand's name is a word that is sent.
    Some((name.split('|').next().unwrap_or(name).to_owned(), field("calls")?, field("usec")?))
}

/// Microseconds of each call of a command, of those that were sent.
fn call_us(before: &Stats, after: &Stats, sent: &Counts) -> Vec<(String, f64)> {
    let of = |stats: &Stats, name: &str| {
        let lines = stats.commands.iter().filter(|(command, _, _)| command == name);
        lines.fold((0, 0), |(calls, us), (_, more_calls, more_us)| (calls + more_calls, us + more_us))
    };
    let us = |name: &String| {
        let ((calls_before, us_before), (calls, us)) = (of(before, name), of(after, name));
        match calls - calls_before {
            0 => (name.clone(), 0.0),
            calls => (name.clone(), (us - us_before) as f64 / calls as f64),
        }
    };
    sent.keys().map(us).collect()
}

/// Microseconds of the commands that were sent.
fn sent_us(calls_us: &[(String, f64)], sent: &Counts) -> f64 {
    calls_us.iter().map(|(name, us)| us * sent.get(name).copied().unwrap_or(0) as f64).sum()
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let ground = Ground::start(setup, &stamped(TOKENS))?;
    let relay = Relay::start(ground.redis.endpoint().parse()?).await?;
    // Redis is what is measured: it has the servers' core for itself, since commandstats count the time on the clock.
    let beside = Setup { server_core: setup.generator_core, ..*setup };
    let gateway = beside.gateway(&ground.config(Some(&relay.address().to_string()))).await?;
    // Whole answers, so that what a turn costs at its ends has its share: each client asks once, or thrice.
    let (warm, length) = (Duration::ZERO, setup.seconds(3, 23));
    let stream = Stream { answers: ANSWERS, tokens: TOKENS, name: "cost", spread: SPREAD, warm, length };
    let (before, sent) = (Stats::read(&ground)?, relay.counts());
    let measured = measure(gateway.http(), gateway.pid(), stream).await?;
    let (sent, after) = (since(&sent, &relay.counts()), Stats::read(&ground)?);
    let tokens = (ground.model_calls().await? * TOKENS) as f64;
    let all: u64 = sent.values().sum();
    let names: Vec<String> = sent.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let calls_us = call_us(&before, &after, &sent);
    let calls: Vec<String> = calls_us.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
    let case = format!("Redis, a token of {ANSWERS} answers of {TOKENS} at 50 tokens/s");
    let faults = measured.faults.of_entries() + measured.faults.failed;
    Ok(vec![
        Row::figure(format!("{case}: commands sent"), all as f64 / tokens, "").must(Bound::AtMost(1.1)).note(format!(
            "{}; {:.2} with those inside scripts; {tokens} tokens",
            names.join(", "),
            (after.processed - before.processed) as f64 / tokens
        )),
        Row::figure(format!("{case}: server CPU in commands"), sent_us(&calls_us, &sent) / tokens, "µs")
            .bounds(Bound::AtMost(3.0), Bound::AtMost(1.5))
            .note(format!(
                "a call: {}; the whole process, with its reads and writes: {:.2}{}",
                calls.join(", "),
                after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / tokens,
                ground.disk()
            )),
        Row::figure(format!("{case}: faults"), faults as f64, "")
            .must(Bound::AtMost(0.0))
            .note(measured.faults.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shared_between_what_was_sent_and_what_scripts_did() {
        let line = "cmdstat_xadd:calls=12,usec=60,usec_per_call=5.00,rejected_calls=0,failed_calls=0\r";
        assert_eq!(command_stats(line), Some(("xadd".to_owned(), 12, 60)));
        assert_eq!(command_stats("cmdstat_script|load:calls=2,usec=9").unwrap().0, "script");
        assert!(command_stats("# Commandstats").is_none());
        let stats = |commands: &[(&str, u64, u64)]| Stats {
            commands: commands.iter().map(|(name, calls, us)| ((*name).to_owned(), *calls, *us)).collect(),
            processed: 0,
            cpu: Duration::ZERO,
        };
        let before = stats(&[("xadd", 2, 10)]);
        // Ten more XADDs, of which eight were sent, and two scripts with the other two inside.
        let after = stats(&[("xadd", 12, 60), ("evalsha", 2, 30), ("xlen", 2, 4)]);
        let sent = [("xadd".to_owned(), 8), ("evalsha".to_owned(), 2)].into();
        assert!((sent_us(&call_us(&before, &after, &sent), &sent) - 70.0).abs() < 1e-9);
    }
}
