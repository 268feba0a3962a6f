//! Which server is the primary, as sentinels have it.

use std::sync::Arc;

use chatgateway_config::{Endpoint, RedisSettings};
use chatgateway_core::limits::{REDIS_PRIMARY_LOOK_INTERVAL, STORE_CALL_TIMEOUT};
use redis::Value;
use tokio::time::timeout;

use super::connect::{self, Wanted, address, server_words, words};

/// Asks the sentinels one after the other, another one first each time.
pub(super) async fn primary(settings: &RedisSettings, attempt: usize) -> Result<Endpoint, String> {
    let name = settings.primary_name.as_deref().unwrap_or_default();
    let count = settings.endpoints.len();
    let mut why = "no sentinel is configured".to_owned();
    for at in 0..count {
        let sentinel = &settings.endpoints[(attempt + at) % count];
        match ask(settings, sentinel, name).await {
            Ok(primary) => return Ok(primary),
            Err(error) => why = error,
        }
    }
    Err(format!("no sentinel names the primary {name:?}: {why}"))
}

/// Waits until the sentinels name another primary than `server`, and it is one. For some seconds after a failover the old
/// one would still take what it is to lose.
pub(super) async fn elsewhere(settings: Option<Arc<RedisSettings>>, server: &Endpoint) -> Endpoint {
    let Some(settings) = settings else { return std::future::pending().await };
    let mut sentinels = settings.endpoints.iter().cycle();
    let name = settings.primary_name.as_deref().unwrap_or_default();
    loop {
        tokio::time::sleep(REDIS_PRIMARY_LOOK_INTERVAL).await;
        let Some(sentinel) = sentinels.next() else { return std::future::pending().await };
        // A sentinel that has not heard of a failover yet names a server that is no primary any more.
        if let Ok(primary) = ask(&settings, sentinel, name).await
            && primary != *server
            && connect::open(&settings, &primary, Wanted::Primary, None).await.is_ok()
        {
            return primary;
        }
    }
}

async fn ask(settings: &RedisSettings, sentinel: &Endpoint, name: &str) -> Result<Endpoint, String> {
    let mut open = match connect::open(settings, sentinel, Wanted::Sentinel { asked: false }, None).await {
        Err(why) if why.contains("NOAUTH") => {
            connect::open(settings, sentinel, Wanted::Sentinel { asked: true }, None).await?
        }
        opened => opened?,
    };
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let at = address(sentinel);
    let reply = match timeout(STORE_CALL_TIMEOUT, open.connection.send_packed_command(&question)).await {
        Ok(reply) => reply.map_err(|error| format!("{at}: {}", words(&error)))?,
        Err(_) => return Err(format!("{at}: no answer in time")),
    };
    match reply {
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(host), Value::BulkString(port)] => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let port = text(port).parse().map_err(|_| format!("{at}: not a port: {}", text(port)))?;
                Ok(Endpoint { host: text(host), port })
            }
            _ => Err(format!("{at}: not an address")),
        },
        Value::Nil => Err(format!("{at}: knows no primary of this name")),
        Value::ServerError(error) => Err(format!("{at}: {}", server_words(&error))),
        _ => Err(format!("{at}: not an address")),
    }
}
