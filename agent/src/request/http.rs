//! One HTTP request: takes what the relay asks for, builds the upstream's request anew from parsed parts, and sends the answer back as it
//! comes; refuses what the agent's own file forbids. One that died unanswered is sent once more where that can do no harm.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt;
use postern_gate::path::{CanonicalPath, PathMode};
use postern_gate::principal::Principal;
use postern_wire::body::{FramedBody, send};
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::head::{Fields, ResponseHead, Stage, failure};
use postern_wire::link::{RecvStream, SendStream};

use super::body::{UpstreamBody, clean};
use super::failed::Failure;
use crate::settings::Service;
use crate::settings::service::Protocol;
use crate::supervisor::Agent;
use crate::upstream::answer::AnswerBody;
use crate::upstream::http::target;
use crate::upstream::{CallError, Route};
use crate::verify;

/// A caller that takes nothing of its answer for this long is gone; relays give up earlier.
const CALLER_IDLE: Duration = Duration::from_mins(10);

/// What the relay asks for; `bytes` is the message that it was read from.
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) path_and_query: &'a str,
    pub(super) fields: Fields<'a>,
    pub(super) bytes: &'a Bytes,
    /// Whom this agent verified itself.
    pub(super) caller: Option<Arc<Principal>>,
}

pub(super) async fn serve(
    agent: &Agent,
    route: &Route,
    asked: &Asked<'_>,
    receiver: RecvStream,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    let mut request = request(route, asked)?;
    let has_body = framed(route, &mut request)?;
    agent.metrics.count_informational(&mut request);
    let upload = if has_body {
        let (body, uploaded) = UpstreamBody::new(receiver, &route.upstream);
        *request.body_mut() = body;
        Some(uploaded)
    } else {
        // Takes the stream's end, which came with the head, so that dropping it asks the relay for nothing.
        let _ = FramedBody::new(receiver).frame().now_or_never();
        None
    };
    let is_repeatable = !has_body
        && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    let answer = match route.call(request, upload, false).await {
        // Anything else may have been acted on and is not repeated.
        Err(CallError::Unanswered(_)) if is_repeatable => {
            let mut again = self::request(route, asked)?;
            framed(route, &mut again)?;
            route.call(again, None, true).await
        }
        answer => answer,
    };
    back(route, answer.map_err(|e| Failure::of(agent, route, &e))?, sender).await
}

/// Builds the upstream's request from parsed parts; the address comes from our own file, and so does what is added here.
pub(super) fn request(route: &Route, asked: &Asked<'_>) -> Result<Request<UpstreamBody>, Failure> {
    let upstream = &route.upstream;
    let service = &upstream.service;
    if service.protocol == Protocol::Tcp {
        let name = &service.name;
        let detail = format!("service {name} is TCP at the agent: give it kind = \"tcp\" in relay.toml");
        return Err(Failure::agent(failure::NOT_SUPPORTED, detail));
    }
    let method = Method::from_bytes(asked.method.as_bytes()).map_err(|_| Failure::malformed("method"))?;
    // The relay sends the canonical path that policy saw; anything else could be read in two ways here.
    let raw = asked.path_and_query.split('?').next().unwrap_or_default();
    let path = CanonicalPath::parse(raw, PathMode::Loose).ok().filter(|path| path.as_str() == raw);
    let path = path.filter(|_| method != Method::CONNECT).ok_or_else(|| Failure::malformed("target"))?;
    if !service.only.permits(method.as_str(), &path) {
        let detail =
            format!("the agent's own file does not let {method} {raw} pass (only, service {})", service.name);
        return Err(Failure { stage: Stage::Verify, code: failure::NOT_PERMITTED_HERE, detail });
    }
    let mut headers =
        asked.fields.clone().into_map(asked.bytes).map_err(|e| Failure::malformed(&e.to_string()))?;
    let wants_trailers = headers.get(header::TE).is_some_and(|te| te == "trailers");
    clean(&mut headers);
    if let Some(caller) = &asked.caller {
        verify::say(caller, &mut headers);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        // RFC 9110, 10.1.4; HTTP/2 knows no such field.
        if service.protocol == Protocol::Http1 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (&service.host, hosts.next(), hosts.next()) {
        (Some(ours), _, _) => ours.clone(),
        (None, Some(host), None) => host.clone(),
        (None, _, _) => return Err(Failure::malformed("Host")),
    };
    if method == Method::TRACE {
        // Its answer shows the caller what was sent.
        upstream.credentials.strip(&mut headers);
    } else {
        upstream.credentials.apply(&mut headers);
    }
    let path = asked.bytes.slice_ref(asked.path_and_query.as_bytes());
    let path = PathAndQuery::from_maybe_shared(path).map_err(|_| Failure::malformed("path"))?;
    let uri = target(service, host, path, &mut headers).map_err(|_| Failure::malformed("Host"))?;
    let mut request = Request::new(UpstreamBody::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Settles how the body is framed, and says whether there is one: `Content-Length: 0` is the relay's word for none.
fn framed(route: &Route, request: &mut Request<UpstreamBody>) -> Result<bool, Failure> {
    let usually_has_one = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    let headers = request.headers_mut();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (length, more) = (lengths.next(), lengths.next());
    if more.is_some() || length.is_some_and(|length| !is_length(length)) {
        return Err(Failure::malformed("Content-Length"));
    }
    if length.is_some_and(|length| length == "0") {
        if !usually_has_one {
            headers.remove(header::CONTENT_LENGTH);
        }
        return Ok(false);
    }
    // Over HTTP/1.1 only chunks carry trailers; and hyper would take a GET without a length for one without a body.
    let is_chunked = length.is_none() || headers.contains_key(header::TRAILER);
    if is_chunked && route.upstream.service.protocol == Protocol::Http1 {
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(true)
}

fn is_length(value: &HeaderValue) -> bool {
    !value.is_empty() && value.len() < 20 && value.as_bytes().iter().all(u8::is_ascii_digit)
}

/// Sends an ordinary answer back.
pub(super) async fn back(
    route: &Route,
    answer: Response<AnswerBody>,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    let service = &route.upstream.service;
    let (mut parts, body) = answer.into_parts();
    let status = parts.status.as_u16();
    if status < 200 {
        return Err(Failure::bad_answer(format!(
            "the upstream switched protocols ({status}) without being asked"
        )));
    }
    relative_locations(service, &mut parts.headers);
    let head = encoded(status, &parts.headers)?;
    // From here on a failure is a reset of the stream, which `send` does.
    if let Err(e) = send(sender, head, body, Some(CALLER_IDLE)).await {
        tracing::debug!(error = %e, service = %service.name, "an answer broke off");
    }
    Ok(())
}

pub(super) fn encoded(status: u16, headers: &HeaderMap) -> Result<Bytes, Failure> {
    let head = ResponseHead::Http { status, fields: Fields::Map(headers) };
    codec::encoded(&head, HEAD_LIMIT)
        .map_err(|e| Failure::bad_answer(format!("the upstream's header fields are too large: {e}")))
}

/// Takes the upstream's own origin off `Location` and `Content-Location`; the relay makes the rest public.
fn relative_locations(service: &Service, headers: &mut HeaderMap) {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let relative = headers.get(&name).and_then(|value| {
            let uri: Uri = value.to_str().ok()?.parse().ok()?;
            let authority = uri.authority()?;
            let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
            let port = authority.port_u16().unwrap_or(usual);
            let host = authority.host().trim_matches(['[', ']']);
            let mut origins = service.origins.iter();
            let is_ours = origins.any(|(known, at)| *at == port && known.eq_ignore_ascii_case(host));
            let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
            is_ours.then(|| HeaderValue::from_str(path).ok()).flatten()
        });
        if let Some(relative) = relative {
            headers.insert(name, relative);
        }
    }
}
