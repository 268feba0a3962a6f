//! The scripts: what the pure functions of `chatgateway_core::log::store` and `chatgateway_core::limiter::table` do, inside the server.

use std::{fmt::Write as _, sync::LazyLock};

use redis::Cmd;
use sha1::{Digest as _, Sha1};

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    /// What EVALSHA calls it by.
    pub(super) sha: String,
    pub(super) source: &'static str,
}

macro_rules! scripts {
    ($($name:ident => $file:literal),+ $(,)?) => {
        $(
            /// See the file of that name.
            pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
                Script::new(concat!(include_str!("scripts/prelude.lua"), include_str!(concat!("scripts/", $file, ".lua"))))
            });
        )+

        /// Those of sessions.
        fn of_sessions() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),+].into_iter()
        }
    };
}

scripts! {
    BEGIN => "begin",
    CHECK => "check",
    FINISH => "finish",
    CLAIM => "claim",
    RESET => "reset",
    END_LEASE => "end_lease",
    CANCEL => "cancel",
    READ => "read",
    SNAPSHOT => "snapshot",
    DELETE => "delete",
}

/// The decisions about rate limits. It is not about a session: the prelude is not its.
pub(super) static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/take.lua")));

/// All of them.
pub(super) fn all() -> impl Iterator<Item = &'static Script> {
    of_sessions().chain([&*TAKE])
}

impl Script {
    fn new(source: &'static str) -> Self {
        let sha = Sha1::digest(source.as_bytes()).iter().fold(String::with_capacity(40), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { sha, source }
    }
}

/// The commands that make a server know the scripts. Each connection sends them first: a server forgets at its restart,
/// and another one never knew.
pub(super) fn loads() -> Vec<Cmd> {
    all()
        .map(|script| {
            let mut command = redis::cmd("SCRIPT");
            command.arg("LOAD").arg(script.source);
            command
        })
        .collect()
}
