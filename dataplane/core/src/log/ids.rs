//! Names: of sessions, turns, pods and log entries.

use std::{fmt, str::FromStr, sync::Arc};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::limits::{SESSION_ID_MAX_BYTES, TURN_ID_MAX_BYTES};

/// Why a name was refused. Its `Display` is fit for a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The name has no byte, or more than it may have.
    #[error("{what} must have 1 to {max} bytes, this one has {len}")]
    Length {
        /// What kind of name it is.
        what: &'static str,
        /// The most bytes it may have.
        max: usize,
        /// The bytes it has.
        len: usize,
    },
    /// The name has a control character, or is `.` or `..`.
    #[error("{what} may not hold control characters, nor be \".\" or \"..\"")]
    Characters {
        /// What kind of name it is.
        what: &'static str,
    },
    /// An entry id that is not `<epoch>-<n>` nor `0`.
    #[error("an entry id is \"<epoch>-<n>\" or \"0\"")]
    Entry,
}

/// The id of a log entry, `<epoch>-<n>`. Compared by its two numbers, never as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Which ownership wrote it.
    pub epoch: u64,
    /// Its place within that ownership, from 0.
    pub n: u64,
}

impl EntryId {
    /// The position before the first entry of a new log, written `0`.
    pub const ZERO: Self = Self { epoch: 0, n: 0 };

    /// The entry `<epoch>-<n>`.
    #[must_use]
    pub const fn new(epoch: u64, n: u64) -> Self {
        Self { epoch, n }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ZERO { f.write_str("0") } else { write!(f, "{}-{}", self.epoch, self.n) }
    }
}

impl FromStr for EntryId {
    type Err = InvalidId;

    /// Strict: no sign, no blanks, no leading zeros, so that each id has one spelling.
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        if s == "0" {
            return Ok(Self::ZERO);
        }
        let number = |part: &str| {
            let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part.len() == 1 || !part.starts_with('0'));
            if plain { part.parse().map_err(|_| InvalidId::Entry) } else { Err(InvalidId::Entry) }
        };
        let (epoch, n) = s.split_once('-').ok_or(InvalidId::Entry)?;
        Ok(Self { epoch: number(epoch)?, n: number(n)? })
    }
}

fn checked(what: &'static str, name: &str, max: usize) -> Result<(), InvalidId> {
    if name.is_empty() || name.len() > max {
        return Err(InvalidId::Length { what, max, len: name.len() });
    }
    if name.chars().any(char::is_control) || name == "." || name == ".." {
        return Err(InvalidId::Characters { what });
    }
    Ok(())
}

/// A session's name as its clients know it: 1 to 256 bytes of UTF-8, compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Takes a client's name for a session.
    ///
    /// # Errors
    /// [`InvalidId`] for an empty or overlong name, control characters, `.` and `..`.
    pub fn parse(name: &str) -> Result<Self, InvalidId> {
        checked("a session id", name, SESSION_ID_MAX_BYTES)?;
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A turn's name, made by the client: 1 to 128 bytes of UTF-8 (a UUID in practice).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnId(Arc<str>);

impl TurnId {
    /// Takes a client's name for a turn.
    ///
    /// # Errors
    /// [`InvalidId`] as for a session's name.
    pub fn parse(name: &str) -> Result<Self, InvalidId> {
        checked("a turn id", name, TURN_ID_MAX_BYTES)?;
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What must not stand in a part of a key: braces would break the hash tag, slashes the parts, `%` the encoding itself.
const KEY_PART: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'/').add(b'%').add(b' ');

/// A session's key in the store: tenant, principal and session, each percent-encoded. Another principal's session of the
/// same name has another key, so it *is* an unknown session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(Arc<str>);

impl SessionKey {
    /// The key of `principal`'s session `id` within `tenant`.
    #[must_use]
    pub fn new(tenant: &str, principal: &str, id: &SessionId) -> Self {
        let part = |s| utf8_percent_encode(s, KEY_PART);
        Self(format!("{}/{}/{}", part(tenant), part(principal), part(id.as_str())).into())
    }

    /// The key whose text this is, as stored: three parts, none of them empty but the first two, nothing that would have been
    /// encoded. `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (_tenant, _principal, id) = (parts.next()?, parts.next()?, parts.next()?);
        // Each character of a name becomes three of the text at most, and `%` stands only where it encodes.
        let plain = !text.bytes().any(|b| b.is_ascii_control() || !b.is_ascii() || matches!(b, b'{' | b'}' | b' '));
        let whole = !id.is_empty() && id.len() <= 3 * SESSION_ID_MAX_BYTES && parts.next().is_none();
        (plain && whole).then(|| Self(text.into()))
    }

    /// The key's text, which stands inside the hash tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A pod process, by a random number made at its start (never by its pod's name: a restarted container is another process).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub u128);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_id_has_one_spelling() {
        for (text, id) in [
            ("0", EntryId::ZERO),
            ("7-0", EntryId::new(7, 0)),
            ("1790000000000000-12", EntryId::new(1_790_000_000_000_000, 12)),
        ] {
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(id.to_string(), text);
        }
        for wrong in
            ["", "-", "1", "1-", "-1", "+1-2", "01-2", "1-02", "1-2-3", " 1-2", "1-2 ", "99999999999999999999-0"]
        {
            assert_eq!(wrong.parse::<EntryId>(), Err(InvalidId::Entry), "{wrong:?}");
        }
    }

    #[test]
    fn ids_compare_by_their_numbers() {
        assert!(EntryId::new(9, 9) < EntryId::new(10, 0));
        assert!(EntryId::new(10, 9) < EntryId::new(10, 10));
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert!(SessionId::parse(&"x".repeat(256)).is_ok());
        assert!(SessionId::parse("Grüße / {sess}").is_ok());
        for wrong in ["", ".", "..", "a\nb", &"x".repeat(257)] {
            assert!(SessionId::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn keys_cannot_be_forged() {
        let key = |p: &str, s: &str| SessionKey::new("t", p, &SessionId::parse(s).unwrap());
        assert_ne!(key("a/b", "c"), key("a", "b/c"));
        assert_ne!(key("a%2Fb", "c"), key("a/b", "c"));
        assert!(!key("a}", "{b").as_str().contains(['{', '}']));
    }

    #[test]
    fn keys_come_back_from_their_text() {
        for (principal, id) in [("p", "s"), ("", "Grüße / {sess} 100 %"), ("a/b", &"ü".repeat(128))] {
            let key = SessionKey::new("t", principal, &SessionId::parse(id).unwrap());
            assert_eq!(SessionKey::from_text(key.as_str()), Some(key));
        }
        let long = format!("t/p/{}", "x".repeat(3 * 256 + 1));
        for wrong in ["", "t", "t/p", "t/p/", "t/p/s/x", "t/p/s x", "t/p/{s", "t/p/s}", "t/p/s\n", "t/p/ü", &long] {
            assert_eq!(SessionKey::from_text(wrong), None, "{wrong:?}");
        }
    }
}
