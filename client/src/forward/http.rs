//! Takes one request from a local program; gives the relay's answer to it, with the session's token added and both bodies streamed.
//! What the program sent as Authorization or DPoP is replaced. When the relay cannot be reached, or nobody is logged in, the answer is a
//! problem document (RFC 9457) that says what to do.

mod fields;
mod upload;
pub(crate) mod upstream;
pub(crate) mod visit;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Error;
use postern_base::id::ServiceName;
use postern_base::sync::lock;

use super::guard::{self, Refusal};
use super::link::{Link, is_over};
use super::location::Map;
use crate::dial::innermost;
use crate::failure::Exit;
use crate::lease::Leases;
use crate::output::text::escape;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::problem::{
    PROBLEM_BYTES, PROBLEM_JSON, Problem, RELAY_UNREACHABLE, STEP_UP, is_problem,
};
use crate::session::SessionError;
use crate::session::pass::{Pass, PassError};
use crate::session::refresh::Tokens;
use upload::Upload;
use upstream::Upstream;
use visit::{Switched, Visit};

/// What goes back to a local program: the relay's body as it comes, or one of ours.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// One service, ready to be called.
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) upstream: Upstream,
    pub(crate) relay: RelayUrl,
    pub(crate) map: Map,
    /// The service's own audience.
    pub(crate) audience: Option<String>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) link: Arc<Link>,
    /// The last refusal that a Postern program made, for a command that explains it.
    pub(crate) refused: Option<Mutex<Option<Refused>>>,
}

/// A refusal and the method that was refused.
pub(crate) struct Refused {
    pub(crate) problem: Problem,
    pub(crate) method: Method,
}

/// Why a request did not reach the relay.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Relay(#[from] Error),
    #[error(transparent)]
    Pass(#[from] PassError),
}

impl Service {
    /// Answers one request of this visit.
    async fn answer(&self, request: Request<Incoming>, visit: &Visit) -> Response<Body> {
        let begin = Instant::now();
        let (method, path) = (request.method().clone(), escape(request.uri().path()));
        let response = self.relayed(request, visit).await;
        let response = self.watched(response, &method).await;
        tracing::info!(%method, path, status = response.status().as_u16(), ms = begin.elapsed().as_millis());
        response
    }

    async fn relayed(&self, mut request: Request<Incoming>, visit: &Visit) -> Response<Body> {
        let here = hyper::upgrade::on(&mut request);
        let (mut head, body) = request.into_parts();
        let judged = if visit.own { guard::judge(&head, &visit.door) } else { Err(Refusal::OtherUser) };
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
        let audience = self.audience.as_deref();
        let pass = match self.tokens.pass(audience, Duration::ZERO).await {
            Ok(pass) => pass,
            Err(error) => return self.no_token(error),
        };
        let switch = fields::asks_for_websocket(&head);
        fields::outward(&mut head.headers, &self.map.origin(), switch);
        head.uri = uri.clone();
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        match self.sent(head, body, &pass, switch).await {
            Ok(mut response) => {
                if refuses_token(&response) {
                    self.tokens.doubt(&pass);
                }
                let switched = switch && response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if switched {
                    let lease = self.leases.hold(response.headers(), &self.name, audience, &pass);
                    visit.switch(Switched { here, there: hyper::upgrade::on(&mut response), lease });
                }
                let mut response = response.map(Either::Left);
                fields::inward(response.headers_mut(), &self.map, &uri, &visit.local, switched);
                *response.version_mut() = http::Version::HTTP_11;
                response
            }
            Err(Unsent::Relay(error)) => self.unreachable(&error),
            Err(Unsent::Pass(error)) => {
                let fix = format!("{error}: log in again.");
                problem(StatusCode::UNAUTHORIZED, "urn:postern:client:login-needed", &fix)
            }
        }
    }

    /// With the token; once more where the relay wants a nonce in the proof. The local program learns nothing of that.
    async fn sent(
        &self,
        mut head: Parts,
        body: Incoming,
        pass: &Pass,
        switch: bool,
    ) -> Result<Response<Incoming>, Unsent> {
        let uri = head.uri.to_string();
        if !pass.is_bound() {
            pass.show(&mut head.headers, head.method.as_str(), &uri)?;
            let request = Request::from_parts(head, Upload::once(body));
            return Ok(self.upstream.request(request, switch).await?);
        }
        let (body, again) = Upload::kept(body);
        let mut first = head.clone();
        pass.show(&mut first.headers, head.method.as_str(), &uri)?;
        let answer = self.upstream.request(Request::from_parts(first, body), switch).await?;
        if !pass.wants_nonce(answer.status(), answer.headers()) {
            return Ok(answer);
        }
        let Some(body) = again.take() else { return Ok(answer) };
        pass.show(&mut head.headers, head.method.as_str(), &uri)?;
        Ok(self.upstream.request(Request::from_parts(head, body), switch).await?)
    }

    /// A token could not be had.
    fn no_token(&self, error: SessionError) -> Response<Body> {
        let (status, name) = match &error {
            SessionError::None(_) | SessionError::Over { .. } | SessionError::Client { .. } => {
                (StatusCode::UNAUTHORIZED, "login-needed")
            }
            SessionError::Renewal { .. } | SessionError::Lock(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "renewal")
            }
            SessionError::Audience { .. } | SessionError::Vault(_) => (StatusCode::BAD_GATEWAY, "session"),
        };
        let fix = format!("{error}. If it stays so, run: postern login {}", self.relay);
        if is_over(&error) {
            self.link.end(error.into());
        }
        problem(status, &format!("urn:postern:client:{name}"), &fix)
    }

    fn unreachable(&self, error: &Error) -> Response<Body> {
        self.link.failed();
        let fix = format!(
            "The relay {} cannot be reached ({}). Postern keeps trying: check your network and try again in a moment.",
            self.relay,
            escape(&innermost(error))
        );
        problem(StatusCode::BAD_GATEWAY, RELAY_UNREACHABLE, &fix)
    }

    /// Keeps a copy of a refusal that a Postern program made, where somebody wants to explain it; any later answer wipes it out. Sees
    /// when there is no use in going on.
    async fn watched(&self, response: Response<Body>, method: &Method) -> Response<Body> {
        // The one token that was given: when it is refused there is no other.
        let is_last = response.status() == StatusCode::UNAUTHORIZED && !self.tokens.may_renew();
        if self.refused.is_none() && !is_last {
            return response;
        }
        let keep = |last: Option<Refused>| {
            if let Some(refused) = last.as_ref().filter(|_| is_last).map(|last| &last.problem)
                && refused.exit() == Exit::LoginNeeded
                && !refused.is_step_up()
            {
                self.link.end(refused.explain(None, &self.relay.to_string()));
            }
            if let Some(refused) = &self.refused {
                *lock(refused) = last;
            }
        };
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if !is_problem(response.headers()) || length.is_none_or(|length| length > PROBLEM_BYTES) {
            keep(None);
            return response;
        }
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => {
                let bytes = body.to_bytes();
                let problem = Problem::ours(&bytes).map(|problem| problem.challenged(&head.headers));
                keep(problem.map(|problem| Refused { problem, method: method.clone() }));
                Response::from_parts(head, Either::Right(Full::new(bytes)))
            }
            Err(error) => problem(StatusCode::BAD_GATEWAY, RELAY_UNREACHABLE, &escape(&error.to_string())),
        }
    }
}

/// Whether the relay refused the token itself: not the upstream, and not for want of a stronger login (RFC 9470), which no renewal gives.
fn refuses_token(response: &Response<Incoming>) -> bool {
    let step_up = |challenge: &HeaderValue| challenge.to_str().is_ok_and(|text| text.contains(STEP_UP));
    response.status() == StatusCode::UNAUTHORIZED
        && is_problem(response.headers())
        && !response.headers().get_all(WWW_AUTHENTICATE).iter().any(step_up)
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
