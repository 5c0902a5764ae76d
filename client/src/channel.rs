//! Takes a TCP service; gives a stream of raw bytes to it: a request to `/.postern/tcp/{service}` with the session's token, on a TLS
//! connection of its own, that the relay switches (101). Gives the relay's refusal where it does not.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_base::id::ServiceName;

use crate::dial::{Dial, Tls, innermost};
use crate::failure::Failure;
use crate::output::text::escape;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::problem::{PROBLEM_BYTES, Problem, is_problem};
use crate::relay_api::{RelayError, bearer};
use crate::session::refresh::Tokens;
use crate::session::{Access, SessionError, now};

/// What the connection becomes.
const PROTOCOL: HeaderValue = HeaderValue::from_static("postern-tcp");
/// For the relay's answer, which waits for the agent and its upstream: longer than the relay itself waits, so that its word is heard.
const ANSWER: Duration = Duration::from_secs(40);

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

/// A stream to a service, and what came from it together with the relay's answer.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) stream: Tls,
    pub(crate) early: Bytes,
    /// The end of the token that opened it, and so of the stream; in seconds since the epoch.
    expires: u64,
}

impl Channel {
    /// Whether the relay had to end it by now.
    pub(crate) fn is_expired(&self) -> bool {
        self.expires <= now() + SKEW
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
}

impl Opener {
    /// Opens a stream; once more with a new token when the relay refuses one that has lived a while.
    pub(crate) async fn open(&self) -> Result<Channel, ChannelError> {
        let audience = self.audience.as_deref();
        let mut access = self.tokens.access(audience, Duration::ZERO).await?;
        // A stream lives as long as its token: it gets one with at least half of its life before it.
        let half = access.expires.saturating_sub(access.issued) / 2;
        if access.expires.saturating_sub(now()) < half {
            access = self.tokens.access(audience, Duration::from_secs(half)).await?;
        }
        match self.with(&access).await {
            Err(error) if error.is_unauthorized() => {
                self.tokens.doubt(&access);
                let renewed = self.tokens.access(audience, Duration::ZERO).await?;
                if renewed.token.0.expose() == access.token.0.expose() {
                    return Err(error.into());
                }
                Ok(self.with(&renewed).await?)
            }
            other => Ok(other?),
        }
    }

    async fn with(&self, access: &Access) -> Result<Channel, RelayError> {
        let request = Request::get(format!("/.postern/tcp/{}", self.service))
            .header(HOST, self.relay.to_string())
            .header(CONNECTION, UPGRADE.as_str())
            .header(UPGRADE, PROTOCOL)
            .header(AUTHORIZATION, bearer(&access.token.0).map_err(|e| self.not_postern(e.to_string()))?)
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.not_postern(e.to_string()))?;
        let stream = self.dial.http1().await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(&e))?;
        let mut connection = pin!(connection.without_shutdown());
        let mut left = None;
        let refused = {
            let mut exchange = pin!(tokio::time::timeout(ANSWER, async {
                let answer = sender.send_request(request).await.map_err(|e| self.unreachable(&e))?;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return self.switched(&answer);
                }
                Err(self.refusal(answer).await)
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
        refused.map_err(|_| self.late())??;
        let parts = match left {
            Some(parts) => parts,
            None => connection.await,
        };
        let parts = parts.map_err(|e| self.unreachable(&e))?;
        Ok(Channel { stream: parts.io.into_inner(), early: parts.read_buf, expires: access.expires })
    }

    fn switched(&self, answer: &Response<Incoming>) -> Result<(), RelayError> {
        match answer.headers().get(UPGRADE) {
            Some(protocol) if *protocol == PROTOCOL => Ok(()),
            _ => Err(self.not_postern("it switched to something else".to_owned())),
        }
    }

    async fn refusal(&self, answer: Response<Incoming>) -> RelayError {
        let status = answer.status();
        let ours = is_problem(answer.headers());
        let body = match Limited::new(answer.into_body(), PROBLEM_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return self.not_postern(escape(&error.to_string())),
        };
        match Problem::ours(&body).filter(|_| ours) {
            Some(problem) => RelayError::Refused {
                relay: self.relay.clone(),
                status: status.as_u16(),
                problem: Box::new(problem.about(&self.service)),
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

    /// What a person is told.
    pub(crate) fn failure(&self, error: ChannelError) -> Failure {
        match error {
            ChannelError::Session(error) => error.into(),
            ChannelError::Relay(RelayError::Refused { relay, problem, .. }) => {
                problem.explain(Some(&format!("CONNECT {}", self.service)), &relay.to_string())
            }
            ChannelError::Relay(error @ (RelayError::Unreachable { .. } | RelayError::NotPostern { .. })) => {
                error.into()
            }
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
