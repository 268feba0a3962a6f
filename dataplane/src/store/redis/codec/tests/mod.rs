//! The scripts against a real server.

#![allow(clippy::unwrap_used, clippy::panic)]

mod costs;
mod differential;
mod faults;
mod mutations;
mod schedule;
mod targeted;
mod view;

use std::{io::Write as _, net::TcpStream, time::Duration};

use chatgateway_core::log::{
    Entry, Reply, Request, SessionKey, StoreTime,
    store::{SessionState, execute},
};
use chatgateway_redis_server::{Options, RedisServer, User};
use redis::{Cmd, Connection, ConnectionLike as _, Value};

use super::{Decoded, channel, command, decode, decode_news, is_stale_append, keys};
use crate::store::{News, redis::scripts};

/// How long a message that was published may take to arrive.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the gateway may do: what the documentation tells administrators to allow.
const RULES: &str = "~log:* ~ses:* ~dlg:* ~ch:* &ch:* -@all +evalsha +script|load +time +hget +hmget +hgetall +hset +hdel \
                     +xadd +xrange +xrevrange +xlen +xtrim +zadd +zrange +zremrangebyrank +pexpireat +exists +del +spublish";

/// A server, and a connection as the gateway's user.
struct Server {
    server: RedisServer,
    gateway: Connection,
    /// Whoever prepares and looks, past the gateway's rights.
    admin: Connection,
    /// The hash of a script, and of the one that is called instead.
    instead: Option<(String, String)>,
}

impl Server {
    fn start(options: Options) -> Self {
        let user = User { rules: RULES.into(), ..User::new("gateway", "pass") };
        let server = RedisServer::start(Options { user: Some(user), ..options }).unwrap();
        let connect = |credentials: &str| {
            let url = format!("redis://{credentials}@{}", server.endpoint());
            redis::Client::open(url).unwrap().get_connection().unwrap()
        };
        let (mut gateway, admin) = (connect("gateway:pass"), connect("admin:of-this-test-only"));
        for (load, script) in scripts::loads().iter().zip(scripts::all()) {
            assert_eq!(load.query::<String>(&mut gateway).unwrap(), script.sha);
        }
        Self { gateway, admin, server, instead: None }
    }

    /// Carries a request out, and returns the server's error if there is one.
    fn ask(&mut self, session: &SessionKey, request: &Request) -> Result<Decoded, String> {
        let mut packed = command(session, request).get_packed_command();
        if let Some((sha, other)) = &self.instead
            && let Some(at) = packed.windows(sha.len()).position(|window| window == sha.as_bytes())
        {
            packed[at..at + sha.len()].copy_from_slice(other.as_bytes());
        }
        let value = match self.gateway.req_packed_command(&packed).unwrap() {
            Value::ServerError(error) if matches!(request, Request::Append(_)) && is_stale_append(&error) => Value::Nil,
            Value::ServerError(error) => {
                return Err(format!("{} {}", error.code(), error.details().unwrap_or_default()));
            }
            value => value,
        };
        decode(session, request, value).map_err(|error| error.to_string())
    }

    fn admin(&mut self, args: &[&str]) -> Value {
        let mut command = Cmd::new();
        for arg in args {
            command.arg(arg);
        }
        command.query(&mut self.admin).unwrap()
    }

    fn follow(&self, session: &SessionKey) -> Follower {
        let mut stream = TcpStream::connect(self.server.endpoint()).unwrap();
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT)).unwrap();
        let mut hello = Cmd::new();
        hello.arg("AUTH").arg("admin").arg("of-this-test-only");
        let mut subscribe = Cmd::new();
        subscribe.arg("SSUBSCRIBE").arg(channel(session));
        stream.write_all(&hello.get_packed_command()).unwrap();
        stream.write_all(&subscribe.get_packed_command()).unwrap();
        let mut follower = Follower { stream, parser: redis::Parser::new() };
        follower.value();
        follower.value();
        follower
    }
}

/// Somebody who follows one session.
struct Follower {
    stream: TcpStream,
    parser: redis::Parser,
}

impl Follower {
    fn value(&mut self) -> Value {
        self.parser.parse_value(&mut self.stream).unwrap()
    }

    /// The next message.
    fn hear(&mut self) -> Option<News> {
        let (_, _, payload): (String, String, Vec<u8>) = redis::from_redis_value(self.value()).unwrap();
        decode_news(&payload)
    }
}

/// One session, in Redis and as the pure functions have it.
struct Twin {
    key: SessionKey,
    slot: Option<SessionState>,
    follower: Follower,
    now: StoreTime,
}

impl Twin {
    fn new(server: &Server, key: SessionKey) -> Self {
        let follower = server.follow(&key);
        Self { key, slot: None, follower, now: StoreTime(0) }
    }

    /// Carries a request out twice, and compares: the reply, what was told, what is kept.
    fn ask(&mut self, server: &mut Server, request: &Request) -> Reply {
        let reply = self.ask_only(server, request);
        self.compare(server, request);
        reply
    }

    /// The same without what is kept, which is much in a long session.
    fn ask_only(&mut self, server: &mut Server, request: &Request) -> Reply {
        let decoded = server.ask(&self.key, request).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        self.now = decoded.now.unwrap_or(self.now);
        let before = self.slot.clone();
        let reply = execute(&mut self.slot, request, self.now);
        assert_eq!(decoded.reply, reply, "reply to {request:?}\nbefore: {before:#?}");
        self.compare_told(request, before.as_ref(), decoded.receivers);
        reply
    }

    fn compare_told(&mut self, request: &Request, before: Option<&SessionState>, receivers: Option<u32>) {
        let counts = match request {
            Request::Begin(_) | Request::Check(_) | Request::Finish(_) | Request::Claim(_) | Request::Reset(_) => true,
            Request::Delete => {
                assert_eq!(self.follower.hear(), Some(News::Deleted));
                return;
            }
            _ => false,
        };
        assert_eq!(receivers, counts.then_some(1), "{request:?}");
        if !counts {
            return;
        }
        let appended = appended(before, self.slot.as_ref());
        if appended.is_empty() {
            assert_eq!(self.follower.hear(), None, "{request:?}");
        }
        for entry in appended {
            assert_eq!(self.follower.hear(), Some(News::Entry(entry.into())), "{request:?}");
        }
    }

    fn compare(&self, server: &mut Server, after: &dyn std::fmt::Debug) {
        let (redis, model) = (view::of_redis(server, &self.key), self.slot.as_ref().map(view::of_model));
        assert!(redis == model, "state after {after:?}\nRedis: {redis:#?}\nmodel: {model:#?}");
    }
}

/// The entries that a log has and had not.
fn appended(before: Option<&SessionState>, after: Option<&SessionState>) -> Vec<Entry> {
    let log = |state: Option<&SessionState>| state.and_then(|state| state.log.clone()).unwrap_or_default();
    let before = log(before);
    let new = log(after).into_iter().filter(|entry| !before.contains(entry));
    new.map(|entry| (*entry).clone()).collect()
}
