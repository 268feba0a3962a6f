//! Taking a server's answer apart.

use chatgateway_core::log::SessionKey;
use redis::Value;

/// What does not look like an answer of these scripts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

impl Broken {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The items of an array, one after the other.
pub(super) struct Items<'a>(std::slice::Iter<'a, Value>);

impl<'a> Items<'a> {
    pub(super) fn of(value: &'a Value) -> Result<Self, Broken> {
        match value {
            Value::Array(items) => Ok(Self(items.iter())),
            other => Err(Broken::new(format!("{} instead of an array", kind(other)))),
        }
    }

    pub(super) fn next(&mut self) -> Result<&'a Value, Broken> {
        self.0.next().ok_or_else(|| Broken::new("the array is too short"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Broken> {
        text(self.next()?)
    }

    pub(super) fn pair(&mut self) -> Result<(&'a str, &'a str), Broken> {
        Ok((self.text()?, self.text()?))
    }

    /// A number, as an integer or as digits.
    pub(super) fn number<T: TryFrom<i64> + std::str::FromStr>(&mut self) -> Result<T, Broken> {
        let value = self.next()?;
        let number = match value {
            Value::Int(number) => T::try_from(*number).ok(),
            other => text(other)?.parse().ok(),
        };
        number.ok_or_else(|| Broken::new(format!("{} instead of a number", kind(value))))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Broken> {
        Ok(self.number::<i64>()? != 0)
    }
}

pub(super) fn text(value: &Value) -> Result<&str, Broken> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).map_err(|_| Broken::new("text that is not UTF-8")),
        Value::SimpleString(text) => Ok(text),
        other => Err(Broken::new(format!("{} instead of text", kind(other)))),
    }
}

/// What it is, not what it says: users' texts have no place in errors.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "text",
        Value::Array(_) => "an array",
        Value::ServerError(_) => "an error",
        _ => "something else",
    }
}

impl Broken {
    /// What belongs to another session than the one that was asked for. It must never get further, and somebody must hear.
    pub(super) fn foreign(asked: &SessionKey, got: &str) -> Self {
        tracing::error!(
            asked = asked.as_str(),
            got,
            "the session store answered with another session's data; it was not used. Check what stands between the gateway and Redis"
        );
        Self::new("it answered with another session's data")
    }
}
