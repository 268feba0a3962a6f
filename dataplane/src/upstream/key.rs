//! An API key from a file that may change while it is used: a mounted secret is rotated without a restart.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use chatgateway_core::limits::{KEY_FILE_LOOK_INTERVAL, KEY_FILE_MAX_BYTES};
use http::HeaderValue;
use parking_lot::Mutex;

use crate::clock;

/// The key of one upstream.
pub(super) struct ApiKey {
    path: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    header: HeaderValue,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// By what a change of the file is seen.
#[derive(Clone, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    inode: u64,
}

impl ApiKey {
    /// Reads the key.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds no key.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let held = Held { header: read(path)?, stamp: stamp(path), looked: clock::now() };
        Ok(Self { path: path.to_owned(), held: Mutex::new(held) })
    }

    /// The `authorization` header, with the key of today. While the file cannot be read, the last one that could.
    pub(super) fn header(&self) -> HeaderValue {
        self.header_at(clock::now(), KEY_FILE_LOOK_INTERVAL)
    }

    fn header_at(&self, now: Instant, interval: Duration) -> HeaderValue {
        let mut held = self.held.lock();
        if now.saturating_duration_since(held.looked) >= interval {
            held.looked = now;
            let stamp = stamp(&self.path);
            if stamp != held.stamp {
                match read(&self.path) {
                    Ok(header) => {
                        held.header = header;
                        held.stamp = stamp;
                    }
                    Err(error) => tracing::warn!("{error:#}; the key that was read before stays in use"),
                }
            }
        }
        held.header.clone()
    }
}

fn read(path: &Path) -> anyhow::Result<HeaderValue> {
    let mut text = String::new();
    let file = fs::File::open(path).with_context(|| format!("cannot open the API key file {}", path.display()))?;
    file.take(KEY_FILE_MAX_BYTES)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the API key file {}", path.display()))?;
    let key = text.trim();
    anyhow::ensure!(!key.is_empty(), "the API key file {} is empty", path.display());
    let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
        .with_context(|| format!("the API key file {} holds characters that no key has", path.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: meta.modified().ok(),
        bytes: meta.len(),
        #[cfg(unix)]
        inode: std::os::unix::fs::MetadataExt::ino(&meta),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let replace = |text: &str| {
            let next = dir.path().join("next");
            fs::write(&next, text).unwrap();
            fs::rename(&next, &path).unwrap();
        };
        assert!(ApiKey::open(&path).is_err());
        replace("");
        assert!(ApiKey::open(&path).is_err());
        replace("  first\n");
        let key = ApiKey::open(&path).unwrap();
        let now = clock::now();
        let at = |now| key.header_at(now, Duration::from_secs(1)).to_str().unwrap().to_owned();
        assert_eq!(at(now), "Bearer first");
        replace("second");
        assert_eq!(at(now), "Bearer first", "not looked at more than once a second");
        assert_eq!(at(now + Duration::from_secs(2)), "Bearer second");
        replace("bro\nken");
        assert_eq!(at(now + Duration::from_secs(4)), "Bearer second");
        replace("third and longer");
        assert_eq!(at(now + Duration::from_secs(6)), "Bearer third and longer");
    }
}
