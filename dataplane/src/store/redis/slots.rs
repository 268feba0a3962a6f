//! A cluster's slots: which one a tag has, and who serves it.

use chatgateway_config::Endpoint;
use redis::Value;

/// How many there are.
pub(super) const SLOTS: usize = 16_384;

/// The slot of a hash tag: CRC-16 (XMODEM) of it.
pub(super) fn slot_of(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)]);
    crc % SLOTS as u16
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = ((at as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

/// Slots from the first to the last, and their primary.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) primary: Endpoint,
}

/// Reads the reply to `CLUSTER SLOTS` that `asked` gave. A node that does not know its own name means itself.
pub(super) fn ranges(reply: &Value, asked: &Endpoint) -> Option<Vec<Range>> {
    let Value::Array(rows) = reply else { return None };
    rows.iter().map(|row| range(row, asked)).collect()
}

fn range(row: &Value, asked: &Endpoint) -> Option<Range> {
    let Value::Array(row) = row else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = row.as_slice() else { return None };
    let host = match primary.first()? {
        Value::BulkString(host) if !host.is_empty() && host != b"?" => String::from_utf8(host.clone()).ok()?,
        _ => asked.host.clone(),
    };
    let Value::Int(port) = primary.get(1)? else { return None };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    let whole = first <= last && usize::from(last) < SLOTS;
    whole.then_some(Range { first, last, primary: Endpoint { host, port: u16::try_from(*port).ok()? } })
}

/// The slot and the node of a redirection, `MOVED 3999 127.0.0.1:6381`, as `from` said it.
pub(super) fn redirection(said: &str, from: &Endpoint) -> Option<(u16, Endpoint)> {
    let mut words = said.split(' ').skip(1);
    let slot = words.next()?.parse().ok().filter(|slot| usize::from(*slot) < SLOTS)?;
    let (host, port) = words.next()?.rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" { from.host.as_str() } else { host };
    Some((slot, Endpoint { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the cluster specification, and `CLUSTER KEYSLOT`.
        for (tag, slot) in [("123456789", 0x31C3), ("", 0), ("foo", 12_182), ("user1000", 3_443)] {
            assert_eq!(slot_of(tag), slot, "{tag}");
        }
    }

    #[test]
    fn redirections_are_read() {
        let from = Endpoint { host: "10.0.0.1".into(), port: 1 };
        let to = |host: &str| Some((3_999, Endpoint { host: host.into(), port: 6_381 }));
        assert_eq!(redirection("MOVED 3999 127.0.0.1:6381", &from), to("127.0.0.1"));
        assert_eq!(redirection("ASK 3999 :6381", &from), to("10.0.0.1"));
        assert_eq!(redirection("ASK 3999 ::1:6381", &from), to("::1"));
        for wrong in ["MOVED", "MOVED x 1:1", "MOVED 16384 h:1", "MOVED 1 h", "MOVED 1 h:70000"] {
            assert_eq!(redirection(wrong, &from), None, "{wrong}");
        }
    }

    #[test]
    fn slot_tables_are_read() {
        let asked = Endpoint { host: "h".into(), port: 1 };
        let text = |text: &str| Value::BulkString(text.into());
        let row = |first, last, host| {
            let replica = Value::Array(vec![text("r"), Value::Int(8)]);
            Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(vec![host, Value::Int(7)]), replica])
        };
        let table = Value::Array(vec![row(0, 99, text("a")), row(100, 16_383, Value::Nil)]);
        let node = |host: &str| Endpoint { host: host.into(), port: 7 };
        let expected = vec![
            Range { first: 0, last: 99, primary: node("a") },
            Range { first: 100, last: 16_383, primary: node("h") },
        ];
        assert_eq!(ranges(&table, &asked), Some(expected));
        assert_eq!(ranges(&Value::Array(vec![row(5, 16_384, text("a"))]), &asked), None);
        assert_eq!(ranges(&Value::Nil, &asked), None);
    }
}
