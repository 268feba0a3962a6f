//! Every decision of the data plane, without I/O.
//!
//! Nothing here opens a socket, spawns a task or reads a clock: what happens comes in as an argument (with the time, where
//! time matters), and what is to be done goes out as a value. The shells around it (`chatgateway-dataplane`) stay thin.
//!
//! * [`log`]: the session log. Its store scripts as pure functions, its owner and its readers as state machines.
//! * [`batch`]: which asks go to a model server as one call, and when.
//! * [`drain`]: how a pod leaves.
//! * [`error`]: one table of error codes with what each is on every wire, and the WebSocket close codes.
//! * [`limiter`]: rate limits, as token buckets.
//! * [`pool`]: the endpoints of an upstream, who may call which, and who waits: joins the next three.
//! * [`queue`]: who is served next, who waits, and who is refused.
//! * [`breaker`]: when an endpoint is not called for a while.
//! * [`balance`]: which endpoint a call gets.
//! * [`retry`]: which calls are made again, and when.
//! * [`door`]: how many of those that are refused may ask whether their turn is known.
//! * [`discovery`]: which addresses are endpoints.
//! * [`random`]: numbers that a seed gives.
//! * [`sse`]: reads server-sent events from any chunks, with a bound.
//! * [`limits`]: every bound, with the reason for its size.

pub mod balance;
pub mod batch;
pub mod breaker;
pub mod discovery;
pub mod door;
pub mod drain;
pub mod error;
pub mod limiter;
pub mod limits;
pub mod log;
pub mod pool;
pub mod queue;
pub mod random;
pub mod retry;
pub mod sse;
