//! Which server is the primary, as sentinels have it.

use chatgateway_config::{Endpoint, RedisSettings};
use chatgateway_core::limits::STORE_CALL_TIMEOUT;
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
