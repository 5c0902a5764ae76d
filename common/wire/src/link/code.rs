//! How streams and tunnels end before their time: the numbers of protocol.md, and who or what was at fault.

use std::fmt;

use crate::codec::CodecError;

/// The number that closes or resets a stream or a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Ended as meant.
    pub const DONE: Self = Self(0);
    /// The other side is no longer interested.
    pub const CANCELLED: Self = Self(1);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(2);
    /// Something expected in time did not come.
    pub const TIMEOUT: Self = Self(3);
    /// The agent's enrolment was taken away.
    pub const REVOKED: Self = Self(4);
    /// Draining is over.
    pub const DRAINED: Self = Self(5);
    /// The agent has to prove who it is, and did not.
    pub const UNAUTHENTICATED: Self = Self(6);
    /// No room for more.
    pub const OVERLOADED: Self = Self(7);
    /// The upstream's or the caller's body broke off.
    pub const BROKEN_BODY: Self = Self(8);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::DONE => "done",
            Self::CANCELLED => "cancelled",
            Self::PROTOCOL => "protocol violation",
            Self::TIMEOUT => "timed out",
            Self::REVOKED => "revoked",
            Self::DRAINED => "drained",
            Self::UNAUTHENTICATED => "not authenticated",
            Self::OVERLOADED => "overloaded",
            Self::BROKEN_BODY => "body broke off",
            Self(other) => return write!(f, "code {other}"),
        };
        f.write_str(name)
    }
}

/// Why a stream ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset or stopped this stream.
    #[error("the peer ended the stream: {0}")]
    Peer(Code),
    /// The whole tunnel is gone.
    #[error("the tunnel is gone: {0}")]
    Lost(String),
    /// The stream ended where more had to come.
    #[error("the stream ended too early")]
    Truncated,
    #[error(transparent)]
    Codec(#[from] CodecError),
}
