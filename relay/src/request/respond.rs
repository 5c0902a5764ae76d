//! The one table from refusal to status, header fields and problem document (RFC 9457). What a caller is shown names what would fix it
//! and nothing of what only the operator may know.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use postern_base::id::DecisionId;
use postern_gate::policy::{Closest, Denial, DenialKind};
use postern_gate::token::TokenError;
use postern_wire::head::Stage;
use serde::Serialize;

use super::body::ResponseBody;
use super::record::Record;
use crate::public::Connection;

/// Every way in which the relay refuses a request.
#[derive(Debug)]
pub enum Refusal {
    Malformed(String),
    NoToken,
    BadToken(TokenError),
    IssuerUnavailable(TokenError),
    TooManyFailures,
    Denied(Denial),
    /// The identity fields for the upstream do not fit.
    IdentityTooLarge(&'static str),
    NotFound,
    /// One of the relay's own addresses, asked with another method.
    OwnMethod,
    BodyStalled,
    BodyBroken,
    BodyTooLarge(u64),
    TargetTooLong,
    FieldsTooLarge,
    Misdirected,
    Overloaded,
    AuditFull,
    NoAgent,
    /// The tunnel broke between request and answer; the upstream may have seen the request.
    TunnelLost,
    AgentSilent,
    /// The agent says it failed.
    Agent {
        stage: Stage,
        detail: String,
    },
    Panicked,
}

/// Which hop failed, for `Proxy-Status` (RFC 9209).
struct Hop {
    name: &'static str,
    error: &'static str,
}

/// One row of the table.
struct Row {
    status: StatusCode,
    /// The part of the type after `urn:postern:`; also the reason in metrics.
    kind: &'static str,
    title: &'static str,
    detail: String,
    hop: Option<Hop>,
    retry_after: Option<u32>,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<DecisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closest: Option<&'a Closest>,
}

fn row(refusal: &Refusal) -> Row {
    let row = |status, kind, title, detail: &str| Row {
        status,
        kind,
        title,
        detail: detail.to_owned(),
        hop: None,
        retry_after: None,
    };
    let hop = |name, error| Some(Hop { name, error });
    match refusal {
        Refusal::Malformed(why) => {
            row(StatusCode::BAD_REQUEST, "malformed", "Malformed or ambiguous request", why)
        }
        Refusal::NoToken => row(
            StatusCode::UNAUTHORIZED,
            "no-token",
            "A token is needed",
            "send Authorization: Bearer <access token>; to get one: postern login",
        ),
        Refusal::BadToken(error) => {
            row(StatusCode::UNAUTHORIZED, "invalid-token", "The token is not accepted", &error.to_string())
        }
        Refusal::IssuerUnavailable(error) => Row {
            retry_after: Some(2),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "issuer-unavailable",
                "The token cannot be checked now",
                &error.to_string(),
            )
        },
        Refusal::TooManyFailures => Row {
            retry_after: Some(1),
            ..row(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-failures",
                "Too many failed authentications",
                "this address failed to authenticate too often within a second: wait, and use a good token",
            )
        },
        Refusal::Denied(denial) => {
            let (status, kind, title) = match denial.kind() {
                DenialKind::MissingScope { .. } => {
                    (StatusCode::FORBIDDEN, "insufficient-scope", "The token lacks a scope")
                }
                DenialKind::StepUp { .. } => {
                    (StatusCode::UNAUTHORIZED, "step-up", "A stronger or fresher login is needed")
                }
                DenialKind::MethodNotAllowed { .. } => (
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method-not-allowed",
                    "No rule for you knows this method",
                ),
                DenialKind::NotVisible => (StatusCode::NOT_FOUND, "no-such-service", "No such service"),
                DenialKind::DeniedByRule | DenialKind::NoRule => {
                    (StatusCode::FORBIDDEN, "denied", "Policy says no")
                }
            };
            row(status, kind, title, &denial.detail())
        }
        Refusal::IdentityTooLarge(field) => row(
            StatusCode::FORBIDDEN,
            "identity-too-large",
            "Your identity does not fit",
            &format!(
                "the field {field} for the service would be too long; ask for fewer scopes or roles in the token"
            ),
        ),
        Refusal::NotFound => row(
            StatusCode::NOT_FOUND,
            "no-such-service",
            "No such service",
            "see what you may reach with: postern ls",
        ),
        Refusal::OwnMethod => row(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            "only GET and HEAD are answered here",
        ),
        Refusal::BodyStalled => row(
            StatusCode::REQUEST_TIMEOUT,
            "body-stalled",
            "The request body stalled",
            "send the body without long pauses",
        ),
        Refusal::BodyBroken => row(
            StatusCode::BAD_REQUEST,
            "body-broken",
            "The request body broke off",
            "the body ended before it was complete",
        ),
        Refusal::BodyTooLarge(limit) => row(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "The request body is too large",
            &format!("this service takes bodies of at most {limit} bytes"),
        ),
        Refusal::TargetTooLong => row(
            StatusCode::URI_TOO_LONG,
            "target-too-long",
            "The target is too long",
            "targets may have 8 KiB",
        ),
        Refusal::FieldsTooLarge => row(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "fields-too-large",
            "The header fields are too large",
            "send fewer or shorter header fields",
        ),
        Refusal::Misdirected => row(
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected",
            "TLS name and Host disagree",
            "open a connection of its own for each host",
        ),
        Refusal::Overloaded => Row {
            retry_after: Some(1),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "The relay is busy",
                "too many requests are in flight: try again",
            )
        },
        Refusal::AuditFull => Row {
            retry_after: Some(5),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "audit-unavailable",
                "The audit log cannot be written",
                "requests are refused until it can; the relay's operator sees why in its log",
            )
        },
        Refusal::NoAgent => Row {
            hop: hop("relay", "destination_unavailable"),
            retry_after: Some(1),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-agent",
                "No agent is connected",
                "no agent serves this now: start its agent, or look at `postern-agent run` there",
            )
        },
        Refusal::TunnelLost => Row {
            hop: hop("agent", "connection_terminated"),
            ..row(
                StatusCode::BAD_GATEWAY,
                "tunnel-lost",
                "The agent's tunnel broke",
                "the service may have seen the request: repeat it only if that does no harm",
            )
        },
        Refusal::AgentSilent => Row {
            hop: hop("upstream", "http_response_timeout"),
            ..row(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream-timeout",
                "The service did not answer in time",
                "no answer within limit.first_byte of this service",
            )
        },
        Refusal::Agent { stage, detail } => agent_row(*stage, detail),
        Refusal::Panicked => row(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The relay failed",
            "please report this with the request id",
        ),
    }
}

fn agent_row(stage: Stage, detail: &str) -> Row {
    let (status, kind, title, name, error) = match stage {
        Stage::Agent => (
            StatusCode::BAD_GATEWAY,
            "agent-refused",
            "The agent does not serve this",
            "agent",
            "proxy_configuration_error",
        ),
        Stage::Verify => {
            (StatusCode::FORBIDDEN, "agent-denied", "The agent says no", "agent", "http_request_denied")
        }
        Stage::Connect => (
            StatusCode::BAD_GATEWAY,
            "upstream-unreachable",
            "The service is down",
            "upstream",
            "connection_refused",
        ),
        Stage::Tls => (
            StatusCode::BAD_GATEWAY,
            "upstream-tls",
            "The service's certificate is not accepted",
            "upstream",
            "tls_certificate_error",
        ),
        Stage::Upstream => (
            StatusCode::BAD_GATEWAY,
            "upstream-answer",
            "The service answered wrongly",
            "upstream",
            "http_protocol_error",
        ),
        Stage::Timeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "upstream-timeout",
            "The service did not answer in time",
            "upstream",
            "http_response_timeout",
        ),
    };
    Row { status, kind, title, detail: detail.to_owned(), hop: Some(Hop { name, error }), retry_after: None }
}

/// Turns a refusal into the answer, counts it and closes the record.
pub fn refuse(
    connection: &Arc<Connection>,
    refusal: &Refusal,
    is_head: bool,
    mut record: Record,
) -> Response<ResponseBody> {
    let row = row(refusal);
    let relay = &connection.worker.relay;
    relay.metrics().refusals.get_or_create(&crate::metrics::ReasonLabels { reason: row.kind }).inc();
    if matches!(
        refusal,
        Refusal::NoToken | Refusal::BadToken(_) | Refusal::IssuerUnavailable(_) | Refusal::NotFound
    ) {
        record.refused_unproved(row.kind, &row.detail);
    }
    let closest = match refusal {
        Refusal::Denied(denial) => denial.closest(),
        _ => None,
    };
    let problem = Problem {
        r#type: format!("urn:postern:{}", row.kind),
        title: row.title,
        status: row.status.as_u16(),
        detail: &row.detail,
        request_id: record.id().to_string(),
        decision_id: record.decision(),
        closest,
    };
    let text = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(ResponseBody::full(if is_head { Bytes::new() } else { text.into() }));
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
    // The rest of a body that nobody reads would be taken for the next request.
    if matches!(refusal, Refusal::BodyStalled | Refusal::BodyBroken | Refusal::BodyTooLarge(_)) {
        record.close_connection(headers);
    }
    finish(response, record)
}

/// The parameters of the Bearer challenge (RFC 6750, RFC 9470), without the metadata's address.
fn challenge(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::NoToken => Some(String::new()),
        Refusal::BadToken(error) => {
            Some(format!("error=\"invalid_token\", error_description=\"{}\"", quotable(&error.to_string())))
        }
        Refusal::Denied(denial) => match denial.kind() {
            DenialKind::MissingScope { scope } => {
                Some(format!("error=\"insufficient_scope\", scope=\"{}\"", quotable(scope)))
            }
            DenialKind::StepUp { acr_values, max_age } => {
                let mut text = "error=\"insufficient_user_authentication\"".to_owned();
                if let Some(acr) = acr_values {
                    text.push_str(&format!(", acr_values=\"{}\"", quotable(acr)));
                }
                if let Some(age) = max_age {
                    text.push_str(&format!(", max_age=\"{age}\""));
                }
                Some(text)
            }
            DenialKind::NotVisible
            | DenialKind::DeniedByRule
            | DenialKind::NoRule
            | DenialKind::MethodNotAllowed { .. } => None,
        },
        _ => None,
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
    set(&mut head.headers, HeaderName::from_static("x-request-id"), &record.id().to_string());
    Response::from_parts(head, body.with_record(record))
}
