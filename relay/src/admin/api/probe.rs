//! Has a service's agents try its upstream, for `doctor SERVICE`.

use std::time::Duration;

use http::StatusCode;
use postern_base::id::{AgentName, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, Call, body, value};
use crate::relay::Relay;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProbeCall {
    pub(crate) service: ServiceName,
}

/// What one agent saw, or why it did not say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProbeView {
    pub(crate) agent: AgentName,
    pub(crate) instance: Option<String>,
    /// Whether the upstream took a connection; none where the agent was not heard.
    pub(crate) reached: Option<bool>,
    pub(crate) detail: String,
    pub(crate) took_us: u64,
}

pub(super) async fn probe(relay: &Relay, call: &Call) -> Answer {
    let ProbeCall { service } = body(call)?;
    let snapshot = relay.snapshot();
    let Some(known) = snapshot.settings.services.get(&service) else {
        let error = format!(
            "there is no service {service} in what is in force: look at `postern-relay service ls`, and if it is new, postern-relay reload"
        );
        return Err((StatusCode::NOT_FOUND, json!({ "error": error })));
    };
    let outcomes = relay.probes().service(relay.registry(), &known.agents, &service).await;
    let views = outcomes.into_iter().map(|one| {
        let (reached, detail, took) = match one.outcome {
            Ok(probed) => (Some(probed.reached), probed.detail, probed.took),
            Err(error) => (None, error.to_string(), Duration::ZERO),
        };
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let instance = one.instance.map(|instance| instance.to_string());
        ProbeView { agent: one.agent, instance, reached, detail, took_us }
    });
    value(&views.collect::<Vec<_>>())
}
