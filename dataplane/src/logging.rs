//! Log lines, and from which severity on there are any: that can be changed while the process runs.

use std::{io::IsTerminal as _, sync::OnceLock};

use anyhow::Context;
use chatgateway_config::{LogFormat, LogLevel, Settings};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets logging up, once in a process.
///
/// # Errors
/// Where it is set up already.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(filter(settings.log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Colours are for people at a terminal; in files and collectors of logs they are rubbish.
    let lines = if std::io::stderr().is_terminal() { lines } else { lines.with_ansi(false) };
    let set = match settings.log.format {
        LogFormat::Json => Registry::default().with(filter).with(lines.json()).try_init(),
        LogFormat::Text => Registry::default().with(filter).with(lines).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))?;
    // Set before only where logging was set up before, and that was refused.
    let _ = LEVEL.set(handle);
    Ok(())
}

/// Changes the severity. Nothing happens where logging was not set up here, as in tests.
pub(crate) fn set_level(level: LogLevel) {
    let (Some(handle), Ok(filter)) = (LEVEL.get(), filter(level)) else { return };
    if let Err(error) = handle.reload(filter) {
        tracing::warn!("the log level stays as it was: {error}");
    }
}

fn filter(level: LogLevel) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(level.as_str()).context("log.level")
}
