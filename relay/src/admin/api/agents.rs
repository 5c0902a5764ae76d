//! Agents in the admin API: invites, the list, and who of those that are enrolled stays in. Takes orders on an agent or one of its instances;
//! carries them out, cuts the tunnels that they end, and records whose order it was.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use postern_base::admin::Call;
use postern_base::id::{AgentName, ServiceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::status::{self, TunnelView};
use super::{Answer, audit, body, refuse, value};
use crate::enroll::{AgentRow, EnrollError, Enrollment, InviteRow, Suspension, SuspensionRow, Who};
use crate::relay::Relay;
use crate::tunnel::registry::TunnelInfo;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InviteCall {
    pub(crate) agent: AgentName,
    pub(crate) services: Option<Vec<ServiceName>>,
    /// Seconds.
    pub(crate) ttl: Option<u64>,
}

impl InviteCall {
    pub(crate) fn told(&self) -> Value {
        json!({ "action": "agent invite", "agent": self.agent, "services": self.services })
    }
}

/// What `agent invite` prints.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Invited {
    pub(crate) invite: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SuspendCall {
    pub(crate) agent: Who,
    pub(crate) reason: String,
}

/// What `agent resume` and `agent remove` are about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AgentCall {
    pub(crate) agent: Who,
}

/// A suspension, as `agent suspend` and `agent resume` print it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Suspended {
    pub(crate) who: Who,
    pub(crate) suspension: Suspension,
    /// How many were cut.
    pub(crate) tunnels: usize,
    /// What else of that name is suspended.
    pub(crate) others: Vec<Who>,
}

impl Suspended {
    fn new(enrollment: &Enrollment, who: Who, suspension: Suspension, tunnels: usize) -> Self {
        let all = enrollment.suspensions().into_iter().map(|row| row.who);
        let others = all.filter(|other| other.name == who.name && *other != who).collect();
        Self { who, suspension, tunnels, others }
    }
}

/// What `agent remove` prints.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Removed {
    pub(crate) instances: usize,
    /// How many were cut.
    pub(crate) tunnels: usize,
}

/// What `agent ls` prints. Times are seconds since the epoch.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AgentList {
    /// Of the authority in force: who has a certificate of a lower one has not moved yet.
    pub(crate) epoch: u64,
    pub(crate) agents: Vec<AgentView>,
    /// Tunnels of instances whose certificates were made elsewhere.
    pub(crate) others: Vec<TunnelView>,
    pub(crate) invites: Vec<InviteRow>,
    pub(crate) suspensions: Vec<SuspensionRow>,
}

/// One instance, with its tunnels of now.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AgentView {
    #[serde(flatten)]
    pub(crate) row: AgentRow,
    pub(crate) tunnels: Vec<TunnelView>,
}

/// What an audit line says of an order on an agent.
fn told(action: &str, who: &Who) -> Value {
    json!({ "action": action, "agent": who.name, "instance": who.instance })
}

pub(super) fn new_invite(relay: &Relay, call: &Call) -> Answer {
    let wanted: InviteCall = body(call)?;
    let invited = invite(relay.enrollment(), &wanted, SystemTime::now());
    let invited = invited.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    audit(relay, call, wanted.told());
    value(&invited)
}

pub(super) fn new_suspension(relay: &Relay, call: &Call) -> Answer {
    let cut = |who: &Who| relay.cut_agent(who);
    ordered(relay, call, suspend(relay.enrollment(), body(call)?, call.uid, cut))
}

pub(super) fn end_suspension(relay: &Relay, call: &Call) -> Answer {
    ordered(relay, call, resume(relay.enrollment(), body(call)?))
}

pub(super) fn removal(relay: &Relay, call: &Call) -> Answer {
    let cut = |who: &Who| relay.cut_agent(who);
    ordered(relay, call, remove(relay.enrollment(), &body(call)?, cut))
}

fn ordered<T: Serialize>(relay: &Relay, call: &Call, done: Result<(T, Value), EnrollError>) -> Answer {
    let (done, detail) = done.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    audit(relay, call, detail);
    value(&done)
}

/// Gives what was done, and what the audit log says of it; `cut` ends tunnels and says how many.
pub(crate) fn suspend(
    enrollment: &Enrollment,
    SuspendCall { agent, reason }: SuspendCall,
    uid: u32,
    cut: impl FnOnce(&Who) -> usize,
) -> Result<(Suspended, Value), EnrollError> {
    let suspension = enrollment.suspend(&agent, &reason, Some(uid), SystemTime::now())?;
    let tunnels = cut(&agent);
    let mut detail = told("agent suspend", &agent);
    detail["reason"] = suspension.reason.as_str().into();
    detail["tunnels"] = tunnels.into();
    Ok((Suspended::new(enrollment, agent, suspension, tunnels), detail))
}

/// As [`suspend`].
pub(crate) fn resume(
    enrollment: &Enrollment,
    AgentCall { agent }: AgentCall,
) -> Result<(Suspended, Value), EnrollError> {
    let suspension = enrollment.resume(&agent)?;
    let detail = told("agent resume", &agent);
    Ok((Suspended::new(enrollment, agent, suspension, 0), detail))
}

/// As [`suspend`].
pub(crate) fn remove(
    enrollment: &Enrollment,
    AgentCall { agent }: &AgentCall,
    cut: impl FnOnce(&Who) -> usize,
) -> Result<(Removed, Value), EnrollError> {
    let instances = enrollment.remove(agent, SystemTime::now())?;
    let tunnels = cut(agent);
    let mut detail = told("agent remove", agent);
    detail["instances"] = instances.into();
    detail["tunnels"] = tunnels.into();
    Ok((Removed { instances, tunnels }, detail))
}

pub(crate) fn invite(
    enrollment: &Enrollment,
    wanted: &InviteCall,
    now: SystemTime,
) -> Result<Invited, EnrollError> {
    let ttl = wanted.ttl.map(Duration::from_secs);
    let invite = enrollment.invite(&wanted.agent, wanted.services.clone(), ttl, now)?;
    Ok(Invited { invite: invite.to_string() })
}

pub(crate) fn list(enrollment: &Enrollment, tunnels: Vec<TunnelInfo>) -> AgentList {
    let rows = enrollment.agents();
    let mut tunnels = status::views(tunnels, &rows);
    let view = |row: AgentRow| {
        let is_own =
            |tunnel: &mut TunnelView| tunnel.agent == row.name && tunnel.instance == row.instance.as_str();
        let own = tunnels.extract_if(.., is_own).collect();
        AgentView { row, tunnels: own }
    };
    AgentList {
        epoch: enrollment.epoch(),
        agents: rows.into_iter().map(view).collect(),
        others: tunnels,
        invites: enrollment.invites(),
        suspensions: enrollment.suspensions(),
    }
}
