//! One tunnel's part in the certificate's renewal: asks when it is due and no other tunnel does, waits for the answer, and has it on disk
//! before it is used.

use std::sync::Arc;
use std::time::Duration;

use postern_wire::control::AgentMessage;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::identity::{IdentityError, Renewal};
use crate::supervisor::Agent;

/// While another tunnel asks; and the shortest pause between two looks.
const SOON: Duration = Duration::from_secs(1);
/// The longest: the wall clock may be set meanwhile.
const LOOK: Duration = Duration::from_mins(10);
/// A relay has this long to answer: it signs once and writes once.
const ANSWER: Duration = Duration::from_secs(30);

pub(super) struct Renewing {
    /// When to look whether it is due; while an answer is awaited, when that is late.
    at: Instant,
    /// Asked for and not yet answered; no other tunnel asks meanwhile.
    asked: Option<(Renewal, OwnedMutexGuard<()>)>,
}

/// None where it is not renewed over tunnels.
fn due(agent: &Agent) -> Option<Duration> {
    let half_life = agent.identity.renew_in(agent.now())?;
    Some(agent.renewals.due_in(half_life, Instant::now()))
}

fn next_look(agent: &Agent) -> Instant {
    Instant::now() + due(agent).unwrap_or(LOOK).clamp(SOON, LOOK)
}

impl Renewing {
    pub(super) fn new(agent: &Agent) -> Self {
        Self { at: next_look(agent), asked: None }
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// The clock, or what the relay wants, may have changed when it is due.
    pub(super) fn look_again(&mut self, agent: &Agent) {
        if self.asked.is_none() {
            self.at = self.at.min(next_look(agent));
        }
    }

    /// The relay's authority changed.
    pub(super) fn want(&mut self, agent: &Agent) {
        agent.renewals.want(agent.identity.life(), Instant::now(), rand::random());
        self.look_again(agent);
    }

    /// What to ask the relay; `None` where it is too early or another tunnel asks: then it is looked at again a little later. Called at
    /// its time.
    pub(super) async fn ask(&mut self, agent: &Arc<Agent>) -> Option<AgentMessage> {
        if self.asked.is_some() {
            self.give_up(agent, "the relay did not answer in time");
            return None;
        }
        let is_due = due(agent).is_some_and(|due| due.is_zero());
        let (true, Some(only)) = (is_due, agent.renewals.begin()) else {
            self.at = next_look(agent);
            return None;
        };
        let keeper = agent.clone();
        // The key is on disk before anybody is asked: not where requests are served.
        let made = tokio::task::spawn_blocking(move || keeper.identity.renewal()).await;
        match made {
            Ok(Ok(renewal)) => {
                let asked = AgentMessage::Renew { csr: renewal.csr().to_vec() };
                self.asked = Some((renewal, only));
                self.at = Instant::now() + ANSWER;
                Some(asked)
            }
            Ok(Err(e)) => {
                self.failed(agent, &e.to_string(), Duration::ZERO);
                None
            }
            Err(_) => {
                self.failed(agent, "its key could not be made", Duration::ZERO);
                None
            }
        }
    }

    pub(super) async fn renewed(&mut self, agent: &Arc<Agent>, chain: Vec<Vec<u8>>) {
        // Late: it was given up, and the same key is certified once more.
        let Some((renewal, _only)) = self.asked.take() else { return };
        let keeper = agent.clone();
        let kept = tokio::task::spawn_blocking(move || keeper.identity.accept(renewal, chain)).await;
        match kept.unwrap_or_else(|_| Err(IdentityError::Foreign("it cannot be read".to_owned()))) {
            Ok(()) => {
                tracing::info!("certificate renewed");
                agent.renewals.succeeded();
                self.at = next_look(agent);
            }
            Err(e) => self.failed(agent, &format!("the renewed certificate cannot be used: {e}"), SOON),
        }
    }

    pub(super) fn refused(&mut self, agent: &Agent, reason: &str, retry_after: Duration) {
        if self.asked.take().is_some() {
            self.failed(agent, &format!("the relay refused it: {}", reason.escape_debug()), retry_after);
        }
    }

    /// Lets another tunnel ask: this one serves no more, or its relay owes the answer.
    pub(super) fn give_up(&mut self, agent: &Agent, reason: &str) {
        if self.asked.take().is_some() {
            self.failed(agent, reason, Duration::ZERO);
        }
    }

    fn failed(&mut self, agent: &Agent, reason: &str, least: Duration) {
        tracing::error!(%reason, "the certificate was not renewed; trying again");
        agent.metrics.renewal_failures.inc();
        agent.renewals.failed(reason, least, Instant::now(), rand::random());
        self.at = next_look(agent);
    }
}
