//! Send times as token text, so that a reader can tell how long each token was under way.
//!
//! A stamped token is `@<20 digits>;`, the sender's [`monotonic_ns`]. The first token of an answer has the time at which
//! the call arrived before it: `^<20 digits>;@<20 digits>;`.

use crate::clock::monotonic_ns;

/// Digits of a stamp: every `u64` fits.
const DIGITS: usize = 20;

/// What a stamp tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// When the call arrived at the model server, ns.
    Arrived(u64),
    /// When the token was sent, ns.
    Sent(u64),
}

/// Text of token `index` of a call that arrived at `arrived_ns`, sent now.
pub fn stamped(index: usize, arrived_ns: u64) -> String {
    let sent_ns = monotonic_ns();
    if index == 0 { format!("^{arrived_ns:020};@{sent_ns:020};") } else { format!("@{sent_ns:020};") }
}

/// Finds stamps in bytes that arrive in pieces, whatever they are wrapped in.
#[derive(Default)]
pub struct StampReader {
    kind: Option<u8>,
    digits: usize,
    value: u64,
}

impl StampReader {
    /// Reads on, and calls `found` for each stamp that is complete.
    pub fn read(&mut self, bytes: &[u8], mut found: impl FnMut(Stamp)) {
        for &byte in bytes {
            match (self.kind, byte) {
                (_, b'@' | b'^') => *self = Self { kind: Some(byte), digits: 0, value: 0 },
                (Some(_), b'0'..=b'9') if self.digits < DIGITS => {
                    self.digits += 1;
                    self.value = self.value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                }
                (Some(kind), b';') if self.digits == DIGITS => {
                    found(if kind == b'@' { Stamp::Sent(self.value) } else { Stamp::Arrived(self.value) });
                    self.kind = None;
                }
                (Some(_), _) => self.kind = None,
                (None, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_in_pieces_and_among_other_text() {
        let text = format!("{{\"a\":\"{}{}\"}} me@home.org ^12;", stamped(0, 42), stamped(1, 42));
        let mut stamps = Vec::new();
        let mut reader = StampReader::default();
        for piece in text.as_bytes().chunks(7) {
            reader.read(piece, |stamp| stamps.push(stamp));
        }
        assert_eq!(stamps.len(), 3);
        assert_eq!(stamps[0], Stamp::Arrived(42));
        assert!(
            matches!((stamps[1], stamps[2]), (Stamp::Sent(first), Stamp::Sent(second)) if 42 < first && first <= second)
        );
    }
}
