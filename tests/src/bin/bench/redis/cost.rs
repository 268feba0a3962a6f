//! What a token costs Redis.
//!
//! Commands are counted by a relay on their way (see there). The server's time is that of its commandstats, which count a
//! script's time once for the script and once more for each command in it: so the time of each command is taken by the share
//! of its calls that were sent.
//!
//! A machine that gives its guests memory only when it is touched makes the first touch cost many times the command. So a
//! whole round runs before, whose sessions are deleted: what is measured finds memory that Redis has had before. What a bare
//! XADD of the same fields costs in the same server tells how fast the machine is.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use chatgateway_core::log::EntryId;
use chatgateway_redis_server::RedisServer;
use chatgateway_tests::client::{HttpClient, in_time};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

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

/// Streams that bare XADDs go to, and how many each gets.
const BARE_STREAMS: usize = 200;
const BARE_ENTRIES: usize = 500;

/// What Redis says of itself.
pub struct Stats {
    /// Calls and microseconds by command.
    commands: Vec<(String, u64, u64)>,
    /// All commands, those of scripts too.
    processed: u64,
    /// Processor time of the process.
    pub cpu: Duration,
}

impl Stats {
    /// Reads it.
    pub fn read(redis: &RedisServer) -> anyhow::Result<Self> {
        let field =
            |section: &str, name: &str| redis.info(section, name).with_context(|| format!("INFO {section}: {name}"));
        let seconds = |name: &str| anyhow::Ok(field("cpu", name)?.parse::<f64>()?);
        let cpu = Duration::from_secs_f64(seconds("used_cpu_user")? + seconds("used_cpu_sys")?);
        let processed = field("stats", "total_commands_processed")?.parse()?;
        let commands = redis.cli(&["INFO", "commandstats"]).lines().filter_map(command_stats).collect();
        Ok(Self { commands, processed, cpu })
    }

    /// Calls and microseconds of a command.
    pub fn of(&self, name: &str) -> (u64, u64) {
        let lines = self.commands.iter().filter(|(command, _, _)| command == name);
        lines.fold((0, 0), |(calls, us), (_, more_calls, more_us)| (calls + more_calls, us + more_us))
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
    let us = |name: &String| {
        let ((calls_before, us_before), (calls, us)) = (before.of(name), after.of(name));
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
    let stream = |name| Stream { answers: ANSWERS, tokens: TOKENS, name, spread: SPREAD, warm, length };
    measure(gateway.http(), gateway.pid(), stream("warm")).await?;
    delete(gateway.http(), "warm").await?;
    let (before, sent, model_calls) = (Stats::read(&ground.redis)?, relay.counts(), ground.model_calls().await?);
    let measured = measure(gateway.http(), gateway.pid(), stream("cost")).await?;
    let (sent, after) = (since(&sent, &relay.counts()), Stats::read(&ground.redis)?);
    let tokens = ((ground.model_calls().await? - model_calls) * TOKENS) as f64;
    let bare_us = bare_xadd_us(&ground).await?;
    let all: u64 = sent.values().sum();
    let names: Vec<String> = sent.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let calls_us = call_us(&before, &after, &sent);
    let calls: Vec<String> = calls_us.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
    let case = format!("Redis, a token of {ANSWERS} answers of {TOKENS} at 50 tokens/s");
    let faults = measured.faults.of_entries() + measured.faults.failed;
    let command_us = sent_us(&calls_us, &sent) / tokens;
    Ok(vec![
        Row::figure(format!("{case}: commands sent"), all as f64 / tokens, "").must(Bound::AtMost(1.1)).note(format!(
            "{}; {:.2} with those inside scripts; {tokens} tokens",
            names.join(", "),
            (after.processed - before.processed) as f64 / tokens
        )),
        Row::figure(format!("{case}: server CPU in commands"), command_us, "µs")
            .bounds(Bound::AtMost(3.0), Bound::AtMost(1.5))
            .note(format!(
                "a call: {}; the whole process, with its reads and writes: {:.2}{}",
                calls.join(", "),
                after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / tokens,
                ground.disk()
            )),
        Row::against(format!("{case}: the same by a bare XADD"), command_us, "µs", bare_us, command_us / bare_us)
            .note("a pipelined loop of XADDs of the same fields in the same server: how fast the machine is"),
        Row::figure(format!("{case}: faults"), faults as f64, "")
            .must(Bound::AtMost(0.0))
            .note(measured.faults.to_string()),
    ])
}

/// Deletes the sessions of a stream.
async fn delete(gateway: SocketAddr, name: &str) -> anyhow::Result<()> {
    let client = HttpClient::new(gateway);
    for number in 0..ANSWERS {
        let reply = client.delete(&format!("/v1/sessions/{name}-{number}")).await?;
        anyhow::ensure!(reply.status.is_success(), "a session was not deleted: {} {}", reply.status, reply.text());
    }
    Ok(())
}

/// Microseconds of an XADD that nothing is around: with the fields of a session's text, to as many streams as there are answers,
/// in pipelines. The second of two rounds, so that it too finds memory that was used before.
async fn bare_xadd_us(ground: &Ground) -> anyhow::Result<f64> {
    let entry = entry_of_text(ground)?;
    let entry: Vec<&str> = entry.iter().map(String::as_str).collect();
    let keys: Vec<String> = (0..BARE_STREAMS).map(|number| format!("bare:{{{number}}}")).collect();
    let mut stream = in_time("a connection to Redis", TcpStream::connect(ground.redis.endpoint())).await??;
    let mut figures = (0, 0);
    for _ in 0..2 {
        let before = Stats::read(&ground.redis)?.of("xadd");
        for number in 1..=BARE_ENTRIES {
            let id = format!("{number}-0");
            let commands = keys.iter().map(|key| encoded(&[&["XADD", key, &id], &entry[..]].concat()));
            ask(&mut stream, &commands.collect::<String>(), keys.len()).await?;
        }
        let after = Stats::read(&ground.redis)?.of("xadd");
        figures = (after.0 - before.0, after.1 - before.1);
        ask(&mut stream, &keys.iter().map(|key| encoded(&["DEL", key])).collect::<String>(), keys.len()).await?;
    }
    anyhow::ensure!(figures.0 == (BARE_STREAMS * BARE_ENTRIES) as u64, "{} XADDs were counted", figures.0);
    Ok(figures.1 as f64 / figures.0 as f64)
}

/// Names and values of an entry of a session's log that has text.
fn entry_of_text(ground: &Ground) -> anyhow::Result<Vec<String>> {
    let keys = ground.redis.cli(&["KEYS", "log:*"]);
    let key = keys.lines().next().context("no log in Redis")?;
    // The first is the turn; some with text follow.
    let entries = ground.redis.cli(&["XRANGE", key, "-", "+", "COUNT", "3"]);
    let is_id = |line: &str| line.parse::<EntryId>().is_ok();
    let entry: Vec<String> = entries.lines().rev().take_while(|line| !is_id(line)).map(str::to_owned).collect();
    anyhow::ensure!(!entry.is_empty() && entry.len().is_multiple_of(2), "not an entry: {entries:?}");
    Ok(entry.into_iter().rev().collect())
}

/// A command as it is on the wire.
fn encoded(strings: &[&str]) -> String {
    let texts: String = strings.iter().map(|text| format!("${}\r\n{text}\r\n", text.len())).collect();
    format!("*{}\r\n{texts}", strings.len())
}

/// Sends commands and reads their replies, each of which is one value.
async fn ask(stream: &mut TcpStream, commands: &str, replies: usize) -> anyhow::Result<()> {
    stream.write_all(commands.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    for _ in 0..replies {
        let line = in_time("a reply of Redis", lines.next_line()).await??.context("Redis hung up")?;
        anyhow::ensure!(!line.starts_with('-'), "Redis answered {line}");
        if line.starts_with('$') {
            in_time("a reply of Redis", lines.next_line()).await??;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bare_xadd_is_measured_with_the_fields_of_an_entry() {
        let setup = Setup { server_core: None, generator_core: None, quick: true };
        let ground = Ground::start(&setup, &stamped(TOKENS)).unwrap();
        for (id, kind) in [("7-0", "turn"), ("7-1", "delta"), ("7-2", "delta")] {
            let reply = ground.redis.cli(&["XADD", "log:{a/s}", id, "k", kind, "x", "some text"]);
            assert_eq!(reply, id);
        }
        assert_eq!(entry_of_text(&ground).unwrap(), ["k", "delta", "x", "some text"]);
        let us = bare_xadd_us(&ground).await.unwrap();
        assert!(us > 0.0 && us < 1_000.0, "{us}");
        assert_eq!(ground.redis.cli(&["DBSIZE"]), "1", "what it wrote is gone");
    }

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
