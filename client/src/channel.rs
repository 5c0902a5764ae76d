//! Takes a TCP service; gives a stream of raw bytes to it: a request to `/.postern/tcp/{service}` with the session's token, on a TLS
//! connection of its own, that the relay switches (101); its lease is held as long as the stream. Gives the relay's refusal where it does
//! not switch.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_base::id::ServiceName;

use crate::dial::{Dial, Tls, innermost};
use crate::failure::{Exit, Failure};
use crate::forward::link::is_over;
use crate::lease::{Lease, Leases};
use crate::output::text::escape;
use crate::relay_api::address::{RelayUrl, Target};
use crate::relay_api::problem::{PROBLEM_BYTES, Problem, is_problem, lock_fix};
use crate::relay_api::{Explained, Held, RelayError};
use crate::session::pass::Pass;
use crate::session::refresh::Tokens;
use crate::session::{SessionError, now};

/// What the connection becomes.
const PROTOCOL: HeaderValue = HeaderValue::from_static("postern-tcp");
/// For the relay's answer, which waits for the agent and its upstream: longer than the relay itself waits, so that its word is heard.
const ANSWER: Duration = Duration::from_secs(40);

/// For the relay's word on a stream that it ended.
const WHY: Duration = Duration::from_secs(5);
const CONNECT: &str = "CONNECT";

/// The end of a token is reckoned from when it came, and the relay has a clock of its own; in seconds.
const SKEW: u64 = 5;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

/// What comes of one request.
enum Refused {
    Error(RelayError),
    /// It is to be made once more, with the nonce that the relay gave.
    ForNonce(RelayError),
}

impl Refused {
    fn into_error(self) -> RelayError {
        match self {
            Self::Error(error) | Self::ForNonce(error) => error,
        }
    }
}

impl From<RelayError> for Refused {
    fn from(error: RelayError) -> Self {
        Self::Error(error)
    }
}

/// A stream to a service, and what came from it together with the relay's answer.
pub(crate) struct Channel {
    pub(crate) stream: Tls,
    pub(crate) early: Bytes,
    /// The end of the token that opened it, in seconds since the epoch.
    expires: u64,
    /// With one the stream outlives that token.
    lease: Option<Lease>,
}

impl Channel {
    /// Whether the relay had to end it by now.
    pub(crate) fn is_expired(&self) -> bool {
        self.lease.as_ref().map_or(self.expires, Lease::expires) <= now() + SKEW
    }
}

/// Opens streams to one service.
pub(crate) struct Opener {
    pub(crate) service: ServiceName,
    pub(crate) relay: RelayUrl,
    pub(crate) dial: Dial,
    /// The service's own audience.
    pub(crate) audience: Option<String>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) leases: Arc<Leases>,
}

impl Opener {
    /// Opens a stream; once more with a new token when the relay refuses one that has lived a while.
    pub(crate) async fn open(&self) -> Result<Channel, ChannelError> {
        let audience = self.audience.as_deref();
        // A stream begins with a token that has at least half of its life before it.
        let pass = self.tokens.pass(audience, Duration::ZERO).await?;
        let half = Duration::from_secs(pass.expires().saturating_sub(pass.issued()) / 2);
        self.tokens.shown(audience, half, |pass| self.with(pass)).await
    }

    async fn with(&self, pass: Pass) -> Result<Channel, RelayError> {
        match self.asked(&pass).await {
            Err(Refused::ForNonce(_)) => self.asked(&pass).await.map_err(Refused::into_error),
            other => other.map_err(Refused::into_error),
        }
    }

    async fn asked(&self, pass: &Pass) -> Result<Channel, Refused> {
        let path = format!("/.postern/tcp/{}", self.service);
        let mut request = Request::get(&path)
            .header(HOST, self.relay.to_string())
            .header(CONNECTION, UPGRADE.as_str())
            .header(UPGRADE, PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.not_postern(e.to_string()))?;
        let shown = pass.show(request.headers_mut(), "GET", &self.relay.at(&path));
        shown.map_err(RelayError::from)?;
        let stream = self.dial.http1().await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(&e))?;
        let mut connection = pin!(connection.without_shutdown());
        let mut left = None;
        let answered = {
            let mut exchange = pin!(tokio::time::timeout(ANSWER, async {
                let answer = sender.send_request(request).await.map_err(|e| self.unreachable(&e))?;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Ok(self.switched(&answer, pass)?);
                }
                let for_nonce = pass.wants_nonce(answer.status(), answer.headers());
                let error = self.refusal(answer).await;
                Err(if for_nonce { Refused::ForNonce(error) } else { Refused::Error(error) })
            }));
            // The connection works for the exchange; with 101 it is over first, and leaves the stream.
            loop {
                tokio::select! {
                    biased;
                    answer = &mut exchange => break answer,
                    parts = &mut connection, if left.is_none() => left = Some(parts),
                }
            }
        };
        let lease = answered.map_err(|_| self.late())??;
        let parts = match left {
            Some(parts) => parts,
            None => connection.await,
        };
        let parts = parts.map_err(|e| self.unreachable(&e))?;
        Ok(Channel { stream: parts.io.into_inner(), early: parts.read_buf, expires: pass.expires(), lease })
    }

    fn switched(&self, answer: &Response<Incoming>, pass: &Pass) -> Result<Option<Lease>, RelayError> {
        match answer.headers().get(UPGRADE) {
            Some(protocol) if *protocol == PROTOCOL => {
                Ok(self.leases.hold(answer.headers(), &self.service, self.audience.as_deref(), pass))
            }
            _ => Err(self.not_postern("it switched to something else".to_owned())),
        }
    }

    async fn refusal(&self, answer: Response<Incoming>) -> RelayError {
        let status = answer.status();
        let (head, body) = answer.into_parts();
        let headers = head.headers;
        let ours = is_problem(&headers);
        let body = match Limited::new(body, PROBLEM_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.not_postern(escape(&error.to_string())),
        };
        match Problem::ours(&body).filter(|_| ours) {
            Some(problem) => RelayError::Refused {
                relay: self.relay.clone(),
                status: status.as_u16(),
                problem: Box::new(problem.about(&self.service).challenged(&headers)),
            },
            None => self.not_postern(format!("a TCP service is answered with status {status}")),
        }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> RelayError {
        RelayError::Unreachable { relay: self.relay.clone(), reason: escape(&innermost(error)) }
    }

    fn late(&self) -> RelayError {
        RelayError::Unreachable { relay: self.relay.clone(), reason: format!("no answer within {ANSWER:?}") }
    }

    fn not_postern(&self, reason: String) -> RelayError {
        RelayError::NotPostern { relay: self.relay.clone(), reason }
    }

    /// Why the relay ended a stream that stood, in its own words; asked once, and nothing is opened for it. `None` where it does not say,
    /// or would allow another.
    pub(crate) async fn why_ended(&self) -> Option<Failure> {
        let target = Target { service: self.service.clone(), path: String::new() };
        let (target, relay) = (&target, self.leases.relay());
        let ask = self.tokens.shown(self.audience.as_deref(), Duration::ZERO, |pass| async move {
            relay.explain(&pass, CONNECT, target).await
        });
        let failure = match tokio::time::timeout(WHY, ask).await.ok()? {
            Ok(Explained { allowed: true, held: Some(Held::Lock { lock }), .. }) => {
                Failure::new(Exit::UpstreamDown, "the service is locked").fix(lock_fix(lock.raw()))
            }
            Ok(explained) if explained.allowed => return None,
            Ok(explained) => Failure::new(Exit::Denied, explained.verdict()),
            Err(error @ ChannelError::Relay(RelayError::Refused { .. })) => self.failure(error),
            Err(ChannelError::Session(_) | ChannelError::Relay(_)) => return None,
        };
        let said = format!("the relay ended a connection to {}: {}", self.service, failure.message);
        Some(Failure { message: said, ..failure })
    }

    /// Whether no other try can do better: nobody is logged in any more, or the one token that was given is refused.
    pub(crate) fn is_over(&self, error: &ChannelError) -> bool {
        match error {
            ChannelError::Session(error) => is_over(error),
            ChannelError::Relay(error) => {
                !self.tokens.may_renew() && error.is_unauthorized() && !error.is_locked()
            }
        }
    }

    /// What a person is told.
    pub(crate) fn failure(&self, error: ChannelError) -> Failure {
        match error {
            ChannelError::Session(error) => error.into(),
            ChannelError::Relay(RelayError::Refused { relay, problem, .. }) => {
                problem.explain(Some(&format!("CONNECT {}", self.service)), &relay.to_string())
            }
            ChannelError::Relay(
                error
                @ (RelayError::Unreachable { .. } | RelayError::NotPostern { .. } | RelayError::Pass(_)),
            ) => error.into(),
        }
    }
}

impl ChannelError {
    /// Whether the relay could not be reached at all.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Relay(RelayError::Unreachable { .. }))
    }

    /// Whether it may well be otherwise in a moment: the relay is away, or (503) it is there and its agents are not yet, or the tunnel
    /// broke (a connection that never stood had nothing to lose).
    pub(crate) fn may_pass(&self) -> bool {
        self.is_lost()
            || self.is_tunnel_lost()
            || matches!(self, Self::Relay(RelayError::Refused { status: 503, .. }))
    }

    /// Whether the way to the agent broke while the connection was made.
    pub(crate) fn is_tunnel_lost(&self) -> bool {
        matches!(self, Self::Relay(RelayError::Refused { problem, .. }) if problem.is_tunnel_lost())
    }
}

#[cfg(test)]
#[path = "channel/tests.rs"]
mod tests;
