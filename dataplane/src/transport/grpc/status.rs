//! Refusals as gRPC statuses: the code as ErrorInfo's reason, the time to wait as RetryInfo.

use std::{collections::HashMap, time::Duration};

use chatgateway_core::error::{ErrorCode, Refusal};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// ErrorInfo's domain.
pub const DOMAIN: &str = "chatgateway.dev";

/// The status of a refusal.
pub(super) fn status(refusal: &Refusal) -> Status {
    let expected = refusal.expected.map(|seq| ("expected".to_owned(), seq.to_string()));
    let metadata: HashMap<_, _> = expected.into_iter().collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(refusal.code.as_str(), DOMAIN, metadata);
    if let Some(ms) = refusal.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(ms)));
    }
    Status::with_error_details(Code::from_i32(refusal.code.grpc_status()), refusal.message.clone(), details)
}

/// A status of the gateway's own, without a refusal's counters.
pub(super) fn error(code: ErrorCode, message: &str) -> Status {
    status(&Refusal::new(code, message))
}

/// What the gateway says in place of a status that the codec made of a message it could not take. The gateway's own
/// statuses have details.
pub(super) fn of_codec(status: &Status) -> Option<Status> {
    let code = match status.code() {
        Code::OutOfRange => ErrorCode::TooLarge,
        Code::Internal => ErrorCode::InvalidRequest,
        _ => return None,
    };
    status.details().is_empty().then(|| error(code, status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status_and_reason() {
        for code in ErrorCode::all() {
            let status = error(code, "m");
            assert_eq!(status.code() as i32, code.grpc_status());
            assert_eq!(status.get_details_error_info().unwrap().reason, code.as_str());
        }
    }
}
