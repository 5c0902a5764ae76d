//! The certificate's renewal over a tunnel, at half-life: one tunnel asks at a time, and the answer is on disk before it is used.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_wire::control::AgentMessage;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::identity::Renewal;
use crate::supervisor::Agent;

/// How soon a refused renewal is tried again where the relay says nothing else.
const AGAIN: Duration = Duration::from_secs(30);
/// While another tunnel asks, or the relay says less.
const SOON: Duration = Duration::from_secs(1);

/// One tunnel's part in it.
pub(super) struct Renewing {
    at: Instant,
    /// Asked for and not yet answered; no other tunnel asks meanwhile.
    asked: Option<(Renewal, OwnedMutexGuard<()>)>,
}

impl Renewing {
    pub(super) fn new(agent: &Agent) -> Self {
        Self { at: Instant::now() + agent.identity.renew_in(SystemTime::now()), asked: None }
    }

    /// When to ask.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    /// What to ask the relay; `None` where it is too early or another tunnel asks: then it is looked at again a little later.
    pub(super) fn ask(&mut self, agent: &Agent) -> Option<AgentMessage> {
        let due = agent.identity.renew_in(SystemTime::now());
        let (true, Ok(only)) = (due.is_zero(), agent.renewing.clone().try_lock_owned()) else {
            self.at = Instant::now() + due.max(SOON);
            return None;
        };
        match agent.identity.renewal() {
            Ok(renewal) => {
                let asked = AgentMessage::Renew { csr: renewal.csr().to_vec() };
                self.asked = Some((renewal, only));
                Some(asked)
            }
            Err(e) => {
                tracing::error!(error = %e, "no certificate request could be made");
                self.at = Instant::now() + AGAIN;
                None
            }
        }
    }

    pub(super) async fn renewed(&mut self, agent: &Arc<Agent>, chain: Vec<Vec<u8>>) {
        let Some((renewal, _only)) = self.asked.take() else { return };
        let keeper = agent.clone();
        // It syncs to disk: not where requests are served.
        let kept = tokio::task::spawn_blocking(move || keeper.identity.accept(renewal, chain)).await;
        let Ok(kept) = kept else { return };
        match kept {
            Ok(()) => tracing::info!("certificate renewed"),
            Err(e) => tracing::error!(error = %e, "the renewed certificate cannot be used; trying again"),
        }
        self.at = Instant::now() + agent.identity.renew_in(SystemTime::now()).max(SOON);
    }

    pub(super) fn refused(&mut self, reason: &str, retry_after: Duration) {
        tracing::error!(reason = %reason.escape_debug(), "the certificate was not renewed; trying again");
        self.asked = None;
        self.at = Instant::now() + retry_after.max(SOON);
    }

    /// Lets another tunnel ask.
    pub(super) fn give_up(&mut self) {
        self.asked = None;
    }
}
