//! Limits that a request must keep: before any work those of the whole relay, after the decision those of its service, and what one
//! caller may take of it.

use http::{HeaderMap, header};

use super::authorize::Permitted;
use super::record::Record;
use super::respond::Refusal;
use crate::relay::Relay;
use crate::settings::{Limits, Service};
use crate::tunnel::registry::Full;

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

/// A place at the service, as long as the request lives.
pub fn place(
    relay: &Relay,
    limits: &Limits,
    permitted: &Permitted,
    record: &mut Record,
) -> Result<(), Refusal> {
    match relay.registry().place(permitted.service(), permitted.principal(), limits.requests) {
        Ok(place) => {
            record.placed(place);
            Ok(())
        }
        Err(Full::Service(limit)) => Err(Refusal::ServiceFull(limit)),
        Err(Full::Share(limit)) => Err(Refusal::ShareTaken(limit)),
    }
}
