//! Takes a principal and a target; gives a [`Permit`] that names its rule, or a [`Denial`] that names what is in the way.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use postern_base::id::DecisionId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limit::Limit;
use super::role::{Held, Roles};
use super::rule::{Ask, Missing, Rule, listed};
use super::{CONNECT, Context, Policy, Service, ServiceKind, Target, seconds};
use crate::principal::Principal;

/// What a caller is told of a service that does not exist and of one that is not for it to see, alike.
pub const NOT_VISIBLE: &str = "there is no such service, or not for this caller";

/// Proof that policy allowed this principal this target. Only [`Policy::decide`] makes one.
#[derive(Debug)]
pub struct Permit {
    decision: DecisionId,
    rule: Arc<str>,
    rates: Vec<Rated>,
    roles: Roles,
}

/// A rule that allows it, but not as often as one likes.
#[derive(Debug, Clone)]
pub struct Rated {
    pub rule: Arc<str>,
    /// All of these, at least one.
    pub limits: Arc<[Limit]>,
}

/// How many rules are looked at to find the closest one: those that name the caller come first, and a refusal must not cost what ten
/// thousand rules for others at one path would.
const CLOSE: usize = 64;

impl Permit {
    pub fn decision(&self) -> DecisionId {
        self.decision
    }

    /// The name of the rule that allows it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The rules that allow it, where every one of them limits how often: one of them must have room, and [`Permit::settle`] is told
    /// which. Empty where a rule allows it without limit.
    pub fn rates(&self) -> &[Rated] {
        &self.rates
    }

    /// It is by this one of [`Permit::rates`].
    pub fn settle(&mut self, index: usize) {
        if let Some(rated) = self.rates.get(index) {
            self.rule = rated.rule.clone();
        }
    }

    /// The policy's roles that the principal had when this was decided.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenialKind {
    /// 404: no such service, or none for this principal to know of.
    NotVisible,
    /// 403: [`Denial::rule`] says which.
    DeniedByRule,
    /// 403: something that another login would not change is missing.
    NoRule,
    /// 403 `insufficient_scope` (RFC 6750, 3.1): `scope` is what is missing, separated by spaces.
    MissingScope { scope: String },
    /// 401 `insufficient_user_authentication` (RFC 9470): a better or fresher login would do. `max_age` in seconds.
    StepUp { acr_values: Option<String>, max_age: Option<u64> },
    /// 405: no rule that names this caller knows the method, nor would any other rule of the service allow the target.
    MethodNotAllowed { allow: Vec<String> },
}

/// The rule that came closest to allowing, and what keeps it from it. Display: `"admins change invoices" needs role billing-admin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Closest {
    pub rule: String,
    pub missing: Vec<String>,
}

impl fmt::Display for Closest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} needs {}", self.rule, listed(&self.missing, "and"))
    }
}

/// The refusal. Its texts are for the caller.
#[derive(Debug)]
pub struct Denial(pub(super) Box<Refused>);

#[derive(Debug)]
pub(super) struct Refused {
    pub(super) decision: DecisionId,
    kind: DenialKind,
    pub(super) rule: Option<Arc<str>>,
    pub(super) summary: String,
    pub(super) closest: Option<Closest>,
}

impl Denial {
    pub fn decision(&self) -> DecisionId {
        self.0.decision
    }

    pub fn kind(&self) -> &DenialKind {
        &self.0.kind
    }

    /// The rule that denies, where one does.
    pub fn rule(&self) -> Option<&str> {
        self.0.rule.as_deref()
    }

    /// The allowing rule with the fewest missing conditions; `None` where none covers the path.
    pub fn closest(&self) -> Option<&Closest> {
        self.0.closest.as_ref()
    }

    /// What the closest rule misses; empty where there is none.
    pub fn missing(&self) -> &[String] {
        self.closest().map_or(&[], |closest| &closest.missing)
    }

    /// `no rule lets role clerk DELETE /v1/invoices/7`
    pub fn summary(&self) -> &str {
        &self.0.summary
    }

    /// The summary and the closest rule in one line.
    pub fn detail(&self) -> String {
        match self.closest() {
            Some(closest) => format!("{}; closest: {closest}", self.summary()),
            None => self.summary().to_owned(),
        }
    }
}

impl Policy {
    /// Decides. Looks at the rules that name the caller or cover the path, however many others there are; a permit by a rule without
    /// limits costs no allocation once the principal's roles are known.
    ///
    /// # Errors
    /// The denial, where policy says no.
    pub fn decide(
        &self,
        principal: &Principal,
        target: &Target<'_>,
        context: &Context,
    ) -> Result<Permit, Denial> {
        let decision = DecisionId::random();
        let now = seconds(context.now);
        let held = self.callers.held(principal, now);
        let address = context.address.to_canonical();
        let ask = Ask { principal, held: &held, target, address, now };
        let deny = |kind, rule: Option<&Rule>, summary, closest| {
            let rule = rule.map(|rule| rule.name.clone());
            Err(Denial(Box::new(Refused { decision, kind, rule, summary, closest })))
        };
        let service = self.services.get(target.service);
        let Some(service) = service.filter(|service| service.is_visible_to(principal, &held)) else {
            return deny(DenialKind::NotVisible, None, NOT_VISIBLE.to_owned(), None);
        };
        if let Some(rule) = self.denying(service, &ask) {
            let summary = format!("rule {:?} denies {target}", rule.name);
            return deny(DenialKind::DeniedByRule, Some(rule), summary, None);
        }
        if (target.method == CONNECT) != (service.kind == ServiceKind::Tcp) {
            // Rules of this kind never know such a target; nothing that a caller has would change that.
            let summary = match service.kind {
                ServiceKind::Tcp => {
                    format!("service {} is of kind tcp: its method is CONNECT", target.service)
                }
                ServiceKind::Http => {
                    format!("service {} is of kind http: CONNECT is for kind tcp", target.service)
                }
            };
            return deny(DenialKind::NoRule, None, summary, None);
        }
        if let Some((rule, rates)) = service.allowing(&ask) {
            return Ok(Permit { decision, rule, rates, roles: self.callers.roles(held) });
        }
        let (kind, closest) = self.in_the_way(service, &ask);
        let who = who(&self.callers.roles(held.clone()));
        let summary = match &kind {
            DenialKind::MethodNotAllowed { allow } => {
                format!("no rule for {who} knows {}: use {}", target.method, listed(allow, "or"))
            }
            DenialKind::NotVisible
            | DenialKind::DeniedByRule
            | DenialKind::NoRule
            | DenialKind::MissingScope { .. }
            | DenialKind::StepUp { .. } => {
                format!("no rule lets {who} {target}")
            }
        };
        deny(kind, None, summary, closest)
    }

    /// The first rule that denies it: of those for all services, then of the service's own.
    fn denying<'r>(&'r self, service: &'r Service, ask: &Ask<'_>) -> Option<&'r Rule> {
        let path = ask.target.path;
        let denials = [&self.denials, &service.deny];
        if denials.iter().all(|rules| rules.all().is_empty()) {
            return None;
        }
        let has_upper = path.as_str().bytes().any(|b| b.is_ascii_uppercase());
        let lower: Cow<'_, str> =
            if has_upper { path.as_str().to_ascii_lowercase().into() } else { path.as_str().into() };
        let readings = path.readings();
        denials.into_iter().find_map(|rules| rules.denying(ask, &lower, &readings))
    }

    /// The closest rule, and what kind of refusal it makes. Rules that cover the whole target come before those that cover only its
    /// path; then fewest conditions missing; then what a better token would mend.
    fn in_the_way(&self, service: &Service, ask: &Ask<'_>) -> (DenialKind, Option<Closest>) {
        let method = ask.target.method;
        let near = service.allow.covering(ask, CLOSE).into_iter().filter_map(|rule| {
            let methods = rule.methods_here(ask.target)?;
            let covered = rule.to.iter().any(|pattern| pattern.allows(method, ask.target.path));
            let mut missing = rule.missing(ask, &self.callers);
            if !covered {
                missing.push(Missing::Method(listed(methods, "or")));
            }
            let kind = kind_of(&missing);
            Some(((!covered, missing.len(), kind == DenialKind::NoRule), rule, missing, kind))
        });
        let closest = near.min_by_key(|(rank, ..)| *rank);
        let kind = match &closest {
            Some(((false, ..), _, _, kind)) => kind.clone(),
            _ => service.unknown_method(ask.held, method).unwrap_or(DenialKind::NoRule),
        };
        let closest = closest.map(|(_, rule, missing, _)| Closest {
            rule: rule.name.to_string(),
            missing: missing.iter().map(Missing::to_string).collect(),
        });
        (kind, closest)
    }
}

impl Service {
    /// The first rule that allows it without limit; where there is none, all that allow it with limits, and the first of them.
    fn allowing(&self, ask: &Ask<'_>) -> Option<(Arc<str>, Vec<Rated>)> {
        let mut free: Option<(usize, &Rule)> = None;
        let mut limited: Vec<(usize, &Rule)> = Vec::new();
        self.allow.naming_here(ask, |number, rule| {
            if free.is_some_and(|(first, _)| first <= number) || !rule.allows(ask) {
                return;
            }
            if rule.limits.is_empty() {
                free = Some((number, rule));
            } else {
                limited.push((number, rule));
            }
        });
        if let Some((_, rule)) = free {
            return Some((rule.name.clone(), Vec::new()));
        }
        limited.sort_unstable_by_key(|(number, _)| *number);
        limited.dedup_by_key(|(number, _)| *number);
        let rates: Vec<Rated> = limited
            .iter()
            .map(|(_, rule)| Rated { rule: rule.name.clone(), limits: rule.limits.clone() })
            .collect();
        Some((rates.first()?.rule.clone(), rates))
    }

    /// 405, when there are rules that name the caller and none of them knows the method.
    fn unknown_method(&self, held: &Held, method: &str) -> Option<DenialKind> {
        let known = self.allow.methods_for(held)?;
        // Of rules for services of kind http none takes CONNECT; a service of kind tcp is never asked for another method here.
        if known.is_empty() || known.iter().any(|known| **known == *method) {
            return None;
        }
        Some(DenialKind::MethodNotAllowed { allow: known.into_iter().map(String::from).collect() })
    }
}

fn kind_of(missing: &[Missing]) -> DenialKind {
    let (mut scopes, mut acr_values, mut ages) = (BTreeSet::new(), None, Vec::new());
    for condition in missing {
        match condition {
            Missing::Scope { least, .. } => scopes.extend(least.split(' ')),
            Missing::Acr(values) => acr_values = acr_values.or_else(|| Some(values.join(" "))),
            Missing::Login(age) => ages.push(age.as_secs()),
            Missing::Caller(_)
            | Missing::Method(_)
            | Missing::Claim(_)
            | Missing::Bound
            | Missing::Address(_) => return DenialKind::NoRule,
        }
    }
    if scopes.is_empty() {
        DenialKind::StepUp { acr_values, max_age: ages.into_iter().min() }
    } else {
        DenialKind::MissingScope { scope: scopes.into_iter().collect::<Vec<_>>().join(" ") }
    }
}

/// The caller as refusals call it: by its roles, not by its name, which logs may not have.
pub(super) fn who(roles: &Roles) -> String {
    let names: Vec<&str> = roles.iter().collect();
    match names[..] {
        // Groups, scopes or its own name may let it in as well.
        [] => "you".to_owned(),
        [role] => format!("role {role}"),
        _ => format!("roles {}", listed(names, "and")),
    }
}
