//! Following the configuration file. It is compared by content: a ConfigMap's file is swapped by its directory's link.

use std::{path::PathBuf, sync::Arc, time::Duration};

use chatgateway_config::Settings;

use crate::{gateway::Gateway, logging};

/// How often the file is read.
const INTERVAL: Duration = Duration::from_millis(500);

/// How the file compares with what is applied.
#[derive(Clone, Debug, Default)]
pub struct ReloadState {
    /// Why the newest file is not applied.
    pub error: Option<String>,
    /// Settings in the newest file that wait for a restart.
    pub needs_restart: Vec<&'static str>,
}

/// Applies every change of the file for as long as the gateway lives. `text` is what was read at the start.
pub async fn follow(gateway: Arc<Gateway>, file: PathBuf, mut text: String) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let state = match tokio::fs::read_to_string(&file).await {
            Ok(newest) if newest == text => continue,
            Ok(newest) => {
                text = newest;
                apply(&gateway, &text)
            }
            Err(error) => ReloadState { error: Some(format!("{}: {error}", file.display())), ..ReloadState::default() },
        };
        let changed = {
            let mut reload = gateway.reload.lock();
            let changed = reload.error != state.error;
            *reload = state.clone();
            changed
        };
        match &state.error {
            Some(error) if changed => {
                tracing::error!("the configuration file is not applied; the last good one stays: {error}")
            }
            Some(_) => {}
            None => {
                tracing::info!(hash = %gateway.settings().hash, needs_restart = ?state.needs_restart, "configuration applied")
            }
        }
    }
}

fn apply(gateway: &Gateway, text: &str) -> ReloadState {
    let settings = match Settings::parse(text) {
        Ok(settings) => settings,
        Err(errors) => return ReloadState { error: Some(errors.to_string()), ..ReloadState::default() },
    };
    let needs_restart = chatgateway_config::needs_restart(&gateway.settings(), &settings);
    if !needs_restart.is_empty() {
        tracing::warn!(?needs_restart, "these settings wait for a restart");
    }
    let level = settings.log.level;
    match gateway.apply(settings) {
        Ok(()) => {
            logging::set_level(level);
            ReloadState { error: None, needs_restart }
        }
        Err(error) => ReloadState { error: Some(format!("{error:#}")), needs_restart },
    }
}
