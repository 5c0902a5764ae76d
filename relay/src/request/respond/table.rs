//! The one table from refusal to status, type, text and hop. What a caller is shown names what would fix it and nothing of what only the
//! operator may know.

use http::StatusCode;
use postern_gate::policy::DenialKind;
use postern_gate::token::{ExchangeError, ProofError, TokenError};
use postern_wire::head::{Stage, failure};

use super::{Refusal, cut};

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
        Refusal::Cut(cut) => cut::row(*cut),
        Refusal::Malformed(why) => {
            row(StatusCode::BAD_REQUEST, "malformed", "Malformed or ambiguous request", why)
        }
        Refusal::NoToken => row(
            StatusCode::UNAUTHORIZED,
            "no-token",
            "A token is needed",
            "send Authorization: Bearer <access token>; to get one: postern login",
        ),
        Refusal::BadToken(TokenError::Proof(ProofError::NonceWanted)) => row(
            StatusCode::UNAUTHORIZED,
            "use-dpop-nonce",
            "The proof needs a nonce",
            &ProofError::NonceWanted.to_string(),
        ),
        Refusal::BadToken(TokenError::Proof(error)) => row(
            StatusCode::UNAUTHORIZED,
            "invalid-dpop-proof",
            "The token's proof is not accepted",
            &error.to_string(),
        ),
        Refusal::BadToken(error) => {
            row(StatusCode::UNAUTHORIZED, "invalid-token", "The token is not accepted", &error.told())
        }
        Refusal::IssuerUnavailable(TokenError::Proof(error)) => Row {
            retry_after: Some(5),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "proofs-full",
                "The proof cannot be taken now",
                &error.to_string(),
            )
        },
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
        Refusal::OverLimit(over) => Row {
            retry_after: Some(over.retry_after()),
            ..row(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", &over.to_string())
        },
        Refusal::CountsFull => Row {
            retry_after: Some(5),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "counts-full",
                "The relay is busy",
                "too many callers use rules with rates or quotas: try again",
            )
        },
        Refusal::IdentityTooLarge(field) => row(
            StatusCode::FORBIDDEN,
            "identity-too-large",
            "Your identity does not fit",
            &format!("the field {field} for the service would be too long: ask for fewer scopes or roles"),
        ),
        Refusal::NotExchanged(error) => exchange_row(error),
        Refusal::NotFound => row(
            StatusCode::NOT_FOUND,
            "no-such-service",
            "No such service",
            "see what you may reach with: postern ls",
        ),
        Refusal::OwnMethod(allow) => row(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            &format!("this address answers to {allow} alone"),
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
                "no agent serves this now: tell whoever runs it, who sees why with: postern-agent doctor",
            )
        },
        Refusal::Suspended => Row {
            hop: hop("relay", "destination_unavailable"),
            ..row(
                StatusCode::SERVICE_UNAVAILABLE,
                "suspended",
                "The agent is suspended",
                "the relay's operator keeps the agent of this service out: ask them",
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
        Refusal::Internal => row(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The relay failed",
            "please report this with the request id",
        ),
    }
}

fn exchange_row(error: &ExchangeError) -> Row {
    let is_unavailable = matches!(error, ExchangeError::Unavailable);
    let (status, kind, title) = if is_unavailable {
        let title = "No token for the service can be had now";
        (StatusCode::SERVICE_UNAVAILABLE, "exchange-unavailable", title)
    } else {
        (StatusCode::BAD_GATEWAY, "not-exchanged", "The issuer gives no token for the service")
    };
    let hop = Hop { name: "relay", error: "proxy_internal_error" };
    let retry_after = is_unavailable.then_some(2);
    Row { status, kind, title, detail: error.to_string(), hop: Some(hop), retry_after }
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
