//! The head that travels through the tunnel: takes the clean head of a request and who may make it, gives bytes, encoded once however
//! many tunnels are tried; refuses what does not fit.

use bytes::{Bytes, BytesMut};
use postern_gate::policy::ServiceKind;
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::head::{CallerInfo, Fields, RequestHead};

use super::super::authenticate::Shown;
use super::super::authorize::Permitted;
use super::super::headers;
use super::super::record::Record;
use super::super::respond::Refusal;
use super::super::route::Routed;
use super::super::upgrade::Upgrade;
use crate::settings::TokenUse;

/// What an upgrade to WebSocket is called between relay and agent.
const WEBSOCKET: &str = "websocket";

/// Bytes that most heads fit in: a browser's fields and ours.
const USUAL: usize = 3072;

pub(super) fn encoded(
    permitted: &Permitted,
    shown: &Shown,
    routed: &Routed,
    head: &http::request::Parts,
    upgrade: Option<&Upgrade>,
    record: &Record,
) -> Result<Bytes, Refusal> {
    let principal = permitted.principal();
    let caller = CallerInfo {
        issuer: principal.issuer().as_str(),
        subject: principal.subject(),
        client: principal.client(),
        scopes: principal.scopes().iter().map(String::as_str).collect(),
        roles: permitted.permit().roles().iter().collect(),
        expires: principal.expires(),
    };
    let service = permitted.service();
    // Nobody else's business: an agent that could read it could use it.
    let credential = (service.caller_token == TokenUse::Agent).then(|| shown.credential());
    let (request_id, name) = (record.shown_id(), service.name.as_str());
    let mut out = BytesMut::with_capacity(USUAL);
    match service.kind {
        ServiceKind::Http => {
            let trace = head.headers.get(headers::TRACEPARENT).and_then(|value| value.to_str().ok());
            let request = RequestHead::Http {
                request_id,
                traceparent: trace.unwrap_or_default(),
                service: name,
                method: head.method.as_str(),
                path_and_query: &routed.path_and_query(),
                fields: Fields::Map(&head.headers),
                caller,
                credential,
                upgrade: upgrade.map(|_| WEBSOCKET),
            };
            codec::encode(&request, HEAD_LIMIT, &mut out)
        }
        ServiceKind::Tcp => {
            let traceparent = &headers::trace_parent(head.headers.get(headers::TRACEPARENT));
            let request = RequestHead::Tcp { request_id, traceparent, service: name, caller, credential };
            codec::encode(&request, HEAD_LIMIT, &mut out)
        }
    }
    .map_err(|_| Refusal::FieldsTooLarge)?;
    Ok(out.freeze())
}
