//! One request at the agent: takes a stream, reads its head, calls the one upstream that the service names, and answers. Before the
//! answer's head a failure is a [`ResponseHead::Failed`]; after it, a reset of the stream. Whoever leaves early stops the other side.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body::{Body, Frame, SizeHint};
use postern_gate::path::{CanonicalPath, PathMode};
use postern_wire::body::{FramedBody, send};
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::fields::{folded, is_of_the_connection, is_steering};
use postern_wire::head::{Fields, RequestHead, ResponseHead, Stage, failure};
use postern_wire::link::{Code, RecvStream, SendStream, StreamError};
use tokio::sync::oneshot;

use crate::settings::Service;
use crate::supervisor::Agent;
use crate::upstream::{CallError, Upstreams};

/// A relay sends the head with the stream's first packet.
const HEAD: Duration = Duration::from_secs(10);
/// A caller that takes nothing of its answer for this long is gone; relays give up earlier.
const CALLER_IDLE: Duration = Duration::from_mins(10);

/// What the relay is told when there is no answer.
#[derive(Debug)]
struct Failure {
    stage: Stage,
    code: u16,
    detail: String,
}

impl Failure {
    fn agent(code: u16, detail: impl Into<String>) -> Self {
        Self { stage: Stage::Agent, code, detail: detail.into() }
    }
}

/// Serves one stream; dropping it resets both directions.
pub async fn serve(
    agent: &Arc<Agent>,
    upstreams: &Upstreams,
    mut sender: SendStream,
    mut receiver: RecvStream,
) {
    let _counted = agent.metrics.request();
    // The relay stops our half when its caller has left.
    let stopped = sender.stopped();
    let work = async {
        let head = match read_head(&mut receiver).await {
            Ok(head) => head,
            Err(e) => {
                tracing::warn!(error = %e, "a request stream without a proper head");
                receiver.stop(Code::PROTOCOL);
                return sender.reset(Code::PROTOCOL);
            }
        };
        if let Err(failure) = call(agent, upstreams, head, receiver, &mut sender).await {
            agent.metrics.failed(failure.stage);
            tracing::warn!(stage = ?failure.stage, detail = %failure.detail, "a request failed here");
            let Failure { stage, code, detail } = failure;
            if sender.message(&ResponseHead::Failed { stage, code, detail }, HEAD_LIMIT).await.is_ok() {
                sender.finish();
            }
        }
    };
    tokio::select! {
        () = work => {}
        // Everything that `work` holds is dropped here: the upstream sees its connection close.
        Some(_) = stopped => {}
    }
}

async fn read_head(receiver: &mut RecvStream) -> Result<RequestHead, StreamError> {
    let bytes = tokio::time::timeout(HEAD, receiver.message(HEAD_LIMIT)).await;
    let bytes = bytes.map_err(|_| StreamError::Truncated)??.ok_or(StreamError::Truncated)?;
    Ok(codec::decode(&bytes)?)
}

async fn call(
    agent: &Agent,
    upstreams: &Upstreams,
    head: RequestHead,
    receiver: RecvStream,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    let RequestHead::Http { request_id, service, method, path_and_query, fields, upgrade, .. } = head;
    let Some(service) = agent.settings.services.get(service.as_str()) else {
        let detail = format!("agent {} has no service {}", agent.identity.name(), service.escape_debug());
        return Err(Failure::agent(failure::NO_SUCH_SERVICE, detail));
    };
    if upgrade.is_some() {
        return Err(Failure::agent(failure::NOT_SUPPORTED, "this agent does not do upgrades"));
    }
    tracing::debug!(request_id = %request_id.escape_debug(), service = %service.name, "request");
    let (request, uploaded) = upstream_request(service, &method, &path_and_query, fields, receiver)?;
    let answering = upstreams.call(&service.name, request);
    let response = in_time(service, answering, uploaded).await.map_err(|e| failure_of(agent, service, &e))?;
    let (mut parts, body) = response.into_parts();
    if parts.status.as_u16() < 200 {
        let detail =
            format!("the upstream switched protocols ({}) without being asked", parts.status.as_u16());
        return Err(Failure { stage: Stage::Upstream, code: failure::BAD_ANSWER, detail });
    }
    relative_locations(service, &mut parts.headers);
    let head = ResponseHead::Http { status: parts.status.as_u16(), fields: Fields(parts.headers) };
    if let Err(e) = codec::encoded(&head, HEAD_LIMIT) {
        let detail = format!("the upstream's header fields are too large: {e}");
        return Err(Failure { stage: Stage::Upstream, code: failure::BAD_ANSWER, detail });
    }
    // From here on a failure is a reset of the stream, which `send` does.
    if let Err(e) = send(sender, &head, body, CALLER_IDLE).await {
        tracing::debug!(error = %e, service = %service.name, "an answer broke off");
    }
    Ok(())
}

/// Builds the upstream's request anew from parsed parts; the address comes from our own file.
fn upstream_request(
    service: &Service,
    method: &str,
    path_and_query: &str,
    fields: Fields,
    receiver: RecvStream,
) -> Result<(Request<UpstreamBody>, oneshot::Receiver<()>), Failure> {
    let malformed =
        |what: &str| Failure::agent(failure::NOT_SUPPORTED, format!("the relay sent a malformed {what}"));
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| malformed("method"))?;
    // The relay sends the canonical path that policy saw; anything else could be read in two ways here.
    let raw = path_and_query.split('?').next().unwrap_or_default();
    let path = CanonicalPath::parse(raw, PathMode::Loose).ok().filter(|path| path.as_str() == raw);
    let path = path.filter(|_| method != Method::CONNECT).ok_or_else(|| malformed("target"))?;
    if !service.only.permits(method.as_str(), &path) {
        let detail =
            format!("the agent's own file does not let {method} {raw} pass (only, service {})", service.name);
        return Err(Failure { stage: Stage::Verify, code: failure::NOT_PERMITTED_HERE, detail });
    }
    let uri = Uri::builder()
        .scheme(service.scheme.clone())
        .authority(service.authority.clone())
        .path_and_query(path_and_query)
        .build()
        .map_err(|_| malformed("path"))?;
    let mut headers = fields.0;
    // A relay that has been taken over must not steer our own connection either.
    let unwanted = |name: &HeaderName| {
        let name = folded(name);
        is_of_the_connection(&name) || is_steering(&name)
    };
    let trailers = headers.get(header::TE).is_some_and(|te| te == "trailers");
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(malformed("Content-Length"));
    }
    let is_empty = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    let usually_has_one = matches!(method, Method::POST | Method::PUT | Method::PATCH);
    if is_empty && !usually_has_one {
        headers.remove(header::CONTENT_LENGTH);
    }
    if headers.get(header::CONTENT_LENGTH).is_some_and(|length| !is_length(length)) {
        return Err(malformed("Content-Length"));
    }
    let (done, uploaded) = oneshot::channel();
    let body = if is_empty { None } else { Some(FramedBody::new(receiver)) };
    let mut request = Request::new(UpstreamBody { body, done: Some(done) });
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok((request, uploaded))
}

fn is_length(value: &HeaderValue) -> bool {
    !value.is_empty() && value.len() < 20 && value.as_bytes().iter().all(u8::is_ascii_digit)
}

/// Waits for the answer; its clock starts when the request is sent whole.
async fn in_time<T>(
    service: &Service,
    answering: impl Future<Output = Result<T, CallError>>,
    uploaded: oneshot::Receiver<()>,
) -> Result<T, CallError> {
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        answer = &mut answering => return answer,
        // Sent, or dropped half-way because the upstream wants no more.
        _ = uploaded => {}
    }
    tokio::time::timeout(service.first_byte, answering)
        .await
        .unwrap_or(Err(CallError::Silent(service.first_byte)))
}

fn failure_of(agent: &Agent, service: &Service, error: &CallError) -> Failure {
    let (stage, code) = match error {
        CallError::Refused(_) => (Stage::Connect, failure::REFUSED),
        CallError::Connect(_) => (Stage::Connect, failure::UNREACHABLE),
        CallError::Tls(_) => (Stage::Tls, failure::UNREACHABLE),
        CallError::Answer(_) => (Stage::Upstream, failure::BAD_ANSWER),
        CallError::Silent(_) => (Stage::Timeout, failure::TIMED_OUT),
        CallError::Unknown(_) => (Stage::Agent, failure::NO_SUCH_SERVICE),
    };
    // The upstream's address is ours alone; the relay and its callers learn the service, the agent and what went wrong.
    let detail = format!("service {} behind agent {}: {error}", service.name, agent.identity.name());
    Failure { stage, code, detail }
}

/// Takes the upstream's own origin off `Location` and `Content-Location`; the relay makes the rest public.
fn relative_locations(service: &Service, headers: &mut http::HeaderMap) {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let relative = headers.get(&name).and_then(|value| {
            let uri: Uri = value.to_str().ok()?.parse().ok()?;
            let authority = uri.authority()?;
            let port = authority
                .port_u16()
                .or_else(|| (uri.scheme_str() == Some("https")).then_some(443))
                .unwrap_or(80);
            let is_ours =
                authority.host().eq_ignore_ascii_case(service.authority.host()) && port == service.port();
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            is_ours.then(|| HeaderValue::from_str(path).ok()).flatten()
        });
        if let Some(relative) = relative {
            headers.insert(name, relative);
        }
    }
}

/// The caller's body on its way to the upstream; tells when it was sent whole, or dropped.
#[derive(Debug)]
pub struct UpstreamBody {
    body: Option<FramedBody>,
    done: Option<oneshot::Sender<()>>,
}

impl UpstreamBody {
    pub(crate) fn empty() -> Self {
        Self { body: None, done: None }
    }

    fn sent(&mut self) {
        if let Some(done) = self.done.take() {
            // Whoever waited may have its answer already.
            let _ = done.send(());
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            None => Poll::Ready(None),
            Some(body) => Pin::new(body).poll_frame(cx),
        };
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || (polled.is_ready() && this.is_end_stream()) {
            this.sent();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        self.sent();
    }
}
