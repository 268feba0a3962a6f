//! One connection to one server: TCP, TLS, who we are, and whether it is the server that was meant.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use chatgateway_config::{Endpoint, RedisMode, RedisSettings, RedisTlsSettings};
use chatgateway_core::limits::{
    REDIS_CONNECT_TIMEOUT, REDIS_FILE_MAX_BYTES, REDIS_TCP_KEEPALIVE, REDIS_TCP_KEEPALIVE_INTERVAL,
};
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, Value,
    aio::{AsyncPushSender, MultiplexedConnection, SendError},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// Oldest server that knows sharded channels.
const VERSION_MIN: (u32, u32) = (7, 0);

/// What to do about a server's certificate that is not taken.
const TLS_HINT: &str = "; tls.caFile has to hold the authority that signed the server's certificate, and the address in endpoints \
     has to be one that the certificate names";

/// Who the gateway is to Redis.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    user: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Reads the files of today.
    pub(super) fn read(settings: &RedisSettings) -> Result<Self, String> {
        let line = |path: &Option<PathBuf>, what| match path {
            Some(path) => read_line(path, what).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            user: line(&settings.username_file, "the Redis user file")?,
            password: line(&settings.password_file, "the Redis password file")?,
        })
    }

    /// The command that makes a live connection ours under these. None where there is nothing to say.
    pub(super) fn command(&self) -> Option<redis::Cmd> {
        let mut auth = redis::cmd("AUTH");
        if let Some(user) = &self.user {
            auth.arg(user);
        }
        auth.arg(self.password.as_ref()?);
        Some(auth)
    }

    /// A server's words without what nobody should read: old servers repeat what they do not understand.
    fn redact(&self, words: String) -> String {
        match &self.password {
            Some(password) if words.contains(password.as_str()) => words.replace(password.as_str(), "…"),
            _ => words,
        }
    }
}

fn read_file(path: &Path, what: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(REDIS_FILE_MAX_BYTES).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("cannot read {what} {}: {error}", path.display()))
}

fn read_line(path: &Path, what: &str) -> Result<String, String> {
    let text =
        String::from_utf8(read_file(path, what)?).map_err(|_| format!("{what} {} is not UTF-8", path.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("{what} {} is empty", path.display())) } else { Ok(text.to_owned()) }
}

/// What a server must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The primary.
    Primary,
    /// Any node of a cluster.
    Node,
    /// A sentinel. They have their own users, if any: who we are is said only where one asks.
    Sentinel {
        /// Whether it asked.
        asked: bool,
    },
}

/// An address as people write it.
pub(super) fn address(of: &Endpoint) -> String {
    if of.host.contains(':') { format!("[{}]:{}", of.host, of.port) } else { format!("{}:{}", of.host, of.port) }
}

/// A connection that is ready.
pub(super) struct Open {
    /// The connection.
    pub(super) connection: MultiplexedConnection,
    /// What moves its bytes. Ends when the connection does, and the other way round.
    pub(super) driver: AbortOnDropHandle<()>,
}

/// What the server pushes goes here.
pub(super) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

struct Pushes(OnPush);

impl AsyncPushSender for Pushes {
    fn send(&self, info: PushInfo) -> Result<(), SendError> {
        (self.0)(info);
        Ok(())
    }
}

/// Connects to `to`. The files are read now.
pub(super) async fn open(
    settings: &RedisSettings,
    to: &Endpoint,
    wanted: Wanted,
    pushes: Option<OnPush>,
) -> Result<Open, String> {
    let at = address(to);
    let (tcp, material) = tokio::join!(tcp(to), material(settings.clone()));
    let (tcp, (credentials, tls)) = (tcp.map_err(|why| format!("{at}: {why}"))?, material?);
    let opened = match tls {
        Some(config) => {
            let name = ServerName::try_from(to.host.clone()).map_err(|_| format!("{at}: not a name for TLS"))?;
            let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
            let tls = within(handshake, "the TLS handshake").await.map_err(|why| {
                let hint = if why.contains("peer certificate") { TLS_HINT } else { "" };
                format!("{at}: {why}{hint}")
            })?;
            greet(tls, credentials, settings.mode, wanted, pushes).await
        }
        None => greet(tcp, credentials, settings.mode, wanted, pushes).await,
    };
    opened.map_err(|why| format!("{at}: {why}"))
}

async fn within<T, E: std::fmt::Display>(step: impl Future<Output = Result<T, E>>, what: &str) -> Result<T, String> {
    match timeout(REDIS_CONNECT_TIMEOUT, step).await {
        Ok(done) => done.map_err(|error| format!("{what} failed: {error}")),
        Err(_) => Err(format!("{what} took more than {} ms", REDIS_CONNECT_TIMEOUT.as_millis())),
    }
}

async fn tcp(to: &Endpoint) -> Result<TcpStream, String> {
    let tcp = within(TcpStream::connect((to.host.as_str(), to.port)), "connecting").await?;
    let keepalive = TcpKeepalive::new().with_time(REDIS_TCP_KEEPALIVE).with_interval(REDIS_TCP_KEEPALIVE_INTERVAL);
    tcp.set_nodelay(true)
        .and_then(|()| SockRef::from(&tcp).set_tcp_keepalive(&keepalive))
        .map_err(|error| error.to_string())?;
    Ok(tcp)
}

/// The files, read where waiting for a disk holds up nobody.
async fn material(settings: RedisSettings) -> Result<(Credentials, Option<Arc<ClientConfig>>), String> {
    let read = tokio::task::spawn_blocking(move || {
        Ok::<_, String>((Credentials::read(&settings)?, settings.tls.as_ref().map(client_config).transpose()?))
    });
    match timeout(REDIS_CONNECT_TIMEOUT, read).await {
        Ok(Ok(material)) => material,
        _ => Err("the files for the connection to Redis could not be read in time".into()),
    }
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read_file(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{what} {} holds no certificate (PEM)", path.display())),
        Err(error) => Err(format!("{what} {} is not PEM: {error}", path.display())),
    }
}

fn client_config(tls: &RedisTlsSettings) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path, "the CA file for Redis")? {
                roots.add(certificate).map_err(|error| format!("the CA file {}: {error}", path.display()))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match &tls.identity {
        Some((certificate, key_path)) => {
            let chain = certificates(certificate, "the client certificate for Redis")?;
            let bytes = read_file(key_path, "the client key for Redis")?;
            let key = PrivateKeyDer::from_pem_slice(&bytes)
                .map_err(|error| format!("the client key {}: {error}", key_path.display()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!("the client certificate {} and its key do not fit: {error}", certificate.display())
            })?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

async fn greet<S>(
    stream: S,
    credentials: Credentials,
    mode: RedisMode,
    wanted: Wanted,
    pushes: Option<OnPush>,
) -> Result<Open, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
    if wanted != (Wanted::Sentinel { asked: false }) {
        if let Some(user) = &credentials.user {
            info = info.set_username(user);
        }
        if let Some(password) = &credentials.password {
            info = info.set_password(password);
        }
    }
    let mut config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    if let Some(pushes) = pushes {
        config = config.set_push_sender(Pushes(pushes));
    }
    let greeting = async {
        let greeted = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (mut connection, driver) = greeted.map_err(|error| credentials.redact(greeting_words(&error)))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let hello = connection.send_packed_command(&redis::cmd("HELLO")).await;
        let about = About::of(hello.map_err(|error| words(&error))?)?;
        about.check(mode, wanted)?;
        Ok(Open { connection, driver })
    };
    match timeout(REDIS_CONNECT_TIMEOUT, greeting).await {
        Ok(open) => open,
        Err(_) => Err(format!("no greeting within {} ms", REDIS_CONNECT_TIMEOUT.as_millis())),
    }
}

/// The error's words as the server said them.
pub(super) fn words(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ => error.to_string(),
    }
}

fn greeting_words(error: &RedisError) -> String {
    let said = words(error);
    let hint = match said.split(' ').next() {
        Some("WRONGPASS") => "the user or the password is wrong: check the username and password files",
        Some("NOAUTH") => "the server wants a password: set a password file",
        Some("NOPROTO") => "the server does not speak RESP3: Redis 7.0 or later is needed",
        Some("LOADING") => "the server is loading its data",
        _ => return said,
    };
    format!("{hint} ({said})")
}

/// What a server says of itself.
#[derive(Default)]
struct About {
    version: String,
    mode: String,
    role: String,
}

impl About {
    fn of(hello: Value) -> Result<Self, String> {
        if let Value::ServerError(error) = &hello {
            return Err(server_words(error));
        }
        let text = |value: &Value| match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::SimpleString(text) => text.clone(),
            _ => String::new(),
        };
        let mut about = Self::default();
        let Value::Map(fields) = hello else { return Err("the greeting is not what a Redis says".into()) };
        for (name, value) in &fields {
            match text(name).as_str() {
                "version" => about.version = text(value),
                "mode" => about.mode = text(value),
                "role" => about.role = text(value),
                _ => {}
            }
        }
        Ok(about)
    }

    fn check(&self, mode: RedisMode, wanted: Wanted) -> Result<(), String> {
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if matches!(wanted, Wanted::Sentinel { .. }) {
            return match self.mode.as_str() {
                "sentinel" => Ok(()),
                other => Err(format!("is no sentinel but runs in {other} mode: the mode in the settings is wrong")),
            };
        }
        if version < VERSION_MIN {
            return Err(format!("is Redis {}; sessions need 7.0 or later", self.version));
        }
        let expected = if mode == RedisMode::Cluster { "cluster" } else { "standalone" };
        if self.mode != expected {
            return Err(format!("runs in {} mode, the settings say {mode:?}: one of them is wrong", self.mode));
        }
        if wanted == Wanted::Primary && self.role != "master" {
            return Err(format!("is not the primary but a {}", self.role));
        }
        Ok(())
    }
}

/// A server's words.
pub(super) fn server_words(error: &redis::ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_reads_a_password_in_an_error() {
        let credentials = Credentials { user: None, password: Some("hunter2".into()) };
        let said = credentials.redact("ERR unknown command `HELLO`, with args: `3` `AUTH` `default` `hunter2`".into());
        assert_eq!(said, "ERR unknown command `HELLO`, with args: `3` `AUTH` `default` `…`");
    }

    #[test]
    fn a_server_must_be_what_is_needed() {
        let about = |version: &str, mode: &str, role: &str| About {
            version: version.into(),
            mode: mode.into(),
            role: role.into(),
        };
        let check = |about: About, wanted| about.check(RedisMode::Standalone, wanted);
        assert_eq!(check(about("7.0.15", "standalone", "master"), Wanted::Primary), Ok(()));
        assert_eq!(check(about("10.2", "standalone", "master"), Wanted::Primary), Ok(()));
        for (wrong, words) in [
            (about("6.2.14", "standalone", "master"), "sessions need 7.0 or later"),
            (about("", "standalone", "master"), "sessions need 7.0 or later"),
            (about("7.2.0", "cluster", "master"), "runs in cluster mode"),
            (about("7.2.0", "sentinel", ""), "runs in sentinel mode"),
            (about("7.2.0", "standalone", "replica"), "is not the primary but a replica"),
        ] {
            assert!(check(wrong, Wanted::Primary).unwrap_err().contains(words), "{words}");
        }
        assert!(check(about("7.0.15", "standalone", "master"), Wanted::Sentinel { asked: false }).is_err());
    }
}
