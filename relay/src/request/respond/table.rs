//! The one table from refusal to status, type, text and hop. What a caller is shown names what would fix it and nothing of what only the
//! operator may know.

use std::time::Duration;

use http::StatusCode;
use postern_gate::policy::{Denial, DenialKind};
use postern_gate::token::TokenError;
use postern_wire::head::{Stage, failure};

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
    /// The service has as many requests as its `limit.concurrent`.
    ServiceFull(usize),
    /// This caller has as many requests at the service as one may.
    ShareTaken(usize),
    /// A TCP service, asked without switching to its protocol.
    UpgradeRequired,
    /// The upstream answered a request to switch protocols with success, but did not switch.
    NotSwitched,
    AuditFull,
    NoAgent,
    /// An agent that may serve it is connected, but its own file does not name it.
    NotOffered,
    /// The tunnel broke between request and answer; the upstream may have seen the request.
    TunnelLost,
    /// Nothing came, or nothing was taken, for this limit.
    Silent(&'static str, Duration),
    /// The agent says it failed.
    Agent {
        stage: Stage,
        code: u16,
        detail: String,
    },
    Panicked,
}

/// Which hop failed, for `Proxy-Status` (RFC 9209).
pub(super) struct Hop {
    pub(super) name: &'static str,
    pub(super) error: &'static str,
}

/// One row of the table.
pub(super) struct Row {
    pub(super) status: StatusCode,
    /// The part of the type after `urn:postern:`; also the reason in metrics.
    pub(super) kind: &'static str,
    pub(super) title: &'static str,
    pub(super) detail: String,
    pub(super) hop: Option<Hop>,
    pub(super) retry_after: Option<u32>,
}

pub(super) fn row(refusal: &Refusal) -> Row {
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
        Refusal::ServiceFull(limit) => Row {
            hop: hop("relay", "connection_limit_reached"),
            retry_after: Some(1),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "service-busy",
                "The service is busy",
                &format!("it takes {limit} requests at once (limit.concurrent in relay.toml): try again"),
            )
        },
        Refusal::ShareTaken(limit) => Row {
            retry_after: Some(1),
            ..row(
                StatusCode::TOO_MANY_REQUESTS,
                "share-taken",
                "Too many requests at once",
                &format!(
                    "one caller may have {limit} requests and streams open at this service: end some first"
                ),
            )
        },
        Refusal::UpgradeRequired => row(
            StatusCode::UPGRADE_REQUIRED,
            "upgrade-required",
            "This is a TCP service",
            "reach it with: postern connect SERVICE, or postern forward PORT:SERVICE",
        ),
        Refusal::NotSwitched => Row {
            hop: hop("upstream", "http_upgrade_failed"),
            ..row(
                StatusCode::BAD_GATEWAY,
                "not-switched",
                "The service did not switch protocols",
                "it answered the request to switch with success, but did not switch: it may not do WebSocket here",
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
        Refusal::NotOffered => Row {
            hop: hop("relay", "destination_unavailable"),
            retry_after: Some(1),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-offered",
                "The agent does not offer this service",
                "its agent is connected, but does not offer it now: its upstream fails its health checks, or agent.toml has no [services.NAME]",
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
        Refusal::Silent(limit, time) => Row {
            hop: hop("upstream", "http_response_timeout"),
            ..row(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream-timeout",
                "The service did not answer in time",
                &format!("nothing moved within {time:?} ({limit} of this service in relay.toml)"),
            )
        },
        Refusal::Agent { code: failure::BUSY, detail, .. } => Row {
            hop: hop("agent", "connection_limit_reached"),
            retry_after: Some(1),
            ..row(StatusCode::SERVICE_UNAVAILABLE, "agent-busy", "The agent is busy", detail)
        },
        Refusal::Agent { stage, detail, .. } => agent_row(*stage, detail),
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
