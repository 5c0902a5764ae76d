//! Hands the head of the audit log to agents, for them to hold: when a tunnel opens, every minute, and when the relay begins to drain. What
//! an agent holds the head of cannot be changed or cut off afterwards without its being seen. The relay's time goes with it.

use std::sync::Arc;
use std::time::Duration;

use postern_wire::control::RelayMessage;

use super::control::tell_time;
use super::registry::Tunnel;
use crate::relay::Relay;

/// How much of the log's end nobody else holds (security.md 19).
const EVERY: Duration = Duration::from_mins(1);

/// Gives one agent the head of now.
pub fn give(relay: &Relay, tunnel: &Tunnel) {
    if let Some((sequence, head)) = relay.audit().head() {
        // Whoever does not know such messages, or is behind, gets the next one, or none.
        let _ = tunnel.try_say(RelayMessage::ChainHead { sequence, hash: head.0 });
    }
}

/// Gives all agents heads, as long as the relay runs.
pub async fn hand_out(relay: Arc<Relay>) {
    loop {
        let is_draining = relay.shutdown().is_draining();
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = relay.shutdown().draining(), if !is_draining => {}
        }
        for tunnel in relay.registry().all() {
            give(&relay, &tunnel);
            tell_time(&tunnel);
        }
    }
}
