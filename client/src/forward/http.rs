//! Takes one request from a local program; gives the relay's answer to it, with the session's token added and both bodies streamed.
//! What the program sent as Authorization or DPoP is replaced. When the relay cannot be reached, or nobody is logged in, the answer is a
//! problem document (RFC 9457) that says what to do.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE, EXPECT, HOST, LOCATION,
    ORIGIN, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use postern_base::http_client::{HttpClientError, root_store};

use super::guard::{self, Door, Refusal};
use super::link::Link;
use super::location::Map;
use crate::output::text::escape;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::bearer;
use crate::relay_api::problem::{PROBLEM_JSON, Problem, RELAY_UNREACHABLE, is_problem};
use crate::session::SessionError;
use crate::session::refresh::Tokens;

/// What goes back to a local program: the relay's body as it comes, or one of ours.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// A relay that takes longer to accept a connection is lost for this request.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that is silent this long is asked for a sign of life: without it a vanished relay would hold requests for ever.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Shorter than the relay's own 60 s, so that no request is sent into a connection that the relay is just closing.
const POOL_IDLE: Duration = Duration::from_secs(45);
/// Problem documents are a few hundred bytes; more is not one of ours.
const PROBLEM_BYTES: u64 = 64 * 1024;

/// Pooled connections to the relay, shared by all forwards of one process.
pub(crate) type Upstream = Client<HttpsConnector<HttpConnector<ToRelay>>, Incoming>;

/// Resolves every name to the relay's own address: a service's host is only a name within its TLS and HTTP, so that a token goes to the
/// relay that was typed and nowhere else.
#[derive(Debug, Clone)]
pub(crate) struct ToRelay(Arc<str>);

type Resolving = futures_util::future::BoxFuture<'static, std::io::Result<std::vec::IntoIter<SocketAddr>>>;

impl tower_service::Service<Name> for ToRelay {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Resolving;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Resolving {
        let relay = self.0.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((&*relay, 0)).await?.collect();
            Ok(found.into_iter())
        })
    }
}

/// Connections to this relay, which trust `roots` (PEM) besides the system's certificates.
pub(crate) fn upstream(relay: &RelayUrl, roots: Option<&[u8]>) -> Result<Upstream, HttpClientError> {
    let host = relay.host().trim_matches(['[', ']']);
    let mut tcp = HttpConnector::new_with_resolver(ToRelay(host.into()));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| HttpClientError::Roots(e.to_string()))?
        .with_root_certificates(root_store(roots)?)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_keep_alive_timeout(KEEPALIVE_ANSWER)
        .build(connector);
    Ok(client)
}

/// One service, ready to be called.
pub(crate) struct Service {
    pub(crate) upstream: Upstream,
    pub(crate) relay: RelayUrl,
    pub(crate) map: Map,
    /// The service's own audience.
    pub(crate) audience: Option<String>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) link: Arc<Link>,
    /// The last refusal that a Postern program made, for a command that explains it.
    pub(crate) refused: Option<Mutex<Option<Refused>>>,
}

/// A refusal and the method that was refused.
pub(crate) struct Refused {
    pub(crate) problem: Problem,
    pub(crate) method: Method,
}

impl Service {
    /// Answers one request. `own` says whether the program that sent it belongs to this user; `local` is how it calls this place.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        door: Door,
        own: bool,
        local: &str,
    ) -> Response<Body> {
        let begin = Instant::now();
        let (method, path) = (request.method().clone(), escape(request.uri().path()));
        let response = self.relayed(request, door, own, local).await;
        let response = self.watched(response, &method).await;
        tracing::info!(%method, path, status = response.status().as_u16(), ms = begin.elapsed().as_millis());
        response
    }

    async fn relayed(
        &self,
        request: Request<Incoming>,
        door: Door,
        own: bool,
        local: &str,
    ) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let judged = if own { guard::judge(&head, door) } else { Err(Refusal::OtherUser) };
        if let Err(refusal) = judged {
            let (name, fix) = refusal.words();
            return problem(refusal.status(), &format!("urn:postern:client:{name}"), fix);
        }
        let uri = match self.map.outward(&head.uri) {
            Ok(uri) => uri,
            Err(error) => {
                return problem(StatusCode::BAD_REQUEST, "urn:postern:client:path", &error.to_string());
            }
        };
        let access = match self.tokens.access(self.audience.as_deref(), Duration::ZERO).await {
            Ok(access) => access,
            Err(error) => return self.no_token(&error),
        };
        let Ok(authorization) = bearer(&access.token.0) else {
            let fix = "The token holds bytes that no header may: log in again.";
            return problem(StatusCode::UNAUTHORIZED, "urn:postern:client:login-needed", fix);
        };
        self.outward(&mut head.headers);
        head.headers.insert(AUTHORIZATION, authorization);
        head.uri = uri.clone();
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        match self.upstream.request(Request::from_parts(head, body)).await {
            Ok(response) => {
                let ours = response.status() == StatusCode::UNAUTHORIZED && is_problem(response.headers());
                if ours {
                    self.tokens.doubt(&access);
                }
                let mut response = response.map(Either::Left);
                self.inward(response.headers_mut(), &uri, local);
                *response.version_mut() = http::Version::HTTP_11;
                response
            }
            Err(error) => self.unreachable(&error),
        }
    }

    /// A token could not be had.
    fn no_token(&self, error: &SessionError) -> Response<Body> {
        let (status, name) = match error {
            SessionError::None(_) | SessionError::Over { .. } => (StatusCode::UNAUTHORIZED, "login-needed"),
            SessionError::Renewal { .. } | SessionError::Lock(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "renewal")
            }
            SessionError::Audience { .. } | SessionError::Vault(_) => (StatusCode::BAD_GATEWAY, "session"),
        };
        let fix = format!("{error}. If it stays so, run: postern login {}", self.relay);
        problem(status, &format!("urn:postern:client:{name}"), &fix)
    }

    fn unreachable(&self, error: &hyper_util::client::legacy::Error) -> Response<Body> {
        let mut cause: &dyn Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        self.link.failed();
        let fix = format!(
            "The relay {} cannot be reached ({}). Postern keeps trying: check your network and try again in a moment.",
            self.relay,
            escape(&cause.to_string())
        );
        problem(StatusCode::BAD_GATEWAY, RELAY_UNREACHABLE, &fix)
    }

    /// The request's fields for the relay: without those of this hop, and without credentials.
    fn outward(&self, headers: &mut HeaderMap) {
        let trailers =
            headers.get_all(TE).iter().any(|te| te.to_str().is_ok_and(|te| te.contains("trailers")));
        remove_hop_by_hop(headers);
        for name in [HOST, AUTHORIZATION, EXPECT, HeaderName::from_static("dpop")] {
            headers.remove(name);
        }
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        // The guard saw that it names this port; to the service its own public origin is what that means.
        if headers.contains_key(ORIGIN)
            && let Ok(origin) = HeaderValue::try_from(self.map.origin())
        {
            headers.insert(ORIGIN, origin);
        }
    }

    fn inward(&self, headers: &mut HeaderMap, asked: &Uri, local: &str) {
        remove_hop_by_hop(headers);
        for name in [LOCATION, CONTENT_LOCATION] {
            let home = headers.get(&name).and_then(|v| self.map.inward(v.to_str().ok()?, asked, local));
            if let Some(value) = home.and_then(|home| HeaderValue::try_from(home).ok()) {
                headers.insert(name, value);
            }
        }
    }

    /// Keeps a copy of a refusal that a Postern program made, where somebody wants to explain it; any later answer wipes it out.
    async fn watched(&self, response: Response<Body>, method: &Method) -> Response<Body> {
        let Some(refused) = &self.refused else { return response };
        let keep = |last| *refused.lock().unwrap_or_else(PoisonError::into_inner) = last;
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if !is_problem(response.headers()) || length.is_none_or(|length| length > PROBLEM_BYTES) {
            keep(None);
            return response;
        }
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => {
                let bytes = body.to_bytes();
                keep(Problem::ours(&bytes).map(|problem| Refused { problem, method: method.clone() }));
                Response::from_parts(head, Either::Right(Full::new(bytes)))
            }
            Err(error) => problem(StatusCode::BAD_GATEWAY, RELAY_UNREACHABLE, &escape(&error.to_string())),
        }
    }
}

/// Fields that speak of one connection only (RFC 9110 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let known = ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"];
    for name in named.into_iter().chain([CONNECTION, TE, TRANSFER_ENCODING, UPGRADE]) {
        headers.remove(name);
    }
    for name in known {
        headers.remove(name);
    }
}

/// A refusal made here.
fn problem(status: StatusCode, kind: &str, detail: &str) -> Response<Body> {
    let title = status.canonical_reason().unwrap_or("Refused");
    let body =
        serde_json::json!({ "type": kind, "title": title, "status": status.as_u16(), "detail": detail });
    let body = Bytes::from(body.to_string());
    let mut response = Response::new(Either::Right(Full::new(body.clone())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    response
}

#[cfg(test)]
mod tests;
