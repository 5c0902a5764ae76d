//! What operators see of enrolment: instances and invites, from memory, as rows.

use postern_base::id::{AgentName, InstanceId, ServiceName};
use serde::{Deserialize, Serialize};

use super::{CertificateRecord, Enrollment};

/// One enrolled instance, as `agent ls` shows it. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRow {
    pub name: AgentName,
    pub instance: InstanceId,
    pub services: Option<Vec<ServiceName>>,
    pub enrolled: u64,
    pub certificate: CertificateRecord,
    pub previous: Option<CertificateRecord>,
}

/// One unused invite; an expired one is kept for a while so that its end is seen. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        let enrolled = state.instances.iter().filter(|(_, record)| record.removed.is_none());
        let mut rows: Vec<_> = enrolled
            .map(|(instance, record)| AgentRow {
                name: record.name.clone(),
                instance: instance.clone(),
                services: record.services.clone(),
                enrolled: record.enrolled,
                certificate: record.latest.clone(),
                previous: record.previous.clone(),
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
}
