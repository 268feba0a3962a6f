//! The endpoints of an upstream: those that its URLs name, and those that the addresses of their hosts are.

use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use anyhow::Context as _;
use chatgateway_config::{Discovery, EndpointSettings};
use chatgateway_core::{
    discovery::endpoint_addresses,
    limits::{DNS_LOOKUP_INTERVAL, DNS_LOOKUP_TIMEOUT},
};
use futures_util::future::{BoxFuture, join_all};
use http::Uri;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

use super::{
    connect::{Dialing, HttpClient},
    pool::Pool,
};

/// Finds the addresses of a host.
pub(super) trait Resolve: Send + Sync {
    fn lookup(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of the operating system.
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn lookup(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, port)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// One of the equal servers of an upstream, with its connections.
pub(super) struct Endpoint {
    /// Its URL, and its address where the URL's host has several.
    pub(super) name: Arc<str>,
    /// The base URL, without a slash at the end.
    pub(super) base: Arc<str>,
    pub(super) client: HttpClient,
}

/// A base URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Base {
    url: Arc<str>,
    /// The host and port to look up, where its addresses are endpoints.
    lookup: Option<(String, u16)>,
}

impl Base {
    fn parse(url: &str, discovery: Option<Discovery>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        let host = uri.host().unwrap_or_default().to_owned();
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => anyhow::bail!("{url} is no http or https URL"),
        };
        anyhow::ensure!(!host.is_empty(), "{url} names no host");
        let default = if tls { Discovery::Host } else { Discovery::Addresses };
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        // `localhost` is one host with two addresses, of which its server may have but one.
        let one = literal || host.eq_ignore_ascii_case("localhost");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let lookup = (discovery.unwrap_or(default) == Discovery::Addresses && !one).then_some((host, port));
        Ok(Self { url: url.trim_end_matches('/').into(), lookup })
    }
}

/// What the endpoints are made of.
pub(super) struct Listing {
    bases: Vec<Base>,
    dialing: Dialing,
}

impl Listing {
    /// # Errors
    /// Where a URL is none.
    pub(super) fn new(url: &str, settings: &EndpointSettings, dialing: Dialing) -> anyhow::Result<Self> {
        let urls = std::iter::once(url).chain(settings.further.iter().map(String::as_str));
        let bases = urls.map(|url| Base::parse(url, settings.discovery)).collect::<anyhow::Result<_>>()?;
        Ok(Self { bases, dialing })
    }
}

/// Keeps a pool's endpoints what the URLs and the name service say they are.
pub(super) struct Directory {
    pool: Arc<Pool>,
    resolver: Arc<dyn Resolve>,
    listing: Mutex<Listing>,
    /// The last good answer for each host.
    addresses: Mutex<HashMap<(String, u16), Vec<IpAddr>>>,
    watched: AtomicBool,
    changed: Arc<Notify>,
}

impl Directory {
    pub(super) fn new(pool: Arc<Pool>, resolver: Arc<dyn Resolve>, listing: Listing) -> Arc<Self> {
        let directory = Self {
            pool,
            resolver,
            listing: Mutex::new(listing),
            addresses: Mutex::default(),
            watched: AtomicBool::new(false),
            changed: Arc::default(),
        };
        directory.apply();
        Arc::new(directory)
    }

    /// Other URLs from now on.
    pub(super) fn set_listing(self: &Arc<Self>, listing: Listing) {
        *self.listing.lock() = listing;
        self.apply();
        self.changed.notify_one();
    }

    pub(super) fn dialing(&self) -> Dialing {
        self.listing.lock().dialing.clone()
    }

    /// Looks hosts up from now on, where there are any to look up. Nothing happens outside of a runtime.
    pub(super) fn watch(self: &Arc<Self>) {
        // Each call for a place asks this.
        if !self.watched.load(SeqCst)
            && self.has_lookups()
            && let Ok(runtime) = Handle::try_current()
            && !self.watched.swap(true, SeqCst)
        {
            runtime.spawn(keep_looking(Arc::downgrade(self)));
        }
    }

    fn has_lookups(&self) -> bool {
        self.listing.lock().bases.iter().any(|base| base.lookup.is_some())
    }

    fn lookups(&self) -> Vec<(String, u16)> {
        self.listing.lock().bases.iter().filter_map(|base| base.lookup.clone()).collect()
    }

    /// Looks all hosts up. A host that is not found now keeps what was found last.
    pub(super) async fn look(&self) {
        let hosts = self.lookups();
        let answers = hosts.iter().map(|(host, port)| {
            let lookup = self.resolver.lookup(host, *port);
            async move { tokio::time::timeout(DNS_LOOKUP_TIMEOUT, lookup).await }
        });
        let answers = join_all(answers).await;
        let mut changed = false;
        let mut known = self.addresses.lock();
        known.retain(|host, _| hosts.contains(host));
        for (host, answer) in hosts.into_iter().zip(answers) {
            let found = match answer {
                Ok(Ok(found)) => endpoint_addresses(found),
                Ok(Err(error)) => {
                    tracing::debug!(host = host.0, "cannot be looked up: {error}");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(host = host.0, "cannot be looked up: no answer in time");
                    continue;
                }
            };
            if !found.is_empty() && known.get(&host) != Some(&found) {
                known.insert(host, found);
                changed = true;
            }
        }
        drop(known);
        if changed {
            self.apply();
        }
    }

    /// Tells the pool its endpoints. A host that was never found is one endpoint, and looked up for each connection.
    fn apply(&self) {
        let listing = self.listing.lock();
        let addresses = self.addresses.lock();
        let mut endpoints = Vec::new();
        for base in &listing.bases {
            match base.lookup.as_ref().and_then(|host| addresses.get(host)) {
                None => endpoints.push(self.endpoint(&listing, base, None)),
                Some(found) => {
                    endpoints.extend(found.iter().map(|address| self.endpoint(&listing, base, Some(*address))));
                }
            }
        }
        self.pool.set_endpoints(endpoints);
    }

    fn endpoint(&self, listing: &Listing, base: &Base, address: Option<IpAddr>) -> Arc<Endpoint> {
        let name: Arc<str> = match address {
            None => base.url.clone(),
            Some(address) => format!("{} at {address}", base.url).into(),
        };
        self.pool.endpoint(&name).unwrap_or_else(|| {
            let client = listing.dialing.client(address);
            Arc::new(Endpoint { name, base: base.url.clone(), client })
        })
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.listing.lock().bases).finish()
    }
}

/// Looks again and again, as long as there is somebody to know and something to look up.
async fn keep_looking(directory: Weak<Directory>) {
    loop {
        let Some(directory) = directory.upgrade() else { return };
        directory.look().await;
        if !directory.has_lookups() {
            directory.watched.store(false, SeqCst);
            return;
        }
        let changed = directory.changed.clone();
        // This task keeps nothing alive while it sleeps.
        drop(directory);
        let _ = tokio::time::timeout(DNS_LOOKUP_INTERVAL, changed.notified()).await;
    }
}
