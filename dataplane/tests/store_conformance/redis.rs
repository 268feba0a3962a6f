//! The same suite on Redis, in each way it can be set up.

use chatgateway_config::{RedisMode, RedisTlsSettings};
use chatgateway_redis_server::{Certificates, Cluster, Options, RedisServer, Sentinels, User};

use super::{
    POD,
    settings::{connected, line_file, settings},
    suite,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_standalone() {
    let server = RedisServer::start(Options::default()).unwrap();
    suite(connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_tls_client_certificates_and_a_user() {
    let tls = Certificates::make().unwrap();
    let options = Options {
        tls: Some(tls.clone()),
        client_certificate_required: true,
        // What a gateway needs, and nothing else.
        user: Some(User {
            name: "gateway".into(),
            password: "of-this-test".into(),
            rules: "~log:* ~ses:* ~dlg:* ~ch:* ~own:* ~pods &ch:* +@read +@write +@pubsub +@scripting +@connection \
                    +time -@dangerous"
                .into(),
        }),
        ..Options::default()
    };
    let server = RedisServer::start(options).unwrap();
    let mut settings = settings(RedisMode::Standalone, &[format!("localhost:{}", server.port())]);
    settings.username_file = Some(line_file(tls.dir(), "user", "gateway"));
    settings.password_file = Some(line_file(tls.dir(), "password", "of-this-test"));
    settings.tls = Some(RedisTlsSettings {
        ca_file: Some(tls.ca()),
        identity: Some((tls.client_certificate(), tls.client_key())),
    });
    suite(connected(&settings, POD).await.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_sentinel() {
    let servers = Sentinels::start(1, 3).unwrap();
    suite(connected(&settings(RedisMode::Sentinel, &servers.endpoints()), POD).await.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cluster() {
    let cluster = Cluster::start(3).unwrap();
    suite(connected(&settings(RedisMode::Cluster, &cluster.endpoints()[..1]), POD).await.0).await;
}
