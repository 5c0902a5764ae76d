//! A record's decision line: was this caller allowed this target, and why. There is at most one.

use postern_base::audit::now;
use postern_base::id::DecisionId;
use postern_gate::policy::{Denial, Permit, Roles, Target};

use super::Record;
use crate::audit::AuditFull;
use crate::audit::record::{Decision, LoggedToken, Outcome, Who};

/// The reasons that a decision line gives.
#[derive(Default)]
struct Why<'a> {
    rule: Option<&'a str>,
    missing: &'a [String],
    reason: Option<&'a str>,
}

impl Record {
    /// Queues the decision; without room for it the request must not go on.
    pub fn allowed(&mut self, permit: &Permit) -> Result<(), AuditFull> {
        let roles: Vec<&str> = permit.roles().iter().collect();
        let why = Why { rule: Some(permit.rule()), ..Why::default() };
        self.decide(permit.decision(), Outcome::Allow, &roles, &why)?;
        self.allowed = true;
        Ok(())
    }

    pub fn denied(&mut self, denial: &Denial, roles: &Roles) {
        let roles: Vec<&str> = roles.iter().collect();
        let why = Why { rule: denial.rule(), missing: denial.missing(), reason: None };
        // A refusal goes out with or without its line: refusing is the safe side.
        let _ = self.decide(denial.decision(), Outcome::Deny, &roles, &why);
    }

    /// A refusal for want of a good token, or of a service that the caller may know of.
    pub fn refused_unproved(&mut self, reason: &str, detail: &str) {
        if self.decision.is_none() {
            let reason = format!("{reason}: {detail}");
            let why = Why { reason: Some(&reason), ..Why::default() };
            let _ = self.decide(DecisionId::random(), Outcome::Deny, &[], &why);
        }
    }

    fn decide(
        &mut self,
        id: DecisionId,
        outcome: Outcome,
        roles: &[&str],
        why: &Why<'_>,
    ) -> Result<(), AuditFull> {
        self.decision = Some(id);
        if !self.has_lines() {
            return Ok(());
        }
        let audit = &self.connection.worker.audit;
        let path = self.routed.as_ref().map_or("", |routed| routed.path.as_str());
        let path = audit.names().path(path, || self.pattern(why.rule?));
        audit.decision(&Decision {
            time: now(),
            event: "decision",
            request_id: self.id,
            decision_id: id,
            outcome,
            token: self.token.map(LoggedToken),
            who: self.principal.as_deref().map(|principal| Who::new(principal, audit.names())),
            roles,
            address: audit.names().address(self.caller.ip()),
            service: self.service().map(|service| service.name.as_str()),
            method: self.method.as_str(),
            path: &path,
            rule: why.rule,
            missing: why.missing,
            reason: why.reason,
        })
    }

    /// What the rule that allows or denies has for the path.
    fn pattern(&self, rule: &str) -> Option<String> {
        let (routed, service) = (self.routed.as_ref()?, self.service()?);
        let target = Target { service: &service.name, method: self.method.as_str(), path: &routed.path };
        self.connection.worker.relay.policy().pattern(rule, &target)
    }
}
