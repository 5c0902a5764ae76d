//! The certificate authority in the admin API: what it is made of, and its rotation in two steps, since the root's key stays with the command
//! that asks. Refuses what that key has not signed.

use std::time::SystemTime;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, Call, audit, body, refuse, value};
use crate::enroll::{EnrollError, Enrollment, Signed};
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

pub(super) fn new_authority(relay: &Relay, call: &Call) -> Answer {
    let now = SystemTime::now();
    let done = rotate(relay.enrollment(), &body(call)?, now);
    let (rotated, detail) = done.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    tracing::info!(epoch = rotated.epoch, root = %detail["root"], "a new authority signs the agents' certificates");
    in_force(relay, call, &rotated, detail, now)
}

pub(super) fn end_overlap(relay: &Relay, call: &Call) -> Answer {
    let now = SystemTime::now();
    let done = finish(relay.enrollment(), &body(call)?, now);
    let (rotated, detail) = done.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let behind = &detail["left_behind"];
    tracing::info!(left_behind = %behind, "the agents' root before this one is not believed any more");
    in_force(relay, call, &rotated, detail, now)
}

fn in_force(relay: &Relay, call: &Call, rotated: &Rotated, detail: Value, now: SystemTime) -> Answer {
    audit(relay, call, detail);
    let told = authority::changed(relay, now).or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e))?;
    value(&Rotated { told, ..*rotated })
}

/// Gives what was done, and what the audit log says of it.
pub(crate) fn rotate(
    enrollment: &Enrollment,
    signed: &Signed,
    now: SystemTime,
) -> Result<(Rotated, Value), EnrollError> {
    enrollment.rotate(signed, now)?;
    let epoch = enrollment.epoch();
    let detail = json!({ "action": "ca rotate", "epoch": epoch, "root": signed.root.is_some() });
    Ok((Rotated { epoch, overlap: enrollment.ca_report(now).overlap, told: 0 }, detail))
}

/// As [`rotate`].
pub(crate) fn finish(
    enrollment: &Enrollment,
    FinishCall { force }: &FinishCall,
    now: SystemTime,
) -> Result<(Rotated, Value), EnrollError> {
    let behind = enrollment.ca_report(now).behind.len();
    enrollment.finish_rotation(*force, now)?;
    let epoch = enrollment.epoch();
    let detail = json!({ "action": "ca rotate --finish", "epoch": epoch, "left_behind": behind });
    Ok((Rotated { epoch, overlap: false, told: 0 }, detail))
}
