//! From refusal to answer: the row of the one [`table`], its header fields and problem document (RFC 9457), the challenges of RFC 6750,
//! 9449 and 9470, and the record that every answer carries to its end.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use postern_base::id::DecisionId;
use postern_gate::policy::{Closest, Denial, DenialKind};
use postern_gate::token::{Algorithm, Scheme};
use serde::Serialize;

use super::body::ResponseBody;
use super::cors;
use super::record::Record;
use super::upgrade::TCP_UPGRADE;
use crate::public::Connection;

mod cut;
mod refusal;
mod table;

pub use refusal::Refusal;

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
    /// The rule that denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
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
        Refusal::NoToken
            | Refusal::BadToken(_)
            | Refusal::IssuerUnavailable(_)
            | Refusal::NotFound
            | Refusal::Cut(_)
    ) {
        let whole = if let Refusal::BadToken(error) = refusal { Some(error.to_string()) } else { None };
        record.refused_unproved(row.kind, whole.as_ref().unwrap_or(&row.detail));
    }
    let denial = if let Refusal::Denied(denial) = refusal { Some(denial) } else { None };
    let problem = Problem {
        r#type: format!("urn:postern:{}", row.kind),
        title: row.title,
        status: row.status.as_u16(),
        detail: &row.detail,
        request_id: record.shown_id(),
        decision_id: record.decision(),
        rule: denial.and_then(Denial::rule),
        closest: denial.and_then(Denial::closest),
    };
    let text = serde_json::to_vec(&problem).unwrap_or_default();
    let text = if is_head { Bytes::new() } else { text.into() };
    let mut response = Response::new(ResponseBody::refusal(text, connection.clock.unsent()));
    *response.status_mut() = row.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    cors::varies(headers);
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
    if let Refusal::OwnMethod(allow) = refusal {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    if let Some(challenge) = challenge(refusal) {
        let snapshot = relay.snapshot();
        let (origin, path) = (snapshot.settings.url.origin(), record.metadata_path());
        let metadata = format!("resource_metadata=\"{origin}/.well-known/oauth-protected-resource{path}\"");
        let algorithms = snapshot.issuers.proof_algorithms();
        for challenge in challenges(&challenge, row.status, record.scheme(), algorithms, &metadata) {
            if let Ok(field) = HeaderValue::from_str(&challenge) {
                headers.append(header::WWW_AUTHENTICATE, field);
            }
        }
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

/// A challenge for each scheme that would help: what was wrong is told of the scheme that was used (RFC 9449, 7.1 and 7.2).
fn challenges(
    wrong: &str,
    status: StatusCode,
    used: Option<Scheme>,
    algorithms: &[Algorithm],
    metadata: &str,
) -> Vec<String> {
    let of = |scheme: Scheme, parameters: [&str; 3]| {
        let parameters: Vec<&str> = parameters.into_iter().filter(|one| !one.is_empty()).collect();
        format!("{} {}", scheme.as_str(), parameters.join(", "))
    };
    let names: Vec<String> = algorithms.iter().map(ToString::to_string).collect();
    let algorithms = format!("algs=\"{}\"", names.join(" "));
    if used == Some(Scheme::Dpop) {
        return vec![of(Scheme::Dpop, [wrong, &algorithms, metadata])];
    }
    let mut all = vec![of(Scheme::Bearer, [wrong, "", metadata])];
    if status == StatusCode::UNAUTHORIZED && !names.is_empty() {
        all.push(of(Scheme::Dpop, ["", &algorithms, metadata]));
    }
    all
}

/// What was wrong, as parameters of a challenge (RFC 6750, RFC 9449, RFC 9470), without algorithms and the metadata's address.
fn challenge(refusal: &Refusal) -> Option<String> {
    if matches!(refusal, Refusal::NoToken) {
        return Some(String::new());
    }
    if let Refusal::BadToken(error) = refusal {
        let description = quotable(&error.told());
        return Some(format!("error=\"{}\", error_description=\"{description}\"", error.challenge()));
    }
    if let Refusal::Cut(cut) = refusal {
        return cut::invalid_token(*cut)
            .map(|why| format!("error=\"invalid_token\", error_description=\"{why}\""));
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
    if let Some(limits) = record.take_limits() {
        limits.put(&mut head.headers);
    }
    head.headers.insert(HeaderName::from_static("x-request-id"), record.id_field().clone());
    if let Some(nonce) = record.take_nonce() {
        head.headers.insert(HeaderName::from_static("dpop-nonce"), nonce);
    }
    if let Some(page) = &record.page {
        page.may_read(&mut head.headers);
    }
    // What follows on a connection that was to be switched is not for us (RFC 9110, 7.8).
    if record.asked_to_switch() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        record.close_connection(&mut head.headers);
    }
    Response::from_parts(head, body.with_record(record))
}
