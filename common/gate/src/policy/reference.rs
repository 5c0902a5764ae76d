//! The same policies decided a second time, naively and straight from the files, on random small policies: both must agree.

use std::time::Duration;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use postern_base::value::OneOrMany;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::test::{address, hypothetical};
use super::*;
use crate::path::PathMode;

mod random;

use random::{PATHS, callers, policies};

#[derive(Debug, PartialEq)]
enum Outcome {
    NotVisible,
    Denied(Vec<String>),
    /// By these; limits only count where all of them have some.
    Allowed(Vec<String>, bool),
    Refused,
}

struct Naive<'a> {
    source: &'a PolicySource,
    caller: &'a TestCaller,
    issuer: &'a str,
    /// How long ago the login was, when asked.
    age: Option<Duration>,
}

impl Naive<'_> {
    fn decide(&self, service: &str, method: &str, path: &str) -> Outcome {
        let Some(rules) = self.source.services.get(service) else { return Outcome::NotVisible };
        let accepted = if rules.issuers.is_empty() { &self.source.issuers } else { &rules.issuers };
        let named = |rule: &RuleFile| rule.allow.0.iter().any(|who| self.is(who));
        if !accepted.iter().any(|issuer| issuer.as_str() == self.issuer)
            || (rules.hidden && !rules.rules.iter().any(named))
        {
            return Outcome::NotVisible;
        }
        let speaks = (method == "CONNECT") == (rules.kind == ServiceKind::Tcp);
        let matching = |deny: bool| {
            let all = rules.rules.iter().chain(self.source.rules.iter().filter(|_| deny));
            let rules = all.filter(|rule| {
                let who = if deny { &rule.deny.0 } else { &rule.allow.0 };
                who.iter().any(|who| self.is(who))
                    && rule.to.0.iter().any(|to| covers(to, method, path, deny))
                    && rule.with.as_ref().is_none_or(|with| self.carries(with))
                    && (rule.from.0.is_empty() || rule.from.0.iter().any(|network| self.comes_from(network)))
            });
            rules.collect::<Vec<&RuleFile>>()
        };
        let list = |rules: &[&RuleFile]| rules.iter().filter_map(|rule| rule.name.clone()).collect();
        let limited = |rule: &&RuleFile| rule.rate.is_some() || rule.quota.is_some();
        match (matching(true), matching(false)) {
            (denied, _) if !denied.is_empty() => Outcome::Denied(list(&denied)),
            (_, mut allowed) if speaks && !allowed.is_empty() => {
                let all = allowed.iter().all(limited);
                allowed.retain(|rule| all || !limited(rule));
                Outcome::Allowed(list(&allowed), all)
            }
            _ => Outcome::Refused,
        }
    }

    fn is(&self, who: &str) -> bool {
        if let Some(role) = who.strip_prefix("role:") {
            let role = &self.source.roles[role];
            return role.any.0.iter().any(|who| self.is(who))
                && role.with.as_ref().is_none_or(|with| self.carries(with));
        }
        let Some((issuer, rest)) = who.split_once('/') else { return who == "*" };
        let (kind, value) = rest.split_once(':').unwrap();
        let has = |list: &OneOrMany<String>| list.0.iter().any(|entry| entry == value);
        issuer == self.issuer
            && match kind {
                "group" => has(&self.caller.groups),
                "user" => self.caller.user.as_deref().unwrap_or("test") == value,
                "client" => self.caller.client.as_deref() == Some(value),
                "scope" => has(&self.caller.scope),
                _ => has(&self.caller.roles),
            }
    }

    fn carries(&self, with: &WithFile) -> bool {
        let scope = |scope: &str| self.caller.scope.0.iter().any(|held| held == scope);
        (with.scope.0.is_empty() || with.scope.0.iter().any(|all| all.split(' ').all(scope)))
            && (with.acr.0.is_empty() || self.caller.acr.as_ref().is_some_and(|acr| with.acr.0.contains(acr)))
            && with.max_age.is_none_or(|most| self.age.is_some_and(|age| age <= most.0))
            && with.claims.iter().all(|(path, values)| {
                let pointer = format!("/{}", path.replace('.', "/"));
                let claims = Value::Object(self.caller.claims.clone());
                let found = claims.pointer(&pointer).cloned().unwrap_or_default();
                values
                    .iter()
                    .any(|value| found == *value || found.as_array().is_some_and(|list| list.contains(value)))
            })
            && (!with.bound || self.caller.bound)
    }

    fn comes_from(&self, network: &IpNet) -> bool {
        // Everything as IPv6, where IPv4 is mapped.
        let wide = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let bits = if network.addr().is_ipv4() { 96 } else { 0 } + u32::from(network.prefix_len());
        (wide(network.addr()) ^ wide(address(self.caller))).leading_zeros() >= bits
    }
}

fn covers(to: &str, method: &str, path: &str, deny: bool) -> bool {
    if to == "CONNECT" || method == "CONNECT" {
        return method == "CONNECT" && (to == "CONNECT" || (deny && to == "* /**"));
    }
    let (methods, pattern) = to.split_once(' ').unwrap();
    let knows = |known: &str| {
        known == "*"
            || known == method
            || (known == "GET" && method == "HEAD")
            || (deny && known.eq_ignore_ascii_case(method))
    };
    if !methods.split(',').any(knows) {
        return false;
    }
    let fold = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().unwrap().to_lowercase();
        format!("/{}", text.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join("/"))
    };
    if deny { globs(&fold(pattern), &fold(path)) } else { globs(pattern, path) }
}

/// Matches text with text, a step at a time.
fn globs(pattern: &str, path: &str) -> bool {
    if pattern == "/**" {
        return true;
    }
    match (pattern.strip_prefix('/'), path.strip_prefix('/')) {
        (None, None) => pattern.is_empty() && path.is_empty(),
        (Some(pattern), Some(path)) => {
            let end = |text: &str| text.find('/').unwrap_or(text.len());
            let ((one, pattern), (segment, path)) =
                (pattern.split_at(end(pattern)), path.split_at(end(path)));
            (one == segment || (one == "*" && !segment.is_empty())) && globs(pattern, path)
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_compiled_policy_decides_as_the_naive_one(
        source in policies(),
        caller in callers(),
        method in select(vec!["GET", "GET", "HEAD", "PUT", "DELETE", "get", "BREW", "CONNECT", "CONNECT"]),
        raw in select(PATHS.to_vec()),
        service in select(vec!["s", "s", "s", "t"]),
    ) {
        let policy = Policy::compile(source.clone()).unwrap();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let principal = hypothetical(&caller, &policy, start).unwrap();
        let (path, name) = (CanonicalPath::parse(raw, PathMode::Strict).unwrap(), service.parse().unwrap());
        let target = Target { service: &name, method, path: &path };
        // Twice at the same time, and once an hour later, when some logins have become too old.
        for later in [0, 0, 3600].map(Duration::from_secs) {
            let issuer = caller.issuer.as_ref().unwrap().as_str();
            let age = caller.auth_age.map(|age| age.0 + later);
            let naive = Naive { source: &source, caller: &caller, issuer, age }.decide(service, method, raw);
            let context = Context { address: address(&caller), now: start + later };
            let decided = policy.decide(&principal, &target, &context);
            match (&naive, &decided) {
                (Outcome::Allowed(names, limited), Ok(permit)) => {
                    let rated: Vec<&str> = permit.rates().iter().map(|rated| &*rated.rule).collect();
                    prop_assert_eq!(&rated, if *limited { &names[..] } else { &[] });
                    prop_assert_eq!(permit.rule(), &names[0]);
                }
                (Outcome::Denied(names), Err(denial)) => {
                    prop_assert_eq!(denial.kind(), &DenialKind::DeniedByRule);
                    prop_assert!(names.iter().any(|name| Some(name.as_str()) == denial.rule()));
                }
                (Outcome::NotVisible, Err(denial)) => prop_assert_eq!(denial.kind(), &DenialKind::NotVisible),
                (Outcome::Refused, Err(denial)) => refusal_holds(&policy, &caller, &target, &context, denial)?,
                _ => prop_assert!(false, "naive {naive:?}, compiled {decided:?}"),
            }
        }
    }
}

/// What a refusal says must be true: whoever gets the missing scope is not asked for a scope again, and 405 lists other methods.
fn refusal_holds(
    policy: &Policy,
    caller: &TestCaller,
    target: &Target<'_>,
    context: &Context,
    denial: &Denial,
) -> Result<(), TestCaseError> {
    match denial.kind() {
        DenialKind::NotVisible | DenialKind::DeniedByRule => prop_assert!(false, "{denial:?}"),
        DenialKind::NoRule => {}
        DenialKind::StepUp { acr_values, max_age } => prop_assert!(acr_values.is_some() || max_age.is_some()),
        DenialKind::MethodNotAllowed { allow } => {
            prop_assert!(!allow.is_empty() && allow.iter().all(|method| method != target.method));
        }
        DenialKind::MissingScope { scope } => {
            let mut better = caller.clone();
            better.scope.0.extend(scope.split(' ').map(str::to_owned));
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
            let principal = hypothetical(&better, policy, start).unwrap();
            if let Err(denial) = policy.decide(&principal, target, context) {
                let fine = matches!(denial.kind(), DenialKind::StepUp { .. } | DenialKind::DeniedByRule);
                prop_assert!(fine, "{denial:?}");
            }
        }
    }
    prop_assert_eq!(denial.missing().is_empty(), denial.closest().is_none());
    Ok(())
}
