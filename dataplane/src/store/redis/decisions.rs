//! Decisions about rate limits as one command, and what the script says to them.
//!
//! All keys of a gateway's limits share a hash tag: `rl:{NAME}:` and the name of a bucket or a mark.

use std::{collections::HashMap, sync::Arc};

use chatgateway_core::{
    limiter::{
        Rules,
        table::{Done, Op, Outcome},
    },
    limits::{LIMIT_BUCKET_MARGIN, LIMIT_HELD_TTL, LIMIT_KEPT_TTL},
};
use redis::{Cmd, Value};

use super::{super::StoreError, connect::server_words, scripts};

/// What all names of a gateway's limits begin with.
pub(super) fn prefix(gateway: &str) -> String {
    format!("rl:{{{gateway}}}:")
}

/// The keys that a call names, each once.
struct Keys<'a> {
    prefix: &'a str,
    known: HashMap<&'a Arc<str>, usize>,
    list: Vec<String>,
}

impl<'a> Keys<'a> {
    /// A key's place among KEYS.
    fn place(&mut self, name: &'a Arc<str>) -> usize {
        *self.known.entry(name).or_insert_with(|| {
            self.list.push(format!("{}{name}", self.prefix));
            self.list.len()
        })
    }
}

/// Steps as the command that carries them out, in their order.
pub(super) fn command(gateway: &str, rules: &Rules, steps: &[Op]) -> Cmd {
    let prefix = prefix(gateway);
    let mut keys = Keys { prefix: &prefix, known: HashMap::new(), list: vec![prefix.clone()] };
    // The arguments come after the keys, which only they name.
    let mut args: Vec<u64> = Vec::with_capacity(8 * steps.len());
    let mut ends = Vec::with_capacity(steps.len());
    for step in steps {
        let letter = match step {
            Op::Take { mark, tokens, buckets } => {
                let mark = mark.as_ref().map_or(0, |mark| keys.place(mark));
                args.extend([mark as u64, *tokens, buckets.len() as u64]);
                args.extend(buckets.iter().map(|bucket| keys.place(bucket) as u64));
                "t"
            }
            Op::Extend { mark, tokens } => {
                args.extend([keys.place(mark) as u64, *tokens]);
                "x"
            }
            Op::Settle { mark, used } => {
                args.extend([keys.place(mark) as u64, *used]);
                "s"
            }
            Op::Undo { mark, buckets } => {
                args.extend([keys.place(mark) as u64, buckets.len() as u64]);
                args.extend(buckets.iter().map(|bucket| keys.place(bucket) as u64));
                "u"
            }
            Op::Owe { bucket, units } => {
                args.extend([keys.place(bucket) as u64, *units]);
                "o"
            }
        };
        ends.push((letter, args.len()));
    }
    let bytes = keys.list.iter().map(String::len).sum::<usize>() + 8 * args.len() + 256;
    let mut command = Cmd::with_capacity(keys.list.len() + args.len() + steps.len() + 3 * rules.0.len() + 7, bytes);
    command.arg("EVALSHA").arg(&scripts::TAKE.sha).arg(keys.list.len());
    for key in &keys.list {
        command.arg(key);
    }
    for time in [LIMIT_KEPT_TTL, LIMIT_HELD_TTL, LIMIT_BUCKET_MARGIN] {
        command.arg(time.as_millis() as u64);
    }
    command.arg(rules.0.len());
    for rule in &rules.0 {
        command.arg(rule.code()).arg(rule.limit.per_minute).arg(rule.limit.burst);
    }
    let mut from = 0;
    for (letter, end) in ends {
        command.arg(letter);
        for number in &args[from..end] {
            command.arg(*number);
        }
        from = end;
    }
    command
}

/// The clock as the script read it, and what came of each step.
pub(super) fn decode(steps: &[Op], reply: Value) -> Result<(u64, Vec<Outcome>), StoreError> {
    let values = match reply {
        Value::Array(values) => values,
        Value::ServerError(error) => return Err(StoreError::Unavailable(server_words(&error))),
        _ => return Err(strange()),
    };
    let mut numbers = values.iter().map(|value| match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| strange()),
        _ => Err(strange()),
    });
    let mut next = || numbers.next().ok_or_else(strange)?;
    let now = next()?;
    let mut outcomes = Vec::with_capacity(steps.len());
    for step in steps {
        let done = match next()? {
            0 => Done::Refused,
            1 => Done::Known,
            2 => Done::Done,
            3 => Done::Nothing,
            _ => return Err(strange()),
        };
        let count = if let Op::Take { buckets, .. } = step { buckets.len() } else { 1 };
        let values = (0..count).map(|_| next()).collect::<Result<_, _>>()?;
        outcomes.push(Outcome { done, values });
    }
    match next() {
        Err(_) => Ok((now, outcomes)),
        Ok(_) => Err(strange()),
    }
}

fn strange() -> StoreError {
    StoreError::Unavailable("the answer about rate limits is not understood".into())
}
