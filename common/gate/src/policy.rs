//! Takes roles, rules and tests from configuration, compiled once; turns a principal and a target into a [`Permit`] or a [`Denial`],
//! and tells what a principal may reach. Default deny, any matching deny wins, order never matters.
//!
//! `file` (what is written) → `compile` → `role` (who), `target` (what), `rule` (with what, from where), `limit` (how often), `index`
//! (found how) → `decision` → `explain`; `test` asks on behalf of callers it makes up, `compare` what another policy would say.

mod ceiling;
mod compare;
mod compile;
mod decision;
mod explain;
mod file;
mod index;
mod limit;
mod role;
mod rule;
mod target;
mod test;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use postern_base::clock::seconds;
use postern_base::config::Problem;
use postern_base::id::{IssuerName, ServiceName};
use serde::Serialize;

use crate::path::CanonicalPath;
use crate::principal::Principal;
use index::Rules;
use role::Callers;
use test::Test;

pub use ceiling::Ceiling;
pub use compare::{Compared, Flip, Replayed};
pub use decision::{Closest, Denial, DenialKind, NOT_VISIBLE, Permit, Rated};
pub use explain::{Allowance, Explanation, Tell, uncounted};
pub use file::{PolicySource, RoleFile, RuleFile, ServiceKind, ServiceRules, TestCaller, TestFile, WithFile};
pub use limit::{Limit, LimitKind, Per, Rate, Whose};
pub(crate) use role::Held;
pub use role::Roles;
pub use target::CONNECT;
pub use test::TestOutcome;

/// All rules of one configuration, immutable.
#[derive(Debug)]
pub struct Policy {
    issuers: Vec<IssuerName>,
    callers: Callers,
    services: BTreeMap<ServiceName, Service>,
    /// Denials for all services.
    denials: Rules,
    tests: Vec<Test>,
    /// What a login at each issuer should ask for.
    scopes: BTreeMap<IssuerName, Vec<String>>,
}

#[derive(Debug)]
struct Service {
    kind: ServiceKind,
    issuers: Vec<IssuerName>,
    hidden: bool,
    allow: Rules,
    deny: Rules,
}

/// What a caller asks for; `path` is what is left when the service's prefix has been removed. TCP services are asked to [`CONNECT`],
/// and then the path plays no part.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub service: &'a ServiceName,
    pub method: &'a str,
    pub path: &'a CanonicalPath<'a>,
}

impl Target<'_> {
    /// The path, or nothing where there is none.
    fn shown_path(&self) -> &str {
        if self.method == CONNECT { "" } else { self.path.as_str() }
    }
}

/// `DELETE /v1/invoices/7`, or `CONNECT`.
impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.shown_path();
        let space = if path.is_empty() { "" } else { " " };
        write!(f, "{}{space}{path}", self.method)
    }
}

/// From where and when.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    pub address: IpAddr,
    pub now: SystemTime,
}

/// A service that a principal can see, with the rules that allow this principal something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    pub service: ServiceName,
    /// Empty where the service is visible but no rule names the principal.
    pub rules: Vec<ReachRule>,
}

/// One rule that names the principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReachRule {
    pub rule: String,
    /// As written: `GET /v1/invoices/**`.
    pub to: Vec<String>,
    /// What it still asks for: `scope invoices:write`, `an address in 10.0.0.0/8`.
    pub needs: Vec<String>,
    /// How often: `20/s per user`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// The same, for whoever counts.
    #[serde(skip)]
    pub counted: std::sync::Arc<[Limit]>,
}

impl Policy {
    /// # Errors
    /// Everything that is wrong with `source`, each at its key path as in relay.toml.
    pub fn compile(source: PolicySource) -> Result<Self, Vec<Problem>> {
        compile::compile(source)
    }

    /// The roles that `principal` has now. (A role may ask for a recent login; [`Permit::roles`] are those of its decision.)
    pub fn roles_of(&self, principal: &Principal) -> Roles {
        self.callers.roles(self.callers.held(principal, seconds(SystemTime::now())))
    }

    /// The services that `principal` can see now, and by which rules it may use them.
    pub fn reach(&self, principal: &Principal) -> Vec<Reach> {
        self.reach_at(principal, SystemTime::now())
    }

    fn reach_at(&self, principal: &Principal, now: SystemTime) -> Vec<Reach> {
        let now = seconds(now);
        let held = self.callers.held(principal, now);
        let visible = self.services.iter().filter(|(_, service)| service.is_visible_to(principal, &held));
        visible
            .map(|(name, service)| {
                let rules = service.allow.naming(&held).into_iter().map(|rule| ReachRule {
                    rule: rule.name.to_string(),
                    to: rule.to.iter().map(|pattern| pattern.text.to_string()).collect(),
                    needs: rule.still_asks(principal, now),
                    limits: rule.limits.iter().map(Limit::to_string).collect(),
                    counted: rule.limits.clone(),
                });
                Reach { service: name.clone(), rules: rules.collect() }
            })
            .collect()
    }

    /// How many rules a service has of its own.
    pub fn rules_of(&self, service: &ServiceName) -> usize {
        self.services.get(service).map_or(0, |service| service.allow.all().len() + service.deny.all().len())
    }

    /// All scopes named by allowing rules that some token of `issuer` could satisfy: what a login should ask for.
    pub fn scopes_named_for(&self, issuer: &IssuerName) -> Vec<String> {
        self.scopes.get(issuer).cloned().unwrap_or_default()
    }

    fn scopes_of(&self, issuer: &IssuerName) -> Vec<String> {
        let possible = self.callers.possible_for(issuer);
        let mut scopes = BTreeSet::new();
        let accepting = self.services.values().filter(|service| service.issuers.contains(issuer));
        for rule in accepting.flat_map(|service| service.allow.all()) {
            if rule.who.iter().any(|atom| possible.contains(atom)) {
                scopes.extend(rule.with.scopes());
                for atom in &rule.who {
                    self.callers.scopes_behind(*atom, &possible, &mut scopes);
                }
            }
        }
        scopes.into_iter().collect()
    }
}

impl Service {
    fn is_visible_to(&self, principal: &Principal, held: &Held) -> bool {
        self.issuers.contains(principal.issuer()) && (!self.hidden || self.allow.names(held))
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
