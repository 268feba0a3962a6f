//! Refusals as gRPC statuses: the code as ErrorInfo's reason, the time to wait as RetryInfo.

use std::{collections::HashMap, time::Duration};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::RETRY_AFTER_DEFAULT,
};
use http::HeaderMap;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{gateway::Gateway, transport::standing::write_headers};

/// ErrorInfo's domain.
pub const DOMAIN: &str = "chatgateway.dev";

/// The status of a refusal.
pub(super) fn status(refusal: &Refusal) -> Status {
    let expected = refusal.expected.map(|seq| ("expected".to_owned(), seq.to_string()));
    let metadata: HashMap<_, _> = expected.into_iter().collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(refusal.code.as_str(), DOMAIN, metadata);
    // As over HTTP: those that are about room and time always say when.
    let always = matches!(refusal.code.http_status(), 429 | 503);
    let told = refusal.retry_after_ms.map(Duration::from_millis);
    if let Some(wait) = told.or(always.then_some(RETRY_AFTER_DEFAULT)) {
        details.set_retry_info(Some(wait));
    }
    let code = Code::from_i32(refusal.code.grpc_status());
    let mut metadata = HeaderMap::new();
    if let Some(standings) = &refusal.standings {
        write_headers(&mut metadata, standings);
    }
    let metadata = MetadataMap::from_headers(metadata);
    Status::with_error_details_and_metadata(code, refusal.message.clone(), details, metadata)
}

/// The status of a refusal that is made here, counted.
pub(super) fn refused(gateway: &Gateway, code: ErrorCode, message: impl Into<String>) -> Status {
    status(&gateway.refused(Refusal::new(code, message)))
}

/// The status of a message from a client that the codec did not take, in the terms of our own table. The codec's own
/// statuses are told apart by having no details: all of ours have some.
pub(super) fn not_taken(gateway: &Gateway, error: Status) -> Status {
    if !error.details().is_empty() {
        return error;
    }
    match error.code() {
        Code::OutOfRange => {
            gateway.metrics.limit_hit("message_bytes");
            let max = gateway.settings().limits.max_message_bytes;
            refused(gateway, ErrorCode::TooLarge, format!("the message is larger than {max} bytes"))
        }
        Code::Internal => {
            refused(gateway, ErrorCode::InvalidRequest, format!("not a message of chat.v1: {}", error.message()))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status_and_reason() {
        for code in ErrorCode::all() {
            let status = status(&Refusal::new(code, "m"));
            assert_eq!(status.code() as i32, code.grpc_status());
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (code.as_str(), DOMAIN));
            let always = [429, 503].contains(&code.http_status());
            assert_eq!(status.get_details_retry_info().is_some(), always, "{code:?}");
        }
    }

    #[test]
    fn what_a_refusal_says_is_in_the_details() {
        let refusal = Refusal { expected: Some(3), ..Refusal::new(ErrorCode::SeqGap, "m") }.retry_after_ms(250);
        let status = status(&refusal);
        assert_eq!(status.get_details_error_info().unwrap().metadata["expected"], "3");
        let wait = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(wait, Some(Duration::from_millis(250)));
    }
}
