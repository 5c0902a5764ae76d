//! Every way in which the relay refuses a request. What each of them means to a caller is the [`table`](super::table)'s business.

use std::time::Duration;

use postern_gate::policy::Denial;
use postern_gate::token::{ExchangeError, TokenError};
use postern_wire::head::Stage;

use crate::request::limit::OverLimit;
use crate::session::Cut;

/// Every way in which the relay refuses a request.
#[derive(Debug)]
pub enum Refusal {
    Malformed(String),
    NoToken,
    BadToken(TokenError),
    IssuerUnavailable(TokenError),
    TooManyFailures,
    Denied(Denial),
    /// Every rule that allows it was used as often as it lets.
    OverLimit(OverLimit),
    /// More callers use limited rules than can be counted.
    CountsFull,
    /// The identity fields for the upstream do not fit.
    IdentityTooLarge(&'static str),
    /// The issuer gives no token for the upstream.
    NotExchanged(ExchangeError),
    NotFound,
    /// One of the relay's own addresses, asked with another method than these.
    OwnMethod(&'static str),
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
    /// Every agent that may serve it is suspended.
    Suspended,
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
    /// Locked, or cut before the answer began.
    Cut(Cut),
    Internal,
}

impl From<Cut> for Refusal {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}
