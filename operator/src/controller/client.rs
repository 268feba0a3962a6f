//! The connection to the API server.

use anyhow::Context as _;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{Builder, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Client, ConfigExt as _};
use kube::config::Config;
use tower::{BoxError, ServiceBuilder};

/// A client whose requests leave at once. kube's own leaves them to Nagle's algorithm: the body of each write waits until the
/// API server has acknowledged the head, which takes it 40 ms.
///
/// # Errors
/// Where the settings make no sense.
pub fn client(config: Config) -> anyhow::Result<Client> {
    const WHAT: &str = "cannot set up the client of the API server";
    if config.proxy_url.is_some() {
        return Client::try_from(config).context(WHAT);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector).context(WHAT)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context(WHAT)?)
        .layer(config.extra_headers_layer().context(WHAT)?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}
