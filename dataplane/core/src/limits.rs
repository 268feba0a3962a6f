//! Every bound of the data plane: its name, its size, and why that size. What can be set is a setting's default or its
//! ceiling; the rest is fixed.

use std::time::Duration;

/// Longest session id. Fits any mail address or path that applications use as a key, and one Redis key stays short.
pub const SESSION_ID_MAX_BYTES: usize = 256;

/// Longest turn id. A UUID has 36; the rest is for applications with ids of their own.
pub const TURN_ID_MAX_BYTES: usize = 128;

/// Turns that may wait in one session while another runs. A person types one or two ahead; more is a loop.
pub const QUEUED_TURNS_MAX: usize = 8;

/// Records of ended turns a session keeps for recognising repeats.
pub const TURN_RECORDS_MAX: usize = 1_000;

/// How often a turn may be taken over before it is ended as failed: a turn that kills each pod that takes it must stop.
pub const TAKEOVERS_MAX: u32 = 3;

/// How long a lease lasts. Short enough that an answer goes on within seconds of its pod's death, long enough for a store
/// that hesitates.
pub const LEASE_TTL: Duration = Duration::from_secs(4);

/// How often an owner checks: thrice a lease, so that two lost checks in a row do not lose it.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(1_333);

/// How long `deleted` records live, so that late copies of a deleted turn find them.
pub const DELETED_RECORDS_TTL: Duration = Duration::from_secs(60);

/// A session with an unfinished turn lives at least this long.
pub const UNFINISHED_TTL: Duration = Duration::from_secs(3_600);

/// Entries one page of a log read has at most: 100 entries cost a Redis server about 20 µs.
pub const READ_PAGE_ENTRIES: usize = 100;

/// Text an owner holds uncommitted before it pauses its model server: some seconds of the fastest model's output.
pub const UNCOMMITTED_MAX_BYTES: usize = 256 * 1024;

/// Answer text of one turn. Past it the turn ends `failed` with `too_large`: the log and the history must stay readable.
pub const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Log entries of one turn. With merging under load a 4 MiB answer in single characters would pass it.
pub const TURN_ENTRIES_MAX: u64 = 100_000;

/// How long an HTTP body may take in all: a megabyte over a very slow line.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an HTTP body may stop in the middle.
pub const BODY_STALL: Duration = Duration::from_secs(10);

/// How deep JSON from clients may be nested. Options and tool schemas stay far below it, and no parser's stack suffers.
pub const JSON_DEPTH_MAX: usize = 128;

/// Bytes of events that go into one piece of an HTTP stream: few writes while catching up, little memory for each stream.
pub const SSE_CHUNK_BYTES: usize = 16 * 1024;

/// When a client of an event stream whose connection broke should come back, on average: half of it to one and a half.
pub const SSE_RETRY: Duration = Duration::from_secs(2);

/// How long a poll waits at most: proxies tend to cut silent requests after a minute.
pub const LONG_POLL_MAX: Duration = Duration::from_secs(55);

/// Bytes of events after which a poll's answer is not filled further; the next poll gets the rest.
pub const LONG_POLL_BYTES: usize = 256 * 1024;

/// How long an HTTP request waits for the outcome of a resume: the store's own tries, and some more.
pub const RESUME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an HTTP request waits for a whole answer: a queue of slow turns before it, and its own.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(900);

/// How often a request that waits for a whole answer finds its place in the log again after the store lost entries.
pub const REATTACH_MAX: u32 = 8;

/// How long before the end of a drain those who still wait are told.
pub const DRAIN_LAST_WORDS: Duration = Duration::from_millis(500);

/// When to try again, where a refusal with 429 or 503 does not say.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Prompts in one request for text completions, where the gateway asks them one by one.
pub const PROMPTS_MAX: usize = 20;

/// How long a reader waits in silence of an unfinished turn before it looks at the log again.
pub const READER_SILENCE: Duration = Duration::from_secs(2);

/// How long before a drain's deadline turns that still run are handed to other pods: time for the leases' ends to be heard of
/// and for clients to follow.
pub const HAND_OVER_TIME: Duration = Duration::from_secs(10);

/// Over how long the hand-over of a pod's turns is spread: the pods that take them ask their model servers anew.
pub const HAND_OVER_SPREAD: Duration = Duration::from_secs(2);

/// How often a pod that drains looks for turns that it has not told yet.
pub const HAND_OVER_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often a pod tells the others that it lives, and looks for those that do not. A lease has room for two such rounds
/// before it ends.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Every how many signs of life a pod looks through its own sessions for one that it owns without knowing. Its lease is
/// over by then or soon.
pub const OWN_INDEX_BEATS: u32 = 3;

/// How long a pod must be silent before the others look through its sessions: two missed signs of life. They look when each
/// lease is over, and claim it in that moment.
pub const PEER_SILENCE: Duration = Duration::from_millis(2_500);

/// Sessions of silent pods that one pod looks at and claims at a time: each that it gets is a call of a model server.
pub const CLAIMS_AT_ONCE: usize = 32;

/// A process that did not run for this long was frozen; its sessions are others' by now, and its clients too.
pub const FROZEN: Duration = LEASE_TTL;

/// Events from other pods that wait to be passed on. Past it followers are sent to the log.
pub const PEER_EVENTS_MAX: usize = 65_536;

/// How long a client that was told to go may stay idle before its connection is closed.
pub const GO_AWAY_GRACE: Duration = Duration::from_secs(5);

/// The longest a client is asked to wait before it reconnects. The spread comes from telling clients one after the other;
/// this only parts those told in the same instant.
pub const RECONNECT_AFTER_MAX: Duration = Duration::from_millis(500);

/// Sessions one connection may read. A person's page reads one; a backend that multiplexes its users has room.
pub const SESSIONS_PER_CONNECTION_MAX: usize = 256;

/// Entries that wait for one connection, of all its sessions. Past it the reader drops to the log: a slow reader costs no
/// more than this.
pub const MAILBOX_MAX_ENTRIES: usize = 256;

/// Text that waits for one connection in those entries.
pub const MAILBOX_MAX_BYTES: usize = 256 * 1024;

/// Bytes a WebSocket reads at a time, and holds while idle. Ten thousand idle connections hold 10 MiB.
pub const WS_READ_BUFFER_BYTES: usize = 1024;

/// Largest frame the server sends; longer messages go out as fragments. The codec keeps a buffer of its largest frame.
pub const WS_FRAGMENT_BYTES: usize = 512;

/// Bytes of frames that wait in the codec of a client that does not read: one of the server's own, and the pongs before it.
pub const WS_UNSENT_MAX_BYTES: usize = 4 * WS_FRAGMENT_BYTES;

/// Bytes gathered for one write to a WebSocket's socket. The buffer is given back when it is empty.
pub const WS_WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// What of that buffer an idle connection keeps: enough for the frames of a short answer without asking the allocator.
pub const WS_WRITE_BUFFER_KEPT_BYTES: usize = 128;

/// How long a client may take no byte at all while the server has some for it.
pub const WRITE_STALL: Duration = Duration::from_secs(40);

/// What is read of a message that is too large, so that the close frame arrives instead of a reset.
pub const OVERSIZED_READ_ON: Duration = Duration::from_secs(1);

/// How long the store may take for one call. With the lease of 4 s it leaves room for two tries.
pub const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a call of unknown outcome is sent again before its caller is told.
pub const STORE_CALL_TRIES: u32 = 3;

/// Turns of one plain-text connection that wait for their answer.
pub const PLAIN_TURNS_MAX: usize = QUEUED_TURNS_MAX + 1;

/// Shards of the in-process maps: enough that two cores seldom meet.
pub const SHARDS: usize = 64;

/// Connections that are told politely that there is no room; those past them are closed without a word.
pub const REFUSED_CONNECTIONS_MAX: usize = 64;

/// How often the Memory store looks for expired sessions that nobody asks for.
pub const MEMORY_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often a connection is looked at whose first bytes came but do not tell yet what it speaks.
pub const OPENING_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long an HTTP/2 answer that is ready early waits for the rest of its request, so that a broken request is told so.
pub const UNREAD_BODY_WAIT: Duration = Duration::from_millis(200);

/// Headers of one HTTP/1 request.
pub const HEADERS_MAX: usize = 64;

/// Bytes of one HTTP/1 request's head, and of the connection's read buffer.
pub const HTTP1_BUFFER_BYTES: usize = 32 * 1024;

/// Bytes of one HTTP/2 request's headers.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// What an HTTP/2 client may send on one stream ahead of being read: one message of the default size, and some.
pub const GRPC_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What it may send on the whole connection: the memory one connection can claim.
pub const GRPC_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What the server holds for a stream whose client does not read.
pub const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// The least time an HTTP/2 client has for answering a ping: gRPC libraries answer from a busy event loop.
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a pod that drains looks whether it is empty.
pub const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Text of one `delta` entry. What gathers while an append is in flight becomes one entry; after an outage, or when a whole
/// answer is told again, more than one.
pub const DELTA_MAX_BYTES: usize = 128 * 1024;

/// First pause before an owner or a reader asks a store again that did not answer. Each further one is twice as long.
pub const STORE_RETRY_MIN: Duration = Duration::from_millis(50);

/// Longest such pause: well below a lease, so that an owner that comes back still has its own.
pub const STORE_RETRY_MAX: Duration = Duration::from_millis(1_000);

/// How often a lease's end is sent. Unheard, the lease is over by itself a few seconds later.
pub const END_LEASE_ATTEMPTS: u32 = 3;

/// Live entries a reader sets aside while it reads a page: some round trips' worth of the fastest answer. What is more is
/// read.
pub const READER_HELD_ENTRIES: usize = 64;

/// Ranges of the settings. What lies outside is a slip of the pen, or would take the gateway down.
pub mod settings {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    const fn seconds(least: u64, most: u64) -> RangeInclusive<Duration> {
        Duration::from_secs(least)..=Duration::from_secs(most)
    }

    /// Threads. Beyond the cores of the largest machine they only wait for each other.
    pub const WORKERS: RangeInclusive<i64> = 1..=512;

    /// TCP ports; 0 takes any free one.
    pub const PORT: RangeInclusive<i64> = 0..=65_535;

    /// Model servers of one gateway: more are a list nobody keeps in mind, and each costs a pool.
    pub const UPSTREAMS_MAX: usize = 16;

    /// Names of gateways and upstreams: one DNS label, since they become names of objects and metric labels.
    pub const NAME_MAX_BYTES: usize = 63;

    /// Addresses of Redis servers or sentinels: a gateway needs some to find the others.
    pub const REDIS_ENDPOINTS_MAX: usize = 32;

    /// Host names: DNS has no longer ones. The name of a Redis primary is one of these in practice.
    pub const HOST_MAX_BYTES: usize = 253;

    /// How long a session outlives its last turn. Below four leases a session could expire under its owner.
    pub const SESSION_TTL: RangeInclusive<Duration> = seconds(4 * super::LEASE_TTL.as_secs(), 30 * 86_400);

    /// Turns of history: a thousand are more than any model reads.
    pub const HISTORY_TURNS: RangeInclusive<i64> = 1..=1_000;

    /// Calls at once of one upstream. Each holds a connection and two file descriptors at worst.
    pub const POOL_CONCURRENT: RangeInclusive<i64> = 1..=10_000;

    /// Turns that wait for a call. Each holds its prompt.
    pub const POOL_QUEUED: RangeInclusive<i64> = 0..=100_000;

    /// How long a turn waits for a call: a person has gone after ten minutes.
    pub const QUEUE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);

    /// How long the steps of a call may take.
    pub const CALL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3_600);

    /// Further base URLs of one upstream. Services with more servers than that are found by DNS.
    pub const ENDPOINTS_MAX: usize = 64;

    /// Calls that a circuit breaker looks at.
    pub const BREAKER_WINDOW: RangeInclusive<i64> = 1..=10_000;

    /// A share that something happens at.
    pub const PERCENT: RangeInclusive<i64> = 1..=100;

    /// How long a circuit breaker stays open: after ten minutes nobody remembers why.
    pub const BREAKER_OPEN: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

    /// Calls that probe whether a model server is well again.
    pub const BREAKER_PROBES: RangeInclusive<i64> = 1..=1_000;

    /// Calls of one turn at one upstream.
    pub const ATTEMPTS: RangeInclusive<i64> = 1..=10;

    /// Further attempts by first ones, in percent: with 100 a broken server gets twice the load.
    pub const BUDGET: RangeInclusive<i64> = 0..=100;

    /// Turns of one batch.
    pub const BATCH_SIZE: RangeInclusive<i64> = 1..=256;

    /// How long a turn waits for others: what is longer than a second people see.
    pub const BATCH_DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

    /// Rate limits of one gateway: each is counted with each turn.
    pub const RATE_LIMITS_MAX: usize = 16;

    /// What a bucket holds, and what comes into it: up to here its level is a whole number that Lua can hold.
    pub const LIMIT_AMOUNT: RangeInclusive<i64> = 1..=100_000_000;

    /// The `max_tokens` of a request.
    pub const ANSWER_TOKENS: RangeInclusive<i64> = 1..=1_000_000;

    /// Time between two tokens of the built-in upstream.
    pub const DEMO_TOKEN_DELAY: RangeInclusive<Duration> = seconds(0, 60);

    /// Bytes of an answer of the built-in upstream.
    pub const DEMO_ANSWER_BYTES: RangeInclusive<i64> = 1..=super::ANSWER_MAX_BYTES as i64;

    /// How often a silent client is pinged. Below a second pings are most of the traffic.
    pub const PING_INTERVAL: RangeInclusive<Duration> = seconds(1, 3_600);

    /// How long a pong may take.
    pub const PONG_TIMEOUT: RangeInclusive<Duration> = seconds(1, 600);

    /// When TCP probes: the kernel counts whole seconds.
    pub const TCP_KEEPALIVE: RangeInclusive<Duration> = seconds(1, 7_200);

    /// The times of a drain: an hour is what cluster autoscalers and eviction allow at most.
    pub const DRAIN: RangeInclusive<Duration> = seconds(0, 3_600);

    /// The largest message of a client. A connection may hold one while it comes in.
    pub const MESSAGE_BYTES: RangeInclusive<i64> = 1_024..=16 * 1024 * 1024;

    /// The largest body of a request.
    pub const BODY_BYTES: RangeInclusive<i64> = 1_024..=64 * 1024 * 1024;

    /// Connections of one pod. A million take 10 GB.
    pub const CONNECTIONS: RangeInclusive<i64> = 1..=1_000_000;

    /// Streams at once in one HTTP/2 connection.
    pub const STREAMS: RangeInclusive<i64> = 1..=10_000;

    /// How long the head of a request may take.
    pub const HEADER_TIMEOUT: RangeInclusive<Duration> = seconds(1, 300);

    /// Origins that may open a WebSocket: each is compared at each upgrade.
    pub const ORIGINS_MAX: usize = 64;
}

/// The shortest time a client is asked to wait when a model server has no room: less would only add to the load.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The longest such time, whatever the queue or the model server says: a person will not wait longer.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// A line, and the data of one event, of a model server's stream. The largest seen are tool arguments of some 100 KiB.
pub const UPSTREAM_LINE_MAX_BYTES: usize = 1024 * 1024;

/// A model server's answer that comes in one piece: the largest answer, every character escaped.
pub const UPSTREAM_JSON_MAX_BYTES: usize = 8 * 1024 * 1024;

/// What is read of a model server's error answer.
pub const UPSTREAM_ERROR_MAX_BYTES: usize = 16 * 1024;

/// What of a model server's own words a client is told.
pub const UPSTREAM_MESSAGE_MAX_BYTES: usize = 512;

/// Bytes read from a model server at a time, and the most its response head may have.
pub const UPSTREAM_READ_BUFFER_BYTES: usize = 64 * 1024;

/// How long an idle connection to a model server is kept. Common servers close theirs after 5 s.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(4);

/// How long an answer that has told its finish reason may take for its last words (token counts, end mark).
pub const UPSTREAM_LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the rest of a finished answer may take to arrive, so that its connection can be used again.
pub const UPSTREAM_REST: Duration = Duration::from_millis(250);

/// How often an API key's file is looked at.
pub const KEY_FILE_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// An API key's file. Keys have some 200 bytes.
pub const KEY_FILE_MAX_BYTES: u64 = 16 * 1024;

/// Events of a gRPC stream after which its client is listened to, however many more there are.
pub const GRPC_EVENTS_BURST: usize = 64;

/// How long a gRPC call may take until its answer begins: the request comes in, the store is asked. A large message over a
/// slow line takes most of it.
pub const GRPC_CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests to the health and reflection services: names of services and symbols.
pub const GRPC_SMALL_MESSAGE_BYTES: usize = 16 * 1024;

/// How long a gRPC connection takes new calls, give or take a tenth: long enough that reconnecting costs nothing, short
/// enough that new pods get their share within the hour.
pub const GRPC_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

// Sessions in Redis.

/// How long one step of a connection to Redis may take: name, TCP, TLS, greeting.
pub const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// First pause before Redis is connected to again. Each further one is twice as long, and random.
pub const REDIS_RECONNECT_MIN: Duration = Duration::from_millis(50);

/// Longest such pause: well below a lease, so that an owner is back before it has lost its own.
pub const REDIS_RECONNECT_MAX: Duration = Duration::from_secs(1);

/// How long the health of a pod tells what Redis refused last: some signs of life, each of which finds it again.
pub const REDIS_REFUSAL_SHOWN: Duration = Duration::from_secs(5);

/// How long a connection must have lasted for the pauses to begin small again: what comes up and fails at once is a storm.
pub const REDIS_CONNECTION_STABLE: Duration = Duration::from_secs(2);

/// Commands that wait for one server. A second of what one Redis can do at best; past it something stands still.
pub const REDIS_QUEUE_COMMANDS: usize = 100_000;

/// Bytes of those commands.
pub const REDIS_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Commands of one pipeline: what a server does in about a millisecond, so that replies come soon.
pub const REDIS_PIPELINE_COMMANDS: usize = 1_000;

/// Bytes of one pipeline, above which no further command joins it.
pub const REDIS_PIPELINE_BYTES: usize = 1024 * 1024;

/// Pipelines under way at once: what waits meanwhile becomes one write. A command waits for a sixteenth of a round trip at most
/// before it leaves, also where Redis is far; near, there are seldom more than two.
pub const REDIS_PIPELINES_MAX: usize = 16;

/// How long a connection is silent before it is asked whether it lives.
pub const REDIS_PING_INTERVAL: Duration = Duration::from_secs(1);

/// When TCP begins to probe a silent connection to Redis.
pub const REDIS_TCP_KEEPALIVE: Duration = Duration::from_secs(10);

/// How often it probes then. The gateway's own pings find out sooner; this is for what they do not see.
pub const REDIS_TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Largest credential or certificate file: chains of public authorities have some 200 KiB.
pub const REDIS_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// How often a sentinel is asked whether the primary is still the same: an old one takes writes that it is to lose until it
/// hears of its successor.
pub const REDIS_PRIMARY_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The least time between two looks at a cluster's slots.
pub const REDIS_SLOTS_PAUSE: Duration = Duration::from_millis(200);

/// How often a cluster's slots are looked at without a reason.
pub const REDIS_SLOTS_INTERVAL: Duration = Duration::from_secs(30);

/// Channels that are subscribed to in one write.
pub const REDIS_SUBSCRIBE_BATCH: usize = 1_000;

/// How long a channel that a server would not serve waits before it is asked for again.
pub const REDIS_SUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);

/// How long a pod's index of its sessions outlives its last heartbeat: as long as unfinished sessions do at least.
pub const POD_INDEX_TTL: Duration = UNFINISHED_TTL;

/// Members of the index in one command.
pub const POD_INDEX_BATCH: usize = 500;

/// After how many heartbeats a pod's index is written again in whole, in case that the server has lost it.
pub const POD_INDEX_REPEAT_BEATS: u64 = 10;

/// Pods that one heartbeat tells of, the longest silent first.
pub const PODS_MAX: usize = 1_000;

// Micro-batching.

/// Asks over which is smoothed how busy a model server is: about a second at the loads where that matters.
pub const BATCH_BUSY_ASKS: f64 = 32.0;

/// The part of a model server's room that is taken on average, from which on it is busy: places may be held back for a moment
/// to fill batches. Below it calls seldom wait for each other.
pub const BATCH_BUSY: f64 = 0.6;

/// How long a model server that takes no batches is asked one by one before it is tried again: it may have been replaced.
pub const BATCH_ALONE: Duration = Duration::from_secs(60);

/// Batches in a row that a model server refuses before it counts as one that takes none: one bad prompt refuses one.
pub const BATCH_REFUSALS_MAX: u32 = 3;

/// A model server's answer to a batch that comes in one piece: some of the largest answers, every character escaped.
pub const BATCH_JSON_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Numbers of calls at once that are told apart when a model server's useful concurrency is measured; more count as this many.
pub const ROOM_LEVELS_MAX: usize = 128;

/// Calls at one number of calls at once before anything follows from their times.
pub const ROOM_SAMPLES_MIN: f64 = 8.0;

/// How much later than the best one a first token may come, as a part of it, before that counts as a wait in the model server:
/// answers differ by themselves.
pub const ROOM_TOLERANCE: f64 = 0.2;

/// After how many calls for which there was just room one more is sent than there is room for, at most: a larger server is found
/// out within a minute or so, and hardly an ask notices.
pub const ROOM_PROBE_CALLS: u32 = 32;

/// After which time what was measured at a number of calls is forgotten: the model or the machine may be another one.
pub const ROOM_FORGET: Duration = Duration::from_secs(30);

/// Latest asks by which is judged whether the target for the time to the first token is kept: enough for 99 of 100.
pub const TARGET_WINDOW_ASKS: usize = 256;

/// Asks after which the size of batches and their window may grow by a step.
pub const TARGET_STEP_ASKS: usize = 16;

// Calls of model servers.

/// Further attempts that a full retry budget allows: as many as a breaker looks at, so that what fails until it opens can be
/// made again.
pub const RETRY_RESERVE: u32 = 50;

/// The bound of the first random pause before a call is made again at the same endpoint. Each further one is twice as long.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest such bound: the first word has ten seconds in all.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How long a call waits for an endpoint that asks it to: what takes longer, the next upstream answers sooner.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// How much of the mean load one endpoint may have before sessions with affinity go elsewhere, in percent: the paper's c. With
/// less, more sessions lose their prompt cache; with more, some wait while others have room.
pub const AFFINITY_LOAD_PERCENT: usize = 125;

/// The share of its places up to which no endpoint counts as loaded, in percent: at low load the mean says nothing.
pub const AFFINITY_FREE_PERCENT: usize = 25;

/// Over how long the pace at which asks are served is measured at least: some batches of a model server without continuous
/// batching.
pub const QUEUE_PACE_WINDOW: Duration = Duration::from_millis(250);

/// How long an endpoint that said it has enough (HTTP 429) is asked after the others, where it names no time.
pub const ENDPOINT_REST: Duration = Duration::from_secs(1);

/// How often the hosts of model servers are looked up again: a pod that is gone gets no calls soon after, and name services
/// bear it.
pub const DNS_LOOKUP_INTERVAL: Duration = Duration::from_secs(5);

/// How long such a look may take. What was found last is used meanwhile.
pub const DNS_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an answer that broke off is continued or told anew in one pod: a model server that always breaks off must come
/// to an end.
pub const ANSWER_RESUMES_MAX: u32 = 3;

/// Turns a second of which is looked up whether they are known although there is no room for them: a repeat must find its
/// turn, a flood of new ones must not reach the store. What is above it is refused, and may be repeated.
pub const DOOR_LOOKS_PER_SECOND: u32 = 1_000;

// Rate limits.

/// How long a decision of the store about a rate limit may take, before `onStoreFailure` counts: a client waits meanwhile, and a
/// store that lives answers in a few milliseconds.
pub const LIMIT_DECISION_TIMEOUT: Duration = Duration::from_millis(250);

/// How often a store that does not decide is asked whether it does again. Until then each pod decides alone.
pub const LIMIT_PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// After how many signs of life a limit is divided by fewer pods: one that is late is not gone.
pub const LIMIT_FEWER_PODS_BEATS: u32 = 5;

/// How long a request that took from its buckets is recognised: clients that lost an answer try again within minutes.
pub const LIMIT_KEPT_TTL: Duration = Duration::from_secs(600);

/// How long tokens that a turn took wait to be settled: as long as it can be unfinished. After that they stay spent.
pub const LIMIT_HELD_TTL: Duration = UNFINISHED_TTL;

/// How long a bucket's key outlives the time when it is full: clocks of servers differ.
pub const LIMIT_BUCKET_MARGIN: Duration = Duration::from_secs(1);

/// Buckets and marks that one pod keeps itself: some 30 MB. Past it what is new is not counted.
pub const LIMIT_LOCAL_ENTRIES_MAX: usize = 262_144;

/// Decisions of one call of the store: it does other things too, and this many take it about a millisecond.
pub const LIMIT_CALL_DECISIONS: usize = 256;

/// Calls for decisions under way at once. What comes in meanwhile goes together.
pub const LIMIT_CALLS_MAX: usize = 4;

/// Decisions that have gathered before a further call is sent while others are under way: calls for each alone would cost
/// the store several times as much.
pub const LIMIT_CALL_FULL: usize = 32;

/// Decisions that wait for a call. A second of what one Redis can do at best.
pub const LIMIT_QUEUE_MAX: usize = 100_000;

/// Tokens that are taken ahead for an answer whose request does not say how long it may be, and again each time they run short.
pub const LIMIT_ANSWER_CHUNK: u64 = 256;

/// Bytes of text that count as one token while the model server has not told how many there were.
pub const LIMIT_BYTES_PER_TOKEN: u64 = 4;

/// The end of an answer that passes through in which the model server's count of tokens is looked for.
pub const LIMIT_USAGE_TAIL_BYTES: usize = 2_048;
