//! What the relay is told when there is no answer: who failed, and what would mend it. No text names an upstream's address.

use postern_wire::head::{Stage, failure};

use crate::supervisor::Agent;
use crate::upstream::{CallError, Route};
use crate::verify::Refused;

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) code: u16,
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn agent(code: u16, detail: impl Into<String>) -> Self {
        Self { stage: Stage::Agent, code, detail: detail.into() }
    }

    pub(super) fn bad_answer(detail: impl Into<String>) -> Self {
        Self { stage: Stage::Upstream, code: failure::BAD_ANSWER, detail: detail.into() }
    }

    /// The relay sent what no relay of ours sends.
    pub(super) fn malformed(what: &str) -> Self {
        Self::agent(failure::NOT_SUPPORTED, format!("the relay sent a malformed {what}"))
    }

    /// Decided again, and otherwise than the relay.
    pub(super) fn verify(agent: &Agent, route: &Route, refused: &Refused) -> Self {
        let service = &route.upstream.service.name;
        let detail = format!(
            "agent {} verified the call to service {service} itself: {refused}",
            agent.identity.name()
        );
        Self { stage: Stage::Verify, code: failure::NOT_PERMITTED_HERE, detail }
    }

    pub(super) fn of(agent: &Agent, route: &Route, error: &CallError) -> Self {
        let (stage, code) = match error {
            CallError::Busy(_) => (Stage::Agent, failure::BUSY),
            CallError::Refused => (Stage::Connect, failure::REFUSED),
            CallError::Connect(_) => (Stage::Connect, failure::UNREACHABLE),
            CallError::Tls(_) => (Stage::Tls, failure::UNREACHABLE),
            CallError::Answer(_) | CallError::Unanswered(_) => (Stage::Upstream, failure::BAD_ANSWER),
            CallError::Silent(_) => (Stage::Timeout, failure::TIMED_OUT),
        };
        if stage != Stage::Agent {
            route.upstream.failed(error);
        }
        let service = &route.upstream.service.name;
        let detail = format!("service {service} behind agent {}: {error}", agent.identity.name());
        Self { stage, code, detail }
    }
}
