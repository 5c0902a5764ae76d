//! The admin API of a running agent, over the unix socket in its state directory: `status`, `drain`, and what `doctor` has the agent try
//! itself. Takes calls of its own user and of root; what they change is logged and audited with who asked.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode};
use postern_base::admin::{Actor, Call, Socket};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::supervisor::Agent;

pub mod checks;
pub mod status;

pub const STATUS: &str = "/status";
pub const DRAIN: &str = "/drain";
pub const CHECKS: &str = "/checks";

/// The answer to a drain.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drained {
    /// What still runs is cut after this many seconds.
    pub grace: u64,
    pub requests_in_flight: u64,
}

/// Answers until it is dropped.
pub async fn serve(agent: Arc<Agent>, socket: Socket) {
    let started = SystemTime::now();
    let handler = move |call: Call| {
        let agent = agent.clone();
        async move { answer(&agent, started, &call).await }
    };
    socket.serve(handler).await;
}

async fn answer(agent: &Agent, started: SystemTime, call: &Call) -> (StatusCode, Value) {
    match (&call.method, call.path.as_str()) {
        (&Method::GET, STATUS) => good(&status::of(agent, started)),
        (&Method::POST, DRAIN) => {
            told(agent, "drain", call.uid).await;
            agent.shutdown.begin();
            let grace = agent.settings.drain.as_secs();
            good(&Drained { grace, requests_in_flight: agent.metrics.requests_in_flight() })
        }
        (&Method::POST, CHECKS) => good(&checks::of(&agent.health, agent.verifier.as_ref()).await),
        _ => {
            let error = "this agent has no such operation: use the command of its own version";
            (StatusCode::NOT_IMPLEMENTED, json!({ "error": error }))
        }
    }
}

fn good(value: &impl Serialize) -> (StatusCode, Value) {
    match serde_json::to_value(value) {
        Ok(value) => (StatusCode::OK, value),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": e.to_string() })),
    }
}

/// Says who does something, in the log and in the audit log, before it is done.
async fn told(agent: &Agent, action: &'static str, uid: u32) {
    // The name may have to be asked for somewhere.
    let actor = tokio::task::spawn_blocking(move || Actor::of(uid)).await;
    let actor = actor.unwrap_or(Actor { uid, user: None });
    tracing::info!(action, uid, user = actor.user.as_deref(), "admin");
    let mut detail = json!({ "action": action });
    actor.sign(&mut detail);
    agent.audit.event("admin", detail);
}
