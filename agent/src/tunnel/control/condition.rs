//! How a tunnel stands, and how it ended: what its loop tells whoever keeps it.

use std::time::Duration;

/// How a tunnel stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Welcomed; no heartbeat was answered yet.
    New,
    /// A request would succeed.
    Well,
    /// The relay owes an answer; it may be that the path is cut.
    Late,
    /// The relay drains; what runs goes on.
    RelayDrains {
        reconnect_after: Duration,
    },
    Ended(Ended),
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should, after a goodbye.
    Well,
    /// The relay drained and is gone.
    Drained,
    Revoked,
    /// Until an operator resumes this agent.
    Suspended,
    /// The relay, or the way to it, was gone for a while.
    Silent,
    Lost,
}
