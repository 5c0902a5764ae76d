//! Decisions told in full: takes what [`Policy::decide`] gave; gives the rule, or the closest rule and what is missing. Dry runs are made
//! of the decision itself, so that they cannot differ from the real thing; they take nothing of a limit.

use std::net::IpAddr;

use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decision::{Closest, DenialKind, Permit, Refused, who};
use super::rule::listed;
use super::{Context, Policy, Target};
use crate::principal::Principal;

/// A decision told in full, for dry runs. It has no id: no log has it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub allowed: bool,
    pub service: ServiceName,
    pub method: String,
    /// Empty for TCP services.
    pub path: String,
    pub rule: Option<String>,
    pub detail: String,
    pub closest: Option<Closest>,
    /// How often the rule lets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Allowance>,
}

/// A limit, and what this caller has left of it where that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Allowance {
    /// `20/s per user`
    pub limit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<u32>,
    /// Seconds until there is room for another; none where there is, or where nobody counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

/// Looks at what is left of a permit's limits, settles on the rule that has room, and tells.
pub type Tell<'a> = &'a (dyn Fn(&Principal, IpAddr, &mut Permit) -> Vec<Allowance> + Sync);

/// Tells the limits where nobody counts.
pub fn uncounted(_: &Principal, _: IpAddr, permit: &mut Permit) -> Vec<Allowance> {
    let limits = permit.rates().first().map_or(&[][..], |rated| &rated.limits);
    limits.iter().map(|limit| Allowance { limit: limit.to_string(), left: None, wait: None }).collect()
}

impl Policy {
    /// The path in `to` by which a rule of this name allows a target: what may be told of it where its own path may not.
    pub fn pattern(&self, rule: &str, target: &Target<'_>) -> Option<String> {
        let rules = self.services.get(target.service)?.allow.all().iter();
        let mut patterns = rules.filter(|found| *found.name == *rule).flat_map(|rule| &rule.to);
        let pattern = patterns.find(|pattern| pattern.allows(target.method, target.path))?;
        pattern.text.split_once(' ').map(|(_, path)| path.trim_start().to_owned())
    }

    /// What [`Policy::decide`] says, told in full.
    pub fn explain(
        &self,
        principal: &Principal,
        target: &Target<'_>,
        context: &Context,
        tell: Tell<'_>,
    ) -> Explanation {
        let (allowed, rule, detail, closest, limits) = match self.decide(principal, target, context) {
            Ok(mut permit) => {
                let limits = tell(principal, context.address, &mut permit);
                let who = who(permit.roles());
                let detail = format!("rule {:?} lets {who} {target}", permit.rule());
                (true, Some(permit.rule().to_owned()), detail, None, limits)
            }
            Err(denial) => {
                let Refused { rule, summary, closest, .. } = *denial.0;
                (false, rule.map(|name| name.to_string()), summary, closest, Vec::new())
            }
        };
        let (service, method, path) =
            (target.service.clone(), target.method.to_owned(), target.shown_path().to_owned());
        Explanation { allowed, service, method, path, rule, detail, closest, limits }
    }

    /// The same for whoever runs the relay, who may know why a service is not visible to this caller.
    pub fn explain_to_operator(
        &self,
        principal: &Principal,
        target: &Target<'_>,
        context: &Context,
        tell: Tell<'_>,
    ) -> Explanation {
        let mut explanation = self.explain(principal, target, context, tell);
        let denial = self.decide(principal, target, context).err();
        if let Some(service) = self.services.get(target.service)
            && denial.is_some_and(|denial| *denial.kind() == DenialKind::NotVisible)
        {
            explanation.detail = if service.issuers.contains(principal.issuer()) {
                format!("service {} is hidden and no rule names this caller", target.service)
            } else {
                let issuers = listed(&service.issuers, "and");
                format!("service {} takes only tokens of {issuers}", target.service)
            };
        }
        explanation
    }
}
