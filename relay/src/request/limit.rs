//! Limits that a request must keep: before any work those of the whole relay, after the decision those of its service.

use http::{HeaderMap, header};

use super::record::Record;
use super::respond::Refusal;
use crate::relay::Relay;
use crate::settings::{Limits, Service};

/// What names, values and separators of all fields take.
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Relay-wide limits: requests in flight, and the head's size.
pub fn before_work(
    relay: &Relay,
    limits: &Limits,
    head: &http::request::Parts,
    record: &mut Record,
) -> Result<(), Refusal> {
    record.admitted(relay.admission().request().ok_or(Refusal::Overloaded)?);
    if head.headers.len() > limits.fields || size(&head.headers) > limits.headers {
        return Err(Refusal::FieldsTooLarge);
    }
    if !relay.audit().is_healthy() {
        return Err(Refusal::AuditFull);
    }
    Ok(())
}

/// A body that says it is too large is refused before a byte of it is read; one that does not say is counted as it comes.
pub fn body_size(service: &Service, headers: &HeaderMap) -> Result<(), Refusal> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (service.body_limit, declared) {
        (Some(limit), Some(declared)) if declared > limit => Err(Refusal::BodyTooLarge(limit)),
        _ => Ok(()),
    }
}
