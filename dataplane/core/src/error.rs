//! One table of error codes, with what each is on every wire, and the WebSocket close codes.

use crate::limiter::verdict::Standings;

/// What went wrong, as clients of every transport are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// The request itself is wrong.
    InvalidRequest,
    /// No credentials, or wrong ones.
    Unauthenticated,
    /// The credentials do not allow this.
    PermissionDenied,
    /// No such session, turn, model or path.
    NotFound,
    /// The turn's id was used with another text.
    TurnConflict,
    /// `seq` is not the next one.
    SeqGap,
    /// The log no longer reaches back to that position.
    NotResumable,
    /// A message, body or answer above its bound.
    TooLarge,
    /// A rate limit.
    RateLimited,
    /// Too many turns wait in this session.
    SessionBusy,
    /// The gateway or its model servers have no room.
    Overloaded,
    /// This pod goes away; another one answers.
    Draining,
    /// The session store does not answer.
    StoreUnavailable,
    /// The model server failed too often of late.
    CircuitOpen,
    /// The model server cannot be reached or answered with an error.
    UpstreamUnavailable,
    /// The model server did not answer in time.
    UpstreamTimeout,
    /// A fault of the gateway's own.
    Internal,
}

/// gRPC status numbers, as google.rpc.Code has them.
mod grpc {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const NOT_FOUND: i32 = 5;
    pub const ALREADY_EXISTS: i32 = 6;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const INTERNAL: i32 = 13;
    pub const UNAVAILABLE: i32 = 14;
    pub const UNAUTHENTICATED: i32 = 16;
}

/// The table: code, name, HTTP status, gRPC status, whether the same request may succeed later.
const TABLE: [(ErrorCode, &str, u16, i32, bool); 17] = [
    (ErrorCode::InvalidRequest, "invalid_request", 400, grpc::INVALID_ARGUMENT, false),
    (ErrorCode::Unauthenticated, "unauthenticated", 401, grpc::UNAUTHENTICATED, false),
    (ErrorCode::PermissionDenied, "permission_denied", 403, grpc::PERMISSION_DENIED, false),
    (ErrorCode::NotFound, "not_found", 404, grpc::NOT_FOUND, false),
    (ErrorCode::TurnConflict, "turn_conflict", 409, grpc::ALREADY_EXISTS, false),
    (ErrorCode::SeqGap, "seq_gap", 409, grpc::FAILED_PRECONDITION, false),
    (ErrorCode::NotResumable, "not_resumable", 410, grpc::OUT_OF_RANGE, false),
    (ErrorCode::TooLarge, "too_large", 413, grpc::RESOURCE_EXHAUSTED, false),
    (ErrorCode::RateLimited, "rate_limited", 429, grpc::RESOURCE_EXHAUSTED, true),
    (ErrorCode::SessionBusy, "session_busy", 429, grpc::RESOURCE_EXHAUSTED, true),
    (ErrorCode::Overloaded, "overloaded", 503, grpc::UNAVAILABLE, true),
    (ErrorCode::Draining, "draining", 503, grpc::UNAVAILABLE, true),
    (ErrorCode::StoreUnavailable, "store_unavailable", 503, grpc::UNAVAILABLE, true),
    (ErrorCode::CircuitOpen, "circuit_open", 503, grpc::UNAVAILABLE, true),
    (ErrorCode::UpstreamUnavailable, "upstream_unavailable", 502, grpc::UNAVAILABLE, true),
    (ErrorCode::UpstreamTimeout, "upstream_timeout", 504, grpc::DEADLINE_EXCEEDED, true),
    (ErrorCode::Internal, "internal", 500, grpc::INTERNAL, true),
];

impl ErrorCode {
    /// Every code, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, u16, i32, bool) {
        // The table is in the enum's order; a test holds it so.
        &TABLE[self as usize]
    }

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The code of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Its HTTP status.
    #[must_use]
    pub fn http_status(self) -> u16 {
        self.row().2
    }

    /// Its gRPC status number.
    #[must_use]
    pub fn grpc_status(self) -> i32 {
        self.row().3
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn retryable(self) -> bool {
        self.row().4
    }
}

/// Why a request was refused: nothing of it was accepted, and it may be repeated under the same ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What went wrong.
    pub code: ErrorCode,
    /// For a person: what was wrong, where, and what to do.
    pub message: String,
    /// When to try again.
    pub retry_after_ms: Option<u64>,
    /// The `seq` that would be right, with [`ErrorCode::SeqGap`].
    pub expected: Option<u64>,
    /// How the rate limits stand, with [`ErrorCode::RateLimited`] and with what was refused after they were asked.
    pub standings: Option<Box<Standings>>,
}

impl Refusal {
    /// A refusal with a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None, expected: None, standings: None }
    }

    /// The same, with a time to wait.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

/// WebSocket close codes. 3000 to 3499 ask the client to reconnect, 3500 to 3999 not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The client closed, or there is nothing left to say.
    Normal = 1000,
    /// The server goes away: reconnect.
    GoingAway = 1001,
    /// A frame broke the protocol.
    Protocol = 1002,
    /// Binary frames are not understood.
    Unsupported = 1003,
    /// Text that is not UTF-8.
    InvalidPayload = 1007,
    /// Policy or authentication.
    Policy = 1008,
    /// A message above its bound.
    TooLarge = 1009,
    /// A fault of the server's own, or a turn that failed on a plain connection.
    Internal = 1011,
    /// The server restarts: reconnect.
    Restart = 1012,
    /// Overload: reconnect later.
    TryLater = 1013,
    /// The client reads too slowly and the log no longer reaches back.
    Slow = 3008,
    /// No pong came.
    NoPong = 3012,
}

impl CloseCode {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// How a plain-text connection, which has no error channel, is closed for an error.
    #[must_use]
    pub fn for_error(code: ErrorCode) -> Self {
        match code {
            ErrorCode::TooLarge => Self::TooLarge,
            ErrorCode::Draining => Self::Restart,
            ErrorCode::RateLimited
            | ErrorCode::SessionBusy
            | ErrorCode::Overloaded
            | ErrorCode::StoreUnavailable
            | ErrorCode::CircuitOpen => Self::TryLater,
            ErrorCode::UpstreamUnavailable | ErrorCode::UpstreamTimeout | ErrorCode::Internal => Self::Internal,
            _ => Self::Policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_enums_order_and_names_are_unique() {
        for (i, code) in ErrorCode::all().enumerate() {
            assert_eq!(code as usize, i, "{code:?}");
            assert_eq!(ErrorCode::from_name(code.as_str()), Some(code));
        }
        assert_eq!(ErrorCode::from_name("nonsense"), None);
    }

    #[test]
    fn what_carries_retry_after_is_retryable() {
        for code in ErrorCode::all().filter(|c| [429, 503].contains(&c.http_status())) {
            assert!(code.retryable(), "{code:?}");
        }
    }
}
