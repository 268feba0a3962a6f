//! How deep JSON from clients may be nested, whichever transport it comes by.

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::JSON_DEPTH_MAX,
};

/// Refuses JSON that is nested beyond reason; `what` names it.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`].
pub fn check(what: &str, json: &[u8]) -> Result<(), Refusal> {
    if depth_exceeds(json, JSON_DEPTH_MAX) {
        let message = format!("{what} is nested more than {JSON_DEPTH_MAX} deep");
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// Whether JSON text is nested deeper than `max`, found without nesting itself.
fn depth_exceeds(json: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings_only() {
        assert!(!depth_exceeds(br#"{"a":[["[[[[[\"[[["]]}"#, 3));
        assert!(depth_exceeds(br#"{"a":[[[]]]}"#, 3));
        assert!(!depth_exceeds("[]".repeat(1_000).as_bytes(), 1));
        assert!(depth_exceeds("[".repeat(10_000).as_bytes(), 128));
    }
}
