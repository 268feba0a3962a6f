//! What followers of a session are told: a letter, and for an entry its id and then for each field `<name> <bytes>`, a line
//! feed, the value, a line feed. The scripts write the same.

use chatgateway_core::log::Entry;

use super::{entry, value::Broken};
use crate::store::News;

/// News as a message.
pub(in crate::store::redis) fn encode_news(news: &News) -> Vec<u8> {
    match news {
        News::Entry(entry) => encode_entry(entry),
        News::Reread => b"R".to_vec(),
        News::Deleted => b"D".to_vec(),
    }
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    /// Id, names, lengths.
    const OVERHEAD: usize = 96;
    let mut message = Vec::with_capacity(entry.payload_bytes() + entry.turn.as_str().len() + OVERHEAD);
    message.extend_from_slice(format!("E {}\n", entry.id).as_bytes());
    entry::fields(entry, |name, value| {
        message.extend_from_slice(format!("{name} {}\n", value.len()).as_bytes());
        message.extend_from_slice(value.as_bytes());
        message.push(b'\n');
    });
    message
}

/// News from a message. `None` for the empty message, which only counts followers, and for what this version does not know.
pub(in crate::store::redis) fn decode_news(message: &[u8]) -> Option<News> {
    match message {
        b"R" => Some(News::Reread),
        b"D" => Some(News::Deleted),
        _ => decode_entry(std::str::from_utf8(message).ok()?),
    }
}

fn decode_entry(message: &str) -> Option<News> {
    let (id, mut rest) = message.strip_prefix("E ")?.split_once('\n')?;
    let fields = std::iter::from_fn(|| (!rest.is_empty()).then(|| field(&mut rest)));
    Some(News::Entry(entry::entry(entry::id(id).ok()?, fields).ok()?))
}

fn field<'a>(rest: &mut &'a str) -> Result<(&'a str, &'a str), Broken> {
    let split = || {
        let (head, tail) = rest.split_once('\n')?;
        let (name, bytes) = head.split_once(' ')?;
        let (value, tail) = tail.split_at_checked(bytes.parse().ok()?)?;
        Some((name, value, tail.strip_prefix('\n')?))
    };
    let (name, value, tail) = split().ok_or_else(|| Broken::new("a field of a message that is none"))?;
    *rest = tail;
    Ok((name, value))
}
