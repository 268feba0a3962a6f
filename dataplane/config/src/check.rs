//! Turning what is written into what is meant, collecting everything that is wrong on the way.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Violation;
use crate::parts::DurationText;
use crate::yaml::join;

/// Collects violations. Each function gives a usable value even for a wrong one, so that checking goes on.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    violations: Vec<Violation>,
}

impl Checker {
    pub(crate) fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    pub(crate) fn refuse(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.violations.push(Violation::new(path, message));
    }

    /// A duration within bounds, or the default.
    pub(crate) fn duration(
        &mut self,
        at: &str,
        key: &str,
        text: Option<&DurationText>,
        default: Duration,
        bounds: &RangeInclusive<Duration>,
    ) -> Duration {
        let Some(DurationText(text)) = text else { return default };
        let Some(duration) = parse_duration(text) else {
            let message = format!("`{text}` is no duration; write a number with its unit, such as 50ms, 5s, 15m or 1h");
            self.refuse(join(at, key), message);
            return default;
        };
        if !bounds.contains(&duration) {
            let (least, most) = (show(*bounds.start()), show(*bounds.end()));
            self.refuse(join(at, key), format!("{} is out of range; it must be {least} to {most}", show(duration)));
            return default;
        }
        duration
    }

    /// A number within bounds, or the default.
    pub(crate) fn number<T: TryFrom<i64> + Copy>(
        &mut self,
        at: &str,
        key: &str,
        number: Option<i32>,
        default: T,
        bounds: &RangeInclusive<i64>,
    ) -> T {
        let Some(number) = number.map(i64::from) else { return default };
        if !bounds.contains(&number) {
            let message = format!("{number} is out of range; it must be {} to {}", bounds.start(), bounds.end());
            self.refuse(join(at, key), message);
            return default;
        }
        T::try_from(number).unwrap_or(default)
    }

    /// The base URL of a server, without the slash at its end.
    pub(crate) fn url(&mut self, at: &str, key: &str, text: &str) -> String {
        let path = join(at, key);
        if text.is_empty() {
            self.refuse(path, "is missing; write the server's base URL, such as http://127.0.0.1:8000/v1");
            return String::new();
        }
        let uri = text.parse::<http::Uri>().ok();
        let good = uri.as_ref().is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !good {
            self.refuse(path, format!("`{text}` is no URL of a server; write http://HOST:PORT/PATH or https://…"));
        } else if text.contains(['?', '#']) {
            self.refuse(path, format!("`{text}` has a query or a fragment; a base URL has none"));
        } else if uri.and_then(|uri| uri.authority().map(|a| a.as_str().contains('@'))) == Some(true) {
            self.refuse(path, "a URL must not hold a password; use the API key");
        }
        text.trim_end_matches('/').to_owned()
    }

    /// The path of a file, where one is given.
    pub(crate) fn file(&mut self, at: &str, key: &str, text: Option<&str>) -> Option<PathBuf> {
        if text == Some("") {
            self.refuse(join(at, key), "is empty; write the path of a file or remove it");
        }
        text.map(PathBuf::from)
    }
}

/// A duration of one or several numbers with units, `ms`, `s`, `m` or `h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let known = text.split(|c: char| c.is_ascii_digit()).filter(|unit| !unit.is_empty());
    let plain = !text.is_empty() && known.into_iter().all(|unit| matches!(unit, "ms" | "s" | "m" | "h"));
    if plain { humantime::parse_duration(text).ok() } else { None }
}

/// A duration as it would be written.
pub(crate) fn show(duration: Duration) -> String {
    let mut rest_ms = duration.as_millis();
    let mut text = String::new();
    for (unit, unit_ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let count = rest_ms / unit_ms;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
        rest_ms %= unit_ms;
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(parse_duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        for wrong in ["", "5", "s", "5 s", "-5s", "1.5s", "5M", "5d", "5sec", "99999999999999999999s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_written() {
        assert_eq!(show(Duration::from_secs(5_400)), "1h30m");
        assert_eq!(show(Duration::from_millis(86_400_050)), "24h50ms");
        assert_eq!(show(Duration::ZERO), "0s");
    }

    #[test]
    fn base_urls() {
        let mut c = Checker::default();
        assert_eq!(c.url("", "url", "http://h:1/v1/"), "http://h:1/v1");
        assert!(c.violations.is_empty());
        for wrong in ["", "h:1", "ftp://h", "http://", "http://h/?a=b", "http://u:p@h/"] {
            c.violations.clear();
            c.url("", "url", wrong);
            assert_eq!(c.violations.len(), 1, "{wrong}");
        }
    }
}
