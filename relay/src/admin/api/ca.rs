//! The certificate authority in the admin API: what it is made of, and its rotation in two steps, since the root's key stays with the command
//! that asks. Refuses what that key has not signed.

use std::time::SystemTime;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, Call, audit, body, refuse, value};
use crate::enroll::Signed;
use crate::relay::Relay;
use crate::tunnel::authority;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PrepareCall {
    /// Whether the root itself is to be replaced.
    pub(crate) root: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FinishCall {
    /// Leaves those behind who have not moved.
    pub(crate) force: bool,
}

/// What `ca rotate` prints.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Rotated {
    /// Of the issuing CA in force.
    pub(crate) epoch: u64,
    /// Whether the root before is believed still.
    pub(crate) overlap: bool,
    /// Tunnels whose agents were told to renew.
    pub(crate) told: usize,
}

pub(super) fn show(relay: &Relay) -> Answer {
    value(&relay.enrollment().ca_report(SystemTime::now()))
}

pub(super) fn prepare(relay: &Relay, call: &Call) -> Answer {
    let PrepareCall { root } = body(call)?;
    let prepared = relay.enrollment().prepare_rotation(root);
    value(&prepared.or_else(|e| refuse(StatusCode::CONFLICT, &e))?)
}

pub(super) fn rotate(relay: &Relay, call: &Call) -> Answer {
    let signed: Signed = body(call)?;
    let now = SystemTime::now();
    relay.enrollment().rotate(&signed, now).or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let epoch = relay.enrollment().epoch();
    let root = signed.root.is_some();
    audit(relay, call, json!({ "action": "ca rotate", "epoch": epoch, "root": root }));
    tracing::info!(epoch, root, "a new authority signs the agents' certificates");
    let told = authority::changed(relay, now).or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e))?;
    let overlap = relay.enrollment().ca_report(now).overlap;
    value(&Rotated { epoch, overlap, told })
}

pub(super) fn finish(relay: &Relay, call: &Call) -> Answer {
    let FinishCall { force } = body(call)?;
    let now = SystemTime::now();
    let behind = relay.enrollment().ca_report(now).behind.len();
    relay.enrollment().finish_rotation(force, now).or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let epoch = relay.enrollment().epoch();
    audit(relay, call, json!({ "action": "ca rotate --finish", "epoch": epoch, "left_behind": behind }));
    tracing::info!(left_behind = behind, "the agents' root before this one is not believed any more");
    let told = authority::changed(relay, now).or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e))?;
    value(&Rotated { epoch, overlap: false, told })
}
