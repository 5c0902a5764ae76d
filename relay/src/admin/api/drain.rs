//! `drain`: the running relay refuses new work, finishes what runs and ends, as on SIGTERM. Says how far that has come.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::status::{self, Work};
use super::{Answer, Call, audit, value};
use crate::relay::Relay;

/// How far a drain has come.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Drain {
    pub(crate) draining: bool,
    /// Seconds that what runs may take from the start of the drain on.
    pub(crate) grace: u64,
    pub(crate) work: Work,
}

/// Begins it; begun twice it goes on.
pub(super) fn begin(relay: &Relay, call: &Call) -> Answer {
    audit(relay, call, json!({ "action": "drain" }));
    tracing::info!("told to drain");
    relay.shutdown().begin();
    progress(relay)
}

pub(super) fn progress(relay: &Relay) -> Answer {
    value(&Drain {
        draining: relay.shutdown().is_draining(),
        grace: relay.snapshot().settings.limits.drain.as_secs(),
        work: status::work(relay),
    })
}
