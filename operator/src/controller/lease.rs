//! Which of several operators acts: the one that holds a Lease. Who loses it ends at once; who is told to end gives it back.
//!
//! A holder is judged by how long the Lease has not changed on this machine's clock, never by the times in it: clocks of two
//! machines may differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::{CONFLICT, Error, call};

/// The Lease's name.
const NAME: &str = "chatgateway-operator";

/// How long a Lease lasts that is not renewed. With a look a second, the next one acts within 15 s of the holder's end.
const DURATION: Duration = Duration::from_secs(13);

/// How long its holder tries to renew it until it gives up: before another one may take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is renewed.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often those who wait for it look at it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest pause between two looks, where the API server does not answer at the Lease's end.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Who this process is.
pub(super) fn identity() -> String {
    use std::sync::LazyLock;
    static IDENTITY: LazyLock<String> = LazyLock::new(|| {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        format!("{}-{:08x}", host.unwrap_or_else(|| "operator".to_owned()), rand::random::<u32>())
    });
    IDENTITY.clone()
}

/// A Lease that this process holds.
pub(super) struct Lease {
    api: Api<Object>,
    held: Object,
    renewed: Instant,
}

/// Waits until the Lease is this process'.
pub(super) async fn acquire(client: &Client, namespace: &str) -> Lease {
    let api = Api::<Object>::namespaced(client.clone(), namespace);
    let mut seen: Option<(Option<String>, Instant)> = None;
    let mut waits_for = None;
    loop {
        let began = Instant::now();
        match look(&api, &mut seen, &mut waits_for).await {
            Ok(Some(held)) => return Lease { api, held, renewed: began },
            Ok(None) => {}
            Err(error) => tracing::warn!("the lease {namespace}/{NAME} cannot be had: {error}"),
        }
        tokio::time::sleep(pause(seen.as_ref().map(|(_, since)| since.elapsed()))).await;
    }
}

/// Until when not to look at a Lease that has not changed for so long: its end, if that is near.
fn pause(unchanged: Option<Duration>) -> Duration {
    unchanged.map_or(LOOK_INTERVAL, |unchanged| LOOK_INTERVAL.min(DURATION.saturating_sub(unchanged)).max(PAUSE_MIN))
}

/// Takes the Lease if it is free, or has not changed for its duration.
async fn look(
    api: &Api<Object>,
    seen: &mut Option<(Option<String>, Instant)>,
    waits_for: &mut Option<String>,
) -> Result<Option<Object>, Error> {
    let Some(mut lease) = call("get the Lease", api.get_opt(NAME)).await? else {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let lease = Object { metadata, spec: Some(spec(0)) };
        return taken(call("create the Lease", api.create(&PostParams::default(), &lease)).await);
    };
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty());
    let version = lease.metadata.resource_version.clone();
    if seen.as_ref().is_none_or(|(at, _)| *at != version) {
        *seen = Some((version, Instant::now()));
    }
    let unchanged = seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
    if holder.is_some() && unchanged < DURATION {
        if *waits_for != holder {
            tracing::info!(holder = holder.as_deref(), "another operator acts; this one waits");
            *waits_for = holder;
        }
        return Ok(None);
    }
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    lease.spec = Some(spec(transitions + 1));
    taken(call("take the Lease", api.replace(NAME, &PostParams::default(), &lease)).await)
}

/// Another one that was faster is no error.
fn taken(answer: Result<Object, Error>) -> Result<Option<Object>, Error> {
    match answer {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.code() == Some(CONFLICT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn spec(transitions: i32) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    LeaseSpec {
        holder_identity: Some(identity()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

impl Lease {
    /// Renews the Lease for as long as it can. Returns why it cannot any more.
    pub(super) async fn keep(mut self) -> anyhow::Error {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let began = Instant::now();
            let left = RENEW_DEADLINE.saturating_sub(self.renewed.elapsed());
            let mut next = self.held.clone();
            if let Some(spec) = &mut next.spec {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            let params = PostParams::default();
            let renewing = call("renew the Lease", self.api.replace(NAME, &params, &next));
            match tokio::time::timeout(left, renewing).await {
                Ok(Ok(held)) => (self.held, self.renewed) = (held, began),
                Ok(Err(error)) if error.code() == Some(CONFLICT) => {
                    // Either this process' own renewal, whose answer was lost, or another holder.
                    match call("get the Lease", self.api.get(NAME)).await {
                        Ok(lease) if holder(&lease) == Some(identity()) => self.held = lease,
                        Ok(_) => return anyhow::anyhow!("another operator holds it"),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => tracing::warn!("{error}"),
                Err(_) => {}
            }
            if self.renewed.elapsed() >= RENEW_DEADLINE {
                return anyhow::anyhow!("it could not be renewed for {} s", RENEW_DEADLINE.as_secs());
            }
        }
    }
}

/// Gives the Lease back, so that the next one need not wait for its end.
pub(super) async fn release(client: &Client, namespace: &str) {
    let api = Api::<Object>::namespaced(client.clone(), namespace);
    let Ok(mut lease) = call("get the Lease", api.get(NAME)).await else { return };
    if holder(&lease) != Some(identity()) {
        return;
    }
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    if let Err(error) = call("release the Lease", api.replace(NAME, &PostParams::default(), &lease)).await {
        tracing::warn!("{error}; the next operator waits for the lease's end");
    }
}

fn holder(lease: &Object) -> Option<String> {
    lease.spec.as_ref()?.holder_identity.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_looks_every_second_and_just_when_the_lease_ends() {
        assert_eq!(pause(None), LOOK_INTERVAL);
        assert_eq!(pause(Some(Duration::ZERO)), LOOK_INTERVAL);
        assert_eq!(pause(Some(DURATION - Duration::from_millis(300))), Duration::from_millis(300));
        assert_eq!(pause(Some(DURATION * 2)), PAUSE_MIN);
    }
}
