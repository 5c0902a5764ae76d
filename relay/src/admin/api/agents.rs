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
    pub(crate) fn new(enrollment: &Enrollment, who: Who, suspension: Suspension, tunnels: usize) -> Self {
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
pub(crate) fn told(action: &str, who: &Who) -> Value {
    json!({ "action": action, "agent": who.name, "instance": who.instance })
}

pub(super) fn new_invite(relay: &Relay, call: &Call) -> Answer {
    let wanted: InviteCall = body(call)?;
    let invited = invite(relay.enrollment(), &wanted, SystemTime::now());
    let invited = invited.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    audit(relay, call, wanted.told());
    value(&invited)
}

pub(super) fn suspend(relay: &Relay, call: &Call) -> Answer {
    let SuspendCall { agent, reason } = body(call)?;
    let suspension = relay.enrollment().suspend(&agent, &reason, Some(call.uid), SystemTime::now());
    let suspension = suspension.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let tunnels = relay.cut_agent(&agent);
    let mut detail = told("agent suspend", &agent);
    detail["reason"] = suspension.reason.as_str().into();
    detail["tunnels"] = tunnels.into();
    audit(relay, call, detail);
    value(&Suspended::new(relay.enrollment(), agent, suspension, tunnels))
}

pub(super) fn resume(relay: &Relay, call: &Call) -> Answer {
    let AgentCall { agent } = body(call)?;
    let suspension = relay.enrollment().resume(&agent);
    let suspension = suspension.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    audit(relay, call, told("agent resume", &agent));
    value(&Suspended::new(relay.enrollment(), agent, suspension, 0))
}

pub(super) fn remove(relay: &Relay, call: &Call) -> Answer {
    let AgentCall { agent } = body(call)?;
    let instances = relay.enrollment().remove(&agent, SystemTime::now());
    let instances = instances.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let tunnels = relay.cut_agent(&agent);
    let mut detail = told("agent remove", &agent);
    detail["instances"] = instances.into();
    detail["tunnels"] = tunnels.into();
    audit(relay, call, detail);
    value(&Removed { instances, tunnels })
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
