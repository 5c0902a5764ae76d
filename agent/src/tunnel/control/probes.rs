//! Upstreams that the relay has this agent try, for its `doctor`: beside the tunnel's loop, a few at a time.

use std::sync::Arc;

use postern_wire::control::AgentMessage;
use tokio::task::JoinSet;

use crate::supervisor::Agent;
use crate::upstream;

/// A relay asks one at a time for each service that somebody examines; whoever asks for more waits in vain.
const AT_ONCE: usize = 16;

/// Those under way on one tunnel; they end with it.
#[derive(Default)]
pub(super) struct Probes(JoinSet<AgentMessage>);

impl Probes {
    pub(super) fn start(&mut self, agent: &Arc<Agent>, id: u64, service: String) {
        if self.0.len() >= AT_ONCE {
            tracing::debug!(id, "the relay asks for too many probes at once");
            return;
        }
        let agent = agent.clone();
        self.0.spawn(async move {
            let probed = upstream::probe(&agent, &service).await;
            let took_us = u64::try_from(probed.took.as_micros()).unwrap_or(u64::MAX);
            AgentMessage::Probed { id, reached: probed.reached, detail: probed.detail, took_us }
        });
    }

    /// The next answer; waits for ever where nothing was asked.
    pub(super) async fn next(&mut self) -> AgentMessage {
        loop {
            match self.0.join_next().await {
                Some(Ok(probed)) => return probed,
                // A panic: the relay waits no longer than it is patient.
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }
}
