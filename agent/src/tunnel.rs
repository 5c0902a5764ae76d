//! Keeps one tunnel to one relay: dials, serves until it ends, waits with full jitter, dials again. A relay that drains is left only
//! after the next tunnel was tried.

use std::sync::Arc;
use std::time::Duration;

use postern_base::backoff::Backoff;
use postern_base::defaults::{RECONNECT_BASE, RECONNECT_CAP, RECONNECT_HEALTHY};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::settings::RelayAddress;
use crate::supervisor::Agent;
use crate::upstream::Upstreams;

pub mod control;
pub mod dial;

use control::Ended;

/// An agent that was removed stays so until somebody acts.
const REMOVED_AGAIN: Duration = Duration::from_mins(1);

/// Runs until the agent shuts down.
pub async fn keep(agent: Arc<Agent>, upstreams: Arc<Upstreams>, relay: RelayAddress) {
    let mut backoff = Backoff::new(RECONNECT_BASE, RECONNECT_CAP);
    // Tunnels of relays that drain finish here what they have, while the next one is already open.
    let tasks = TaskTracker::new();
    while !agent.shutdown.is_draining() {
        let dialled = tokio::select! {
            dialled = dial::dial(&agent, &relay) => dialled,
            () = agent.shutdown.draining() => break,
        };
        let mut wait = None;
        match dialled {
            Ok(tunnel) => {
                let since = Instant::now();
                match control::serve(&agent, &upstreams, tunnel, &tasks).await {
                    Ended::RelayDrains { reconnect_after } => {
                        tracing::info!(%relay, "the relay drains; opening the next tunnel");
                        wait = Some(reconnect_after);
                    }
                    Ended::Leaving => break,
                    Ended::Lost(reason) => tracing::warn!(%relay, %reason, "tunnel lost"),
                    Ended::Revoked => {
                        tracing::error!(%relay, "this agent was removed: join again with a new invite (postern-agent join RELAY --force)");
                        wait = Some(REMOVED_AGAIN);
                    }
                }
                if since.elapsed() >= RECONNECT_HEALTHY {
                    backoff.reset();
                }
            }
            Err(error) => {
                tracing::warn!(%relay, %error, "no tunnel");
                wait = error.retry_after();
            }
        }
        agent.metrics.reconnects.inc();
        let jittered = backoff.next(rand::random());
        let wait = wait.map_or(jittered, |asked| asked + jittered.min(Duration::from_secs(1)));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = agent.shutdown.draining() => {}
        }
    }
    tasks.close();
    tasks.wait().await;
}
