//! What another policy would say: takes two policies, gives the calls on which they differ; takes a call from an old audit log, gives what
//! this policy makes of it. The calls of a comparison are those of both policies' `[[tests]]`, and for each rule those that it speaks of,
//! by a caller of each kind that a rule names: with what the rule asks for, and without.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use ipnet::IpNet;
use postern_base::config::Problem;
use postern_base::id::{IssuerName, ServiceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::explain::{Explanation, uncounted};
use super::file::TestCaller;
use super::role::{ANYONE, Atom};
use super::rule::{Ask, Missing, Rule, With};
use super::test::{address, hypothetical};
use super::{Context, Policy, Target, seconds};
use crate::path::{CanonicalPath, PathMode};
use crate::principal::{Principal, Proved};
use crate::token::Binding;

/// So many calls are compared at most: some seconds of work.
const MOST: usize = 100_000;

/// A call that two policies decide differently.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Flip {
    pub who: String,
    /// `DELETE billing/v1/invoices/7`
    pub call: String,
    pub before: Explanation,
    pub after: Explanation,
}

/// What came of a comparison.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Compared {
    pub flips: Vec<Flip>,
    /// How many calls were tried.
    pub tried: usize,
    /// There were more to try than anybody would wait for.
    pub stopped: bool,
}

/// What this policy makes of a call that was decided before.
#[derive(Debug)]
pub struct Replayed {
    pub now: Explanation,
    /// It hangs on claims, of which an audit log tells nothing.
    pub uncertain: bool,
}

struct Sample<'a> {
    who: String,
    principal: &'a Principal,
    service: &'a ServiceName,
    method: &'a str,
    path: &'a CanonicalPath<'a>,
    context: Context,
}

impl Policy {
    /// Calls that this policy decides otherwise than `old`.
    pub fn flips_since(&self, old: &Self, now: SystemTime) -> Compared {
        let mut compared = Compared::default();
        let mut seen = BTreeSet::new();
        let mut try_one = |sample: &Sample<'_>| {
            if compared.tried >= MOST {
                compared.stopped = true;
                return false;
            }
            compared.tried += 1;
            let target = Target { service: sample.service, method: sample.method, path: sample.path };
            let decided = |policy: &Self| policy.decide(sample.principal, &target, &sample.context).is_ok();
            let call = format!("{} {}{}", sample.method, sample.service, target.shown_path());
            if decided(old) != decided(self) && seen.insert((sample.who.clone(), call.clone())) {
                let told = |policy: &Self| {
                    policy.explain_to_operator(sample.principal, &target, &sample.context, &uncounted)
                };
                let (before, after) = (told(old), told(self));
                compared.flips.push(Flip { who: sample.who.clone(), call, before, after });
            }
            true
        };
        let both = [old, self];
        let done = both.iter().all(|policy| policy.tests.iter().all(|test| try_one(&test.sample())));
        // Rules with those whom they name come first, so that they are tried in any case.
        let done = done && both.iter().all(|policy| policy.each_sample(true, now, &mut try_one));
        if done {
            both.iter().all(|policy| policy.each_sample(false, now, &mut try_one));
        }
        compared
    }

    /// Shows `try_one` the calls that the rules speak of, by callers whom they name or by all others, until it has enough.
    fn each_sample(
        &self,
        named: bool,
        now: SystemTime,
        try_one: &mut dyn FnMut(&Sample<'_>) -> bool,
    ) -> bool {
        let kinds = self.kinds(now);
        self.services.iter().all(|(name, service)| {
            let rules = service.allow.all().iter().chain(service.deny.all());
            rules.chain(self.denials.all()).all(|rule| {
                let fitting = kinds.iter().filter(|(atom, _)| rule.who.contains(atom) == named);
                let issuer = service.issuers.first();
                let anyone = named.then(|| issuer.map(|issuer| (&ANYONE, blank(issuer, now)))).flatten();
                fitting.map(|(atom, proved)| (atom, proved.clone())).chain(anyone).all(|(atom, proved)| {
                    let who = self.called(*atom, proved.issuer.as_str());
                    sample_calls(name, rule, &who, &proved, now, try_one)
                })
            })
        })
    }

    /// A caller for each atom that some token can hold.
    fn kinds(&self, now: SystemTime) -> BTreeMap<Atom, Proved> {
        (0..self.callers.atoms()).filter_map(|atom| Some((atom, self.holder(atom, now)?))).collect()
    }

    fn holder(&self, atom: Atom, now: SystemTime) -> Option<Proved> {
        if let Some(role) = self.callers.role(atom) {
            let first = role.any.iter().find_map(|atom| match *atom {
                ANYONE => self.issuers.first().map(|issuer| blank(issuer, now)),
                atom => self.holder(atom, now),
            });
            return first.map(|mut proved| {
                give(&mut proved, &role.with, now);
                proved
            });
        }
        let selector = self.callers.selector(atom)?;
        let mut proved = blank(&selector.issuer, now);
        selector.kind.give(&mut proved, selector.value.clone());
        Some(proved)
    }

    fn called(&self, atom: Atom, issuer: &str) -> String {
        let text = match (self.callers.role(atom), self.callers.selector(atom)) {
            (Some(role), _) => return format!("role {}", role.name),
            (None, Some(selector)) => format!("{} {}", selector.kind, selector.value),
            (None, None) => "any token".to_owned(),
        };
        if self.issuers.len() > 1 { format!("{text} of {issuer}") } else { text }
    }

    /// What this policy says to a call of `caller` at `now`; the path as policy saw it then.
    ///
    /// # Errors
    /// The caller's issuer is unknown here, or the path was none.
    pub fn replay(
        &self,
        caller: &TestCaller,
        (service, method, path): (&ServiceName, &str, &str),
        now: SystemTime,
    ) -> Result<Replayed, Problem> {
        let principal = hypothetical(caller, self, now)?;
        let path = if path.is_empty() { "/" } else { path };
        let path =
            CanonicalPath::parse(path, PathMode::Loose).map_err(|e| Problem::new("path", e.to_string()))?;
        let target = Target { service, method, path: &path };
        let context = Context { address: address(caller), now };
        let explained = self.explain_to_operator(&principal, &target, &context, &uncounted);
        let now = seconds(now);
        let held = self.callers.held(&principal, now);
        let address = context.address.to_canonical();
        let ask = Ask { principal: &principal, held: &held, target: &target, address, now };
        let hangs_on_claims = |rule: &Rule| {
            let missing = rule.missing(&ask, &self.callers);
            !missing.is_empty() && missing.iter().all(|missing| matches!(missing, Missing::Claim(_)))
        };
        let uncertain = self.services.get(service).is_some_and(|service| {
            let readings = path.readings();
            if explained.allowed {
                let mut denials = self.denials.all().iter().chain(service.deny.all());
                denials.any(|rule| rule.speaks_against(&ask, &readings) && hangs_on_claims(rule))
            } else {
                explained.rule.is_none()
                    && service.allow.all().iter().any(|rule| rule.speaks_for(&ask) && hangs_on_claims(rule))
            }
        });
        Ok(Replayed { now: explained, uncertain })
    }
}

/// The calls that a rule speaks of, by one caller: with what the rule asks for, and without.
fn sample_calls(
    service: &ServiceName,
    rule: &Rule,
    who: &str,
    proved: &Proved,
    now: SystemTime,
    try_one: &mut dyn FnMut(&Sample<'_>) -> bool,
) -> bool {
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut better = proved.clone();
    give(&mut better, &rule.with, now);
    let asks = rule.with.asks() || !rule.from.is_empty();
    let fitting = rule.from.first().map_or(nowhere, IpNet::addr);
    let whole = format!("{who} with what rule {:?} asks for", rule.name);
    let with = asks.then(|| (whole, Principal::new(better), fitting));
    let callers = [(who.to_owned(), Principal::new(proved.clone()), nowhere)].into_iter().chain(with);
    callers.into_iter().all(|(who, principal, address)| {
        rule.to.iter().all(|pattern| {
            let text = pattern.example();
            let Ok(path) = CanonicalPath::parse(&text, PathMode::Loose) else { return true };
            let method = pattern.methods().first().map_or("GET", |method| &**method);
            let context = Context { address, now };
            let (who, principal, path) = (who.clone(), &principal, &path);
            try_one(&Sample { who, principal, service, method, path, context })
        })
    })
}

impl super::test::Test {
    fn sample(&self) -> Sample<'_> {
        let target = self.target();
        Sample {
            who: format!("test {:?}", self.name()),
            principal: self.principal(),
            service: target.service,
            method: target.method,
            path: target.path,
            context: self.context(),
        }
    }
}

/// A token of which nothing is known.
fn blank(issuer: &IssuerName, now: SystemTime) -> Proved {
    let caller = TestCaller { issuer: Some(issuer.clone()), ..TestCaller::default() };
    super::test::proved(&caller, issuer.clone(), now)
}

/// Lets a token carry what is asked for.
fn give(proved: &mut Proved, with: &With, now: SystemTime) {
    proved.scopes.extend(with.scope.first().into_iter().flatten().cloned());
    if let Some(acr) = with.acr.first() {
        proved.acr = Some(acr.clone());
    }
    if with.max_age.is_some() {
        proved.auth_time = Some(seconds(now));
    }
    if with.bound {
        proved.binding = Some(Binding::Key([0; 32]));
    }
    for test in &with.claims {
        if let (Some(value), Some((last, way))) = (test.values.first(), test.path.split_last()) {
            put(&mut proved.claims, way, last, value.clone());
        }
    }
}

fn put(claims: &mut Map<String, Value>, way: &[String], last: &str, value: Value) {
    let Some((next, rest)) = way.split_first() else {
        claims.insert(last.to_owned(), value);
        return;
    };
    let inner = claims.entry(next.clone()).or_insert_with(|| Value::Object(Map::new()));
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        put(inner, rest, last, value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{caller, now, policy};
    use super::*;

    const BEFORE: &str = "issuers = ['corp']\n[roles]\nclerk = { any = 'group:finance' }\n\
        [services.wiki]\nrules = [{ name = 'read', allow = 'role:clerk', to = 'GET /pages/*', with = { scope = 'r' } }]\n";

    fn flips(before: &str, after: &str) -> Vec<String> {
        let compared = policy(after).flips_since(&policy(before), now());
        assert!(!compared.stopped && compared.tried > 0);
        let verdict = |allowed: bool| if allowed { "allow" } else { "deny" };
        let line = |flip: &Flip| format!("{}: {} -> {}", flip.who, flip.call, verdict(flip.after.allowed));
        compared.flips.iter().map(line).collect()
    }

    #[test]
    fn what_a_change_changes_is_found() {
        assert_eq!(flips(BEFORE, BEFORE), Vec::<String>::new());
        let scopeless = BEFORE.replace(", with = { scope = 'r' }", "");
        assert_eq!(
            flips(BEFORE, &scopeless),
            ["role clerk: GET wiki/pages/x -> allow", "group finance: GET wiki/pages/x -> allow"]
        );
        let strict = flips(&scopeless, BEFORE);
        assert_eq!(strict[0], "role clerk: GET wiki/pages/x -> deny");
        let anyone = BEFORE.replace("role:clerk', to = 'GET /pages/*'", "*', to = 'GET /pages/*'");
        assert_eq!(
            flips(BEFORE, &anyone),
            ["any token with what rule \"read\" asks for: GET wiki/pages/x -> allow"]
        );
        let denied = format!("{BEFORE}[[rules]]\ndeny = 'group:finance'\nto = '* /pages/**'\n");
        assert!(flips(BEFORE, &denied).iter().all(|line| line.ends_with("deny")));
        assert!(!flips(BEFORE, &denied).is_empty());
        let gone = flips(BEFORE, "issuers = ['corp']");
        assert!(gone.iter().any(|line| line.contains("GET wiki/pages/x -> deny")), "{gone:?}");
    }

    #[test]
    fn tests_are_samples_too() {
        let test = "[[tests]]\nname = 't'\nas = { user = 'ada' }\ncall = 'GET wiki/odd'\nexpect = 'deny'\n";
        let before = format!("{BEFORE}{test}");
        let odd = "{ name = 'read', allow = '*', to = 'GET /*' }, { name = 'rest', ";
        let after = BEFORE.replace("{ name = 'read', ", odd);
        assert!(flips(&before, &after).contains(&"test \"t\": GET wiki/odd -> allow".to_owned()));
    }

    #[test]
    fn an_old_call_is_judged_anew_and_claims_are_not_guessed() {
        let policy = policy(&format!(
            "{BEFORE}[services.hr]\nrules = [{{ name = 'dept', allow = 'role:clerk', to = 'GET /**', with = {{ 'claims.d' = 'x' }} }}, \
             {{ name = 'no', deny = '*', to = 'GET /secret', with = {{ 'claims.d' = 'y' }} }}, \
             {{ name = 'open', allow = '*', to = 'GET /secret' }}]"
        ));
        let replay = |who: &str, service: &str, path: &str| {
            let replayed = policy.replay(&caller(who), (&service.parse().unwrap(), "GET", path), now());
            replayed.map(|replayed| (replayed.now.allowed, replayed.uncertain))
        };
        let clerk = "groups = 'finance', scope = 'r'";
        assert_eq!(replay(clerk, "wiki", "/pages/1").unwrap(), (true, false));
        assert_eq!(replay("groups = 'finance'", "wiki", "/pages/1").unwrap(), (false, false));
        assert_eq!(replay(clerk, "hr", "/a").unwrap(), (false, true));
        assert_eq!(replay("groups = 'x'", "hr", "/a").unwrap(), (false, false));
        assert_eq!(replay("", "hr", "/secret").unwrap(), (true, true));
        assert_eq!(replay(clerk, "gone", "/a").unwrap(), (false, false));
        assert!(replay("issuer = 'old'", "wiki", "/pages/1").is_err());
    }
}
