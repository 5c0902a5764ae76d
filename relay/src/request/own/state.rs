//! What a service's callers are told of its state: takes a service; gives the agents that serve it, the lock that is on it or on all of
//! them, and since when it is down. For a call that policy allows, says what would hold it up all the same.

use postern_base::id::{AgentName, ServiceName};
use postern_gate::policy::Allowance;
use serde_json::{Value, json};

use crate::relay::Relay;
use crate::session::{Cut, LockId};

pub(super) struct State {
    /// That may be used now.
    pub(super) agents: Vec<AgentName>,
    pub(super) lock: Option<LockId>,
    /// Seconds since the epoch.
    pub(super) down_since: Option<u64>,
}

impl State {
    pub(super) fn of(relay: &Relay, service: &ServiceName) -> Self {
        let (registry, session) = (relay.registry(), relay.session());
        let mut agents = registry.agents_of(service);
        let mut on_agents = None;
        agents.retain(|agent| {
            let refused = session.refuses_agent(agent);
            on_agents = on_agents.or(refused);
            refused.is_none()
        });
        let on_all = on_agents.filter(|_| agents.is_empty());
        let lock = session.refuses_service(service).or(on_all).and_then(Cut::lock);
        Self { agents, lock, down_since: registry.down_since(service) }
    }
}

/// What would hold up a call that policy allows, in the order in which the call would meet it: `null` where nothing would.
pub(super) fn held(relay: &Relay, service: &ServiceName, limits: &[Allowance]) -> Option<Value> {
    let State { agents, lock, down_since } = State::of(relay, service);
    if let Some(lock) = lock {
        return Some(json!({ "by": "lock", "lock": lock }));
    }
    if let Some(wait) = limits.iter().filter_map(|limit| limit.wait).max() {
        return Some(json!({ "by": "limit", "retry_after": wait }));
    }
    agents.is_empty().then(|| {
        let snapshot = relay.snapshot();
        let service = snapshot.settings.services.get(service);
        let suspended = service.is_some_and(|service| relay.enrollment().are_suspended(&service.agents));
        json!({ "by": "down", "since": down_since, "suspended": suspended })
    })
}
