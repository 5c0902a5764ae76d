//! From refusal to answer: the row of the one [`table`], its header fields and problem document (RFC 9457), the challenges of RFC 6750
//! and 9470, and the record that every answer carries to its end.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use postern_base::id::DecisionId;
use postern_gate::policy::{Closest, DenialKind};
use serde::Serialize;

use super::body::ResponseBody;
use super::record::Record;
use super::upgrade::TCP_UPGRADE;
use crate::public::Connection;

mod table;

pub use table::Refusal;

use table::row;

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<DecisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closest: Option<&'a Closest>,
}

/// Turns a refusal into the answer, counts it and closes the record.
pub fn refuse(
    connection: &Arc<Connection>,
    refusal: &Refusal,
    is_head: bool,
    mut record: Record,
) -> Response<ResponseBody> {
    let row = row(refusal);
    record.refused(row.kind);
    let relay = &connection.worker.relay;
    relay.metrics().refusals.get_or_create(&crate::metrics::ReasonLabels { reason: row.kind }).inc();
    if matches!(
        refusal,
        Refusal::NoToken | Refusal::BadToken(_) | Refusal::IssuerUnavailable(_) | Refusal::NotFound
    ) {
        record.refused_unproved(row.kind, &row.detail);
    }
    let closest = if let Refusal::Denied(denial) = refusal { denial.closest() } else { None };
    let problem = Problem {
        r#type: format!("urn:postern:{}", row.kind),
        title: row.title,
        status: row.status.as_u16(),
        detail: &row.detail,
        request_id: record.shown_id(),
        decision_id: record.decision(),
        closest,
    };
    let text = serde_json::to_vec(&problem).unwrap_or_default();
    let text = if is_head { Bytes::new() } else { text.into() };
    let mut response = Response::new(ResponseBody::refusal(text, connection.clock.unsent()));
    *response.status_mut() = row.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = row.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(hop) = &row.hop {
        set(headers, HeaderName::from_static("proxy-status"), &format!("{}; error={}", hop.name, hop.error));
    }
    if let Refusal::Denied(denial) = refusal
        && let DenialKind::MethodNotAllowed { allow } = denial.kind()
    {
        set(headers, header::ALLOW, &allow.join(", "));
    }
    if matches!(refusal, Refusal::UpgradeRequired) && !connection.is_http2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, TCP_UPGRADE);
    }
    if matches!(refusal, Refusal::OwnMethod) {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if let Some(challenge) = challenge(refusal) {
        let origin = relay.snapshot().settings.url.origin().to_owned();
        let path = record.metadata_path();
        let metadata = format!("resource_metadata=\"{origin}/.well-known/oauth-protected-resource{path}\"");
        let challenge = if challenge.is_empty() { metadata } else { format!("{challenge}, {metadata}") };
        set(headers, header::WWW_AUTHENTICATE, &format!("Bearer {challenge}"));
    }
    // The rest of a body that nobody reads, or of a head that can be read in two ways, would be taken for the next request.
    if matches!(
        refusal,
        Refusal::Malformed(_) | Refusal::BodyStalled | Refusal::BodyBroken | Refusal::BodyTooLarge(_)
    ) {
        record.close_connection(headers);
    }
    finish(response, record)
}

/// The parameters of the Bearer challenge (RFC 6750, RFC 9470), without the metadata's address.
fn challenge(refusal: &Refusal) -> Option<String> {
    if matches!(refusal, Refusal::NoToken) {
        return Some(String::new());
    }
    if let Refusal::BadToken(error) = refusal {
        let description = quotable(&error.to_string());
        return Some(format!("error=\"invalid_token\", error_description=\"{description}\""));
    }
    let Refusal::Denied(denial) = refusal else { return None };
    match denial.kind() {
        DenialKind::MissingScope { scope } => {
            Some(format!("error=\"insufficient_scope\", scope=\"{}\"", quotable(scope)))
        }
        DenialKind::StepUp { acr_values, max_age } => {
            let acr = acr_values.as_ref().map(|acr| format!("acr_values=\"{}\"", quotable(acr)));
            let age = max_age.as_ref().map(|age| format!("max_age=\"{age}\""));
            let error = "error=\"insufficient_user_authentication\"".to_owned();
            Some([Some(error), acr, age].into_iter().flatten().collect::<Vec<_>>().join(", "))
        }
        DenialKind::NotVisible
        | DenialKind::DeniedByRule
        | DenialKind::NoRule
        | DenialKind::MethodNotAllowed { .. } => None,
    }
}

/// Text for a quoted string (RFC 9110, 5.6.4): visible ASCII without quote and backslash.
fn quotable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' | '\\' => '\'',
            ' '..='~' => c,
            _ => '?',
        })
        .collect()
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The last touch to every answer: its id, and the record that lives as long as its body.
pub fn finish(response: Response<ResponseBody>, mut record: Record) -> Response<ResponseBody> {
    record.answered(response.status());
    let (mut head, body) = response.into_parts();
    head.headers.insert(HeaderName::from_static("x-request-id"), record.id_field().clone());
    // What follows on a connection that was to be switched is not for us (RFC 9110, 7.8).
    if record.asked_to_switch() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        record.close_connection(&mut head.headers);
    }
    Response::from_parts(head, body.with_record(record))
}
