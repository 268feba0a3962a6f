//! What a configuration file means, and what is said about a wrong one.

#![allow(clippy::panic)]

use std::time::Duration;

use chatgateway_config::{
    BatchingSettings, BreakerSettings, Endpoint, LimitPer, LimitUnit, OnStoreFailure, PromptFormat, RateLimitSettings,
    RedisMode, RedisSettings, RedisTlsSettings, RetrySettings, Settings, StoreSettings, UpstreamKind, needs_restart,
};

fn errors(text: &str) -> String {
    Settings::parse(text).expect_err("it is wrong").to_string()
}

fn parsed(text: &str) -> Settings {
    Settings::parse(text).expect("it is right")
}

#[test]
fn an_empty_file_is_the_default() {
    for text in ["", "\n# nothing\n", "{}", "upstreams: []\n"] {
        assert_eq!(parsed(text), Settings::default(), "{text:?}");
    }
    assert_eq!(Settings::default().hash.len(), 64);
}

#[test]
fn everything_that_can_be_set_reaches_the_settings() {
    let s = parsed(
        "gateway: {name: a, revision: b7}\n\
         listeners: {bind: '::1', httpPort: 1, grpcPort: 0, adminPort: 0, reusePort: true}\n\
         workers: 3\n\
         upstreams:\n\
         - {name: x, type: OpenAI, openAI: {url: 'http://h:1/v1/', model: m, apiKeyFile: /k, prefill: true},\n\
         \x20  pool: {maxConcurrent: 2, maxQueued: 0, queueTimeout: 1s},\n\
         \x20  timeouts: {connect: 1s, firstToken: 2s, betweenTokens: 3s, total: 4s}, batching: {mode: Off}}\n\
         - {name: y, type: Simple, simple: {url: 'https://s', maxTokens: 9}, affinity: None}\n\
         - {name: z, type: Demo, demo: {tokenDelay: 0s, answerBytes: 50}}\n\
         sessions: {ttl: 16s, history: {maxTurns: 5}, store: {type: Memory}}\n\
         keepalive: {pingInterval: 1s, pongTimeout: 2s, tcpKeepalive: 3s}\n\
         drain: {acceptFloor: 0s, reconnectSpread: 1s, timeout: 2s}\n\
         limits: {maxMessageBytes: 1024, maxBodyBytes: 2048, maxConnections: 1, maxStreamsPerConnection: 2,\n\
         \x20 headerTimeout: 3s, allowedOrigins: ['https://Chat.example.com', '*']}\n\
         log: {level: debug, format: json}\n",
    );
    assert_eq!((s.gateway.name.as_str(), s.gateway.revision.as_str()), ("a", "b7"));
    assert_eq!((s.listeners.bind.to_string().as_str(), s.listeners.http_port), ("::1", 1));
    assert!(s.listeners.reuse_port);
    assert_eq!(s.workers, Some(3));
    let kinds: Vec<_> = s.upstreams.iter().map(|upstream| &upstream.kind).collect();
    let openai = UpstreamKind::OpenAi {
        url: "http://h:1/v1".into(),
        model: "m".into(),
        api_key_file: Some("/k".into()),
        prefill: true,
        prompt_format: None,
    };
    let simple = UpstreamKind::Simple { url: "https://s".into(), max_tokens: 9 };
    let demo = UpstreamKind::Demo { token_delay: Duration::ZERO, answer_bytes: Some(50) };
    assert_eq!(kinds, [&openai, &simple, &demo]);
    assert_eq!((s.upstreams[0].pool.max_concurrent, s.upstreams[0].pool.max_queued), (2, 0));
    assert_eq!(s.upstreams[0].timeouts.total, Duration::from_secs(4));
    assert_eq!((s.sessions.ttl, s.sessions.max_turns), (Duration::from_secs(16), 5));
    assert_eq!(s.keepalive.tcp_keepalive, Duration::from_secs(3));
    assert_eq!(s.drain.timeout, Duration::from_secs(2));
    assert_eq!(s.limits.allowed_origins, ["https://chat.example.com", "*"]);
    assert_eq!((s.limits.max_message_bytes, s.limits.max_connections), (1_024, 1));
}

#[test]
fn a_typo_names_path_line_column_and_the_nearest_name() {
    assert_eq!(
        errors("upstreams:\n- name: a\n  type: Demo\n  pool:\n    maxConcurent: 3\n"),
        "line 5, column 5: upstreams[0].pool.maxConcurent: unknown field `maxConcurent`; did you mean `maxConcurrent`?"
    );
    assert_eq!(errors("limit: {}\n"), "line 1, column 1: limit: unknown field `limit`; did you mean `limits`?");
    assert_eq!(
        errors("upstreams:\n- {name: a, type: OpenAi}\n"),
        "line 2, column 19: upstreams[0].type: unknown value `OpenAi`; did you mean `OpenAI`?"
    );
}

#[test]
fn wrong_types_and_broken_yaml_name_the_place() {
    let text = errors("limits:\n  maxConnections: many\n");
    assert!(text.starts_with("line 2, column 19: limits.maxConnections: "), "{text}");
    let text = errors("limits:\n  maxConnections: [\n");
    assert!(text.starts_with("line "), "{text}");
    let text = errors("drain: 5\n");
    assert!(text.starts_with("line 1, column "), "{text}");
    let text = errors("log: {}\nlog: {}\n");
    assert_eq!(text, "line 2, column 1: log: the field `log` is there twice");
}

#[test]
fn all_violations_are_told_at_once() {
    let text = errors(
        "listeners: {httpPort: 80, adminPort: 80, bind: here}\n\
         upstreams:\n\
         - {name: A, type: OpenAI}\n\
         - {name: b, type: Simple, simple: {url: nowhere, maxTokens: 0}, demo: {}}\n\
         - {name: b}\n\
         sessions: {ttl: 15s}\n\
         drain: {acceptFloor: 5s, reconnectSpread: 10s, timeout: 14s}\n\
         keepalive: {pingInterval: 5}\n",
    );
    let expected = [
        "line 1, column 27: listeners.adminPort: 80 is the port of another listener",
        "line 1, column 42: listeners.bind: must be an IP address",
        "line 3, column 3: upstreams[0].openAI: is missing; `type: OpenAI` needs it",
        "line 3, column 4: upstreams[0].name: `A` is no name",
        "line 4, column 36: upstreams[1].simple.url: `nowhere` is no URL of a server",
        "line 4, column 50: upstreams[1].simple.maxTokens: 0 is out of range; it must be 1 to 1000000",
        "line 4, column 65: upstreams[1].demo: does not fit `type: Simple`",
        "line 5, column 3: upstreams[2].type: is missing; it is OpenAI, Simple or Demo",
        "line 5, column 4: upstreams[2].name: `b` is the name of another upstream",
        "line 6, column 12: sessions.ttl: 15s is out of range; it must be 16s to 720h",
        "line 7, column 48: drain.timeout: 14s is too short",
        "line 8, column 13: keepalive.pingInterval: `5` is no duration; write a number with its unit",
    ];
    assert_eq!(text.lines().count(), expected.len(), "{text}");
    for (line, start) in text.lines().zip(expected) {
        assert!(line.starts_with(start), "{line}\ndoes not start with\n{start}");
    }
}

#[test]
fn what_makes_no_sense_of_upstreams_and_limits_is_told() {
    let text = errors(
        "upstreams:\n\
         - name: a\n\
         \x20 type: Demo\n\
         \x20 circuitBreaker: {slidingWindowSize: 10, minimumNumberOfCalls: 20}\n\
         \x20 batching: {mode: Adaptive}\n\
         \x20 endpoints: ['http://a', 'http://a/', 'b']\n\
         \x20 affinity: Session\n\
         rateLimits: [{per: User, requestsPerSecond: 1, tokensPerMinute: 1}, {requestsPerMinute: 1}]\n",
    );
    let expected = [
        "line 4, column 43: upstreams[0].circuitBreaker.minimumNumberOfCalls: 20 calls are never looked at",
        "line 5, column 14: upstreams[0].batching.mode: Adaptive does not fit `type: Demo`",
        "line 6, column 3: upstreams[0].endpoints: does not fit `type: Demo`, which is built in; remove it or change the type",
        "line 6, column 27: upstreams[0].endpoints[1]: `http://a` is there already; write each server once",
        "line 6, column 40: upstreams[0].endpoints[2]: `b` is no URL of a server",
        "line 7, column 3: upstreams[0].affinity: does not fit",
        "line 8, column 14: rateLimits[0]: give one of requestsPerSecond, requestsPerMinute and tokensPerMinute",
        "line 8, column 69: rateLimits[1].per: is missing; it is Session, User, Address or Gateway",
    ];
    assert_eq!(text.lines().count(), expected.len(), "{text}");
    for (line, start) in text.lines().zip(expected) {
        assert!(line.starts_with(start), "{line}\ndoes not start with\n{start}");
    }
}

#[test]
fn upstreams_and_limits_have_the_defaults_of_the_documentation() {
    let settings = parsed(
        "upstreams:\n\
         - {name: a, type: OpenAI, openAI: {url: 'http://a/v1', model: m}, affinity: Session}\n\
         - {name: b, type: Simple, simple: {url: 'http://b/'}, endpoints: ['http://c/'], batching: {mode: Fixed}}\n\
         - {name: c, type: OpenAI, openAI: {url: 'http://a/v1', model: m, promptFormat: ChatML}}\n\
         rateLimits: [{per: User, requestsPerSecond: 5}, {per: User, tokensPerMinute: 90, burst: 7, onStoreFailure: Open}]\n",
    );
    let [a, b, c] = &settings.upstreams[..] else { panic!("three upstreams") };
    assert_eq!((&a.breaker, &a.retries), (&BreakerSettings::default(), &RetrySettings::default()));
    assert!(a.endpoints.session_affinity && a.batching == BatchingSettings::Off);
    assert_eq!(b.endpoints.further, ["http://c"]);
    assert_eq!(b.batching, BatchingSettings::Fixed { max_size: 4, max_delay: Duration::from_millis(50) });
    let (max_size, max_delay) = (4, Duration::from_millis(50));
    let first_token_target = Duration::from_millis(300);
    assert_eq!(c.batching, BatchingSettings::Adaptive { max_size, max_delay, first_token_target });
    assert!(matches!(c.kind, UpstreamKind::OpenAi { prefill: true, prompt_format: Some(PromptFormat::ChatML), .. }));
    let limit = |unit, per_minute, burst, on_store_failure| RateLimitSettings {
        per: LimitPer::User,
        unit,
        per_minute,
        burst,
        on_store_failure,
    };
    let expected = [
        limit(LimitUnit::Requests, 300, 5, OnStoreFailure::LocalShare),
        limit(LimitUnit::Tokens, 90, 7, OnStoreFailure::Open),
    ];
    assert_eq!(settings.rate_limits, expected);
}

fn redis(text: &str) -> RedisSettings {
    match parsed(&format!("sessions: {{store: {{type: Redis, redis: {text}}}}}\n")).sessions.store {
        StoreSettings::Redis(redis) => redis,
        StoreSettings::Memory => panic!("a Redis was asked for"),
    }
}

#[test]
fn a_redis_is_one_server_without_ado_unless_more_is_said() {
    let expected = RedisSettings {
        mode: RedisMode::Standalone,
        endpoints: vec![Endpoint { host: "redis".into(), port: 6_379 }],
        primary_name: None,
        username_file: None,
        password_file: None,
        tls: None,
    };
    assert_eq!(redis("{endpoints: ['redis:6379']}"), expected);
    assert_eq!(redis("{mode: Standalone, endpoints: ['redis:6379']}"), expected);
}

#[test]
fn everything_that_can_be_set_of_a_redis_reaches_the_settings() {
    let sentinels = redis(
        "{mode: Sentinel, endpoints: ['a:26379', '[::1]:26379'], primaryName: chat,\n\
         \x20 auth: {usernameFile: /user, passwordFile: /password}, tls: {}}",
    );
    let endpoint = |host: &str| Endpoint { host: host.into(), port: 26_379 };
    assert_eq!(sentinels.endpoints, [endpoint("a"), endpoint("::1")]);
    assert_eq!((sentinels.mode, sentinels.primary_name.as_deref()), (RedisMode::Sentinel, Some("chat")));
    assert_eq!(sentinels.username_file, Some("/user".into()));
    assert_eq!(sentinels.password_file, Some("/password".into()));
    assert_eq!(sentinels.tls, Some(RedisTlsSettings { ca_file: None, identity: None }), "the public authorities");
    let cluster = redis(
        "{mode: Cluster, endpoints: ['a:1', 'b:1', 'c:1'], auth: {passwordFile: /p},\n\
         \x20 tls: {caFile: /ca, certFile: /cert, keyFile: /key}}",
    );
    assert_eq!((cluster.mode, cluster.endpoints.len()), (RedisMode::Cluster, 3));
    let tls = RedisTlsSettings { ca_file: Some("/ca".into()), identity: Some(("/cert".into(), "/key".into())) };
    assert_eq!(cluster.tls, Some(tls));
}

#[test]
fn what_does_not_fit_together_in_a_redis_is_refused_with_path_and_next_step() {
    let at = "sessions.store.redis";
    let many = (0..33).map(|n| format!("h{n}:1")).collect::<Vec<_>>().join(", ");
    for (text, expected) in [
        ("{}", ".endpoints: is missing; give the server's address: write HOST:PORT, such as"),
        ("{mode: Sentinel, primaryName: p}", ".endpoints: is missing; give the sentinels' addresses: "),
        ("{mode: Cluster}", ".endpoints: is missing; give addresses of some of the cluster's nodes: "),
        (
            "{endpoints: ['a:1', 'b:1']}",
            ".endpoints: 2 are too many; `mode: Standalone` has one server, several need `mode: Sentinel`",
        ),
        (&format!("{{mode: Cluster, endpoints: [{many}]}}"), ".endpoints: 33 are too many; give at most 32, "),
        (&format!("{{endpoints: [{many}]}}"), ".endpoints: 33 are too many; give at most 32, "),
        ("{mode: Cluster, endpoints: ['a:1', 'A:1']}", ".endpoints[1]: `A:1` is there twice; remove one"),
        (
            "{endpoints: ['rediss://h:1/0']}",
            ".endpoints[0]: is a URL; write HOST:PORT, such as redis.example.com:6379 or [::1]:6379, and `tls` and",
        ),
        ("{endpoints: [redis]}", ".endpoints[0]: `redis` has no port; write HOST:PORT"),
        ("{mode: Sentinel, endpoints: ['a:1']}", ".primaryName: is missing; `mode: Sentinel` needs the name"),
        ("{mode: Sentinel, endpoints: ['a:1'], primaryName: ''}", ".primaryName: is no name; write 1 to 253"),
        (
            "{endpoints: ['a:1'], primaryName: p}",
            ".primaryName: does not fit `mode: Standalone`; remove it or use `mode: Sentinel`",
        ),
        ("{endpoints: ['a:1'], auth: {}}", ".auth: is empty; give `passwordFile`, or remove it"),
        ("{endpoints: ['a:1'], auth: {usernameFile: /u}}", ".auth.passwordFile: is missing; `usernameFile` needs it"),
        ("{endpoints: ['a:1'], auth: {passwordFile: ''}}", ".auth.passwordFile: is empty; write the path of a file"),
        (
            "{endpoints: ['a:1'], auth: {usernameFile: '', passwordFile: /p}}",
            ".auth.usernameFile: is empty; write the path of a file",
        ),
        ("{endpoints: ['a:1'], tls: {caFile: ''}}", ".tls.caFile: is empty; write the path of a file"),
        ("{endpoints: ['a:1'], tls: {certFile: /c}}", ".tls.keyFile: is missing; `certFile` needs the key"),
        ("{endpoints: ['a:1'], tls: {keyFile: /k}}", ".tls.certFile: is missing; `keyFile` needs the certificate"),
    ] {
        let text = errors(&format!("sessions: {{store: {{type: Redis, redis: {text}}}}}\n"));
        assert_eq!(text.lines().count(), 1, "{text}");
        let message = text.split_once(": ").expect("a place").1;
        assert!(message.starts_with(&format!("{at}{expected}")), "{message}\ndoes not start with\n{at}{expected}");
    }
    let text = errors("sessions: {store: {type: Redis}}\n");
    assert_eq!(text, "line 1, column 12: sessions.store.redis: is missing; `type: Redis` needs it");
    let text = errors("sessions: {store: {redis: {endpoints: ['a:1']}}}\n");
    assert!(text.contains("sessions.store.redis: does not fit `type: Memory`"), "{text}");
}

#[test]
fn another_store_needs_a_restart() {
    // The file with the password is named but not read: what is in it is no part of the configuration.
    let text = "sessions: {store: {type: Redis, redis: {endpoints: ['a:1'], auth: {passwordFile: /nowhere/p}}}}\n";
    let redis = parsed(text);
    assert_eq!(needs_restart(&Settings::default(), &redis), ["sessions.store"]);
    assert_eq!(needs_restart(&redis, &parsed(&text.replace("a:1", "b:1"))), ["sessions.store"]);
    assert_eq!(
        needs_restart(&redis, &parsed(&text.replace("sessions: {", "sessions: {ttl: 1h, "))),
        Vec::<&str>::new()
    );
}

#[test]
fn the_hash_is_of_the_meaning() {
    let short = parsed("drain: {timeout: 60s}\n");
    assert_eq!(short.hash, Settings::default().hash, "a default written down changes nothing");
    assert_eq!(parsed("sessions: {ttl: 1h}\n").hash, parsed("# other words\nsessions:\n  ttl: 60m\n").hash);
    assert_ne!(parsed("sessions: {ttl: 1h}\n").hash, parsed("sessions: {ttl: 2h}\n").hash);
}

#[test]
fn what_a_running_process_cannot_take_over() {
    let old = Settings::default();
    let hot = parsed(
        "upstreams: [{name: other, type: Demo}]\nsessions: {ttl: 1h}\ndrain: {timeout: 90s}\n\
         limits: {maxBodyBytes: 2048}\nkeepalive: {pingInterval: 20s}\ngateway: {revision: two}\n",
    );
    assert_eq!(needs_restart(&old, &hot), Vec::<&str>::new());
    let cold = parsed(
        "gateway: {name: b}\nlisteners: {httpPort: 8888}\nworkers: 1\nlog: {format: json}\nlimits: {maxMessageBytes: 2048}\n",
    );
    assert_eq!(
        needs_restart(&old, &cold),
        ["gateway.name", "listeners", "workers", "limits.maxMessageBytes", "log.format"]
    );
}
