//! What happens to the gateway, one after the other.

use std::{future::Future, pin::Pin};

use crate::{cluster::Cluster, crowd, disturb, edits, scaling};

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;

/// One thing that happens.
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Does it, and checks what the clients were told.
    pub run: fn(&Cluster) -> Running<'_>,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Everything that can happen.
pub const ROWS: &[Row] = &[
    Row {
        name: "transports",
        what: "clients of every transport talk through the Service",
        run: |cluster| Box::pin(crowd::every_transport(cluster)),
    },
    Row {
        name: "rollout",
        what: "another image: every pod is replaced, one after the other",
        run: |cluster| Box::pin(disturb::rollout(cluster)),
    },
    Row {
        name: "kill",
        what: "a pod is deleted by force, the process of another one killed",
        run: |cluster| Box::pin(disturb::kill(cluster)),
    },
    Row {
        name: "scale",
        what: "kubectl scale: 3 pods, 1 pod, 3 pods",
        run: |cluster| Box::pin(disturb::scale(cluster)),
    },
    Row {
        name: "redis",
        what: "the pod of Redis is deleted, and comes back with its data",
        run: |cluster| Box::pin(disturb::redis(cluster)),
    },
    Row {
        name: "hot-edit",
        what: "a rate limit is edited: every pod takes it over without a restart",
        run: |cluster| Box::pin(edits::hot(cluster)),
    },
    Row {
        name: "bad-edit",
        what: "an unknown Secret, then an image that is not there: the old pods go on; then both are mended",
        run: |cluster| Box::pin(edits::bad(cluster)),
    },
    Row {
        name: "drain",
        what: "the node is drained as far as the disruption budget lets it, until every pod is another one",
        run: |cluster| Box::pin(disturb::drain(cluster)),
    },
    Row {
        name: "autoscaling",
        what: "an autoscaler takes over: from 1 pod to 3 under load, and back when most clients have left",
        run: |cluster| Box::pin(scaling::autoscaling(cluster)),
    },
    Row {
        name: "secret",
        what: "the model server's key is another one: pods take it over without a restart",
        run: |cluster| Box::pin(edits::secret(cluster)),
    },
    Row {
        name: "operator",
        what: "the operator is deleted while pods are replaced, and comes back",
        run: |cluster| Box::pin(disturb::operator(cluster)),
    },
];
