//! APIs that a cluster may have or not, and that come and go while the operator runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use kube::Client;

use super::{NOT_FOUND, call};

/// How often they are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The API of the Prometheus operator.
const MONITORING: &str = "monitoring.coreos.com/v1";

/// Which of them there are.
#[derive(Default)]
pub(super) struct Optional {
    pod_monitors: AtomicBool,
}

impl Optional {
    /// Looks now, and for as long as somebody wants to know.
    pub(super) async fn follow(client: Client) -> Arc<Self> {
        let optional = Arc::new(Self::default());
        optional.look(&client).await;
        let followed = Arc::downgrade(&optional);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                let Some(optional) = followed.upgrade() else { break };
                optional.look(&client).await;
            }
        });
        optional
    }

    /// Whether the cluster knows PodMonitors.
    pub(super) fn pod_monitors(&self) -> bool {
        self.pod_monitors.load(Relaxed)
    }

    async fn look(&self, client: &Client) {
        let known = match call("look for the API of PodMonitors", client.list_api_group_resources(MONITORING)).await {
            Ok(resources) => resources.resources.iter().any(|resource| resource.kind == "PodMonitor"),
            Err(error) if error.code() == Some(NOT_FOUND) => false,
            // Whether it is there is not known: what was stays.
            Err(error) => return tracing::warn!("{error}"),
        };
        if self.pod_monitors.swap(known, Relaxed) != known {
            tracing::info!(known, "PodMonitors");
        }
    }
}
