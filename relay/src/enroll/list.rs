//! What operators see of enrolment: instances, invites and suspensions, from memory, as rows; and when instances were last here, which is
//! kept through restarts.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_base::sync::lock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CertificateRecord, EnrollError, Enrollment, Suspension, Who, seconds};

/// One enrolled instance, as `agent ls` shows it. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentRow {
    pub name: AgentName,
    pub instance: InstanceId,
    pub services: Option<Vec<ServiceName>>,
    pub enrolled: u64,
    pub certificate: CertificateRecord,
    pub previous: Option<CertificateRecord>,
    /// Of the instance, or of its name.
    pub suspended: Option<Suspension>,
    /// When it last had a tunnel, or joined; as of a few minutes ago while it has one.
    pub last_seen: u64,
}

/// One suspension in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SuspensionRow {
    pub who: Who,
    #[serde(flatten)]
    pub suspension: Suspension,
}

/// When each instance was last here, in seconds since the epoch.
#[derive(Debug)]
pub(super) struct Seen {
    at: HashMap<InstanceId, u64>,
    /// What is not on the disk yet.
    unwritten: HashSet<InstanceId>,
}

impl Seen {
    pub(super) fn new(at: HashMap<InstanceId, u64>) -> Self {
        Self { at, unwritten: HashSet::new() }
    }
}

/// One unused invite; an expired one is kept for a while so that its end is seen. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InviteRow {
    pub agent: AgentName,
    pub services: Option<Vec<ServiceName>>,
    pub made: u64,
    pub expires: u64,
}

impl Enrollment {
    /// Every instance that is admitted, by name and then age.
    pub fn agents(&self) -> Vec<AgentRow> {
        let state = self.state.load();
        let seen = lock(&self.seen);
        let suspended = |name: &AgentName, instance: &InstanceId| {
            let one = state.suspensions.get(&Who::instance(name, instance));
            one.or_else(|| state.suspensions.get(&Who::from(name.clone()))).cloned()
        };
        let enrolled = state.instances.iter().filter(|(_, record)| record.removed.is_none());
        let mut rows: Vec<_> = enrolled
            .map(|(instance, record)| AgentRow {
                name: record.name.clone(),
                instance: instance.clone(),
                services: record.services.clone(),
                enrolled: record.enrolled,
                certificate: record.latest.clone(),
                previous: record.previous.clone(),
                suspended: suspended(&record.name, instance),
                last_seen: seen.at.get(instance).copied().unwrap_or(record.enrolled),
            })
            .collect();
        rows.sort_by(|a, b| (&a.name, a.enrolled, &a.instance).cmp(&(&b.name, b.enrolled, &b.instance)));
        rows
    }

    /// Every unused invite, by name and then end.
    pub fn invites(&self) -> Vec<InviteRow> {
        let state = self.state.load();
        let unused = state.invites.values().filter(|invite| invite.used.is_none());
        let mut rows: Vec<_> = unused
            .map(|invite| InviteRow {
                agent: invite.agent.clone(),
                services: invite.services.clone(),
                made: invite.made,
                expires: invite.expires,
            })
            .collect();
        rows.sort_by(|a, b| (&a.agent, a.expires).cmp(&(&b.agent, b.expires)));
        rows
    }

    /// Every suspension in force, by name.
    pub fn suspensions(&self) -> Vec<SuspensionRow> {
        let state = self.state.load();
        let rows = state.suspensions.iter();
        rows.map(|(who, suspension)| SuspensionRow { who: who.clone(), suspension: suspension.clone() })
            .collect()
    }

    /// These instances are here, or were until now. Of those that were removed nothing is kept.
    pub fn saw<'a>(&self, instances: impl IntoIterator<Item = &'a InstanceId>, now: SystemTime) {
        let state = self.state.load();
        let mut seen = lock(&self.seen);
        for instance in instances {
            if state.instances.contains_key(instance) {
                seen.at.insert(instance.clone(), seconds(now));
                seen.unwritten.insert(instance.clone());
            }
        }
    }

    /// Writes down who was here since the last time. Blocks on the disk.
    pub fn note_seen(&self) -> Result<(), EnrollError> {
        let store = self.writing();
        let rows: Vec<_> = {
            let mut seen = lock(&self.seen);
            let unwritten = std::mem::take(&mut seen.unwritten);
            unwritten.into_iter().filter_map(|one| seen.at.get(&one).copied().map(|at| (one, at))).collect()
        };
        if rows.is_empty() {
            return Ok(());
        }
        store.saw(&rows).map_err(|e| e.in_state(&self.settings.state))
    }
}
