//! The same policies decided a second time, naively and straight from the files, on random small policies: both must agree.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use postern_base::value::{OneOrMany, Span};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::test::{address, hypothetical};
use super::*;
use crate::path::PathMode;

#[derive(Debug, PartialEq)]
enum Outcome {
    NotVisible,
    Denied(Vec<String>),
    Allowed(Vec<String>),
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
            rules.filter_map(|rule| rule.name.clone()).collect::<Vec<String>>()
        };
        match (matching(true), matching(false)) {
            (denied, _) if !denied.is_empty() => Outcome::Denied(denied),
            (_, allowed) if speaks && !allowed.is_empty() => Outcome::Allowed(allowed),
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

const SELECTORS: [&str; 8] = [
    "*",
    "corp/group:a",
    "corp/group:b",
    "partners/group:a",
    "corp/user:ada",
    "partners/client:batch",
    "corp/scope:read",
    "corp/token-role:x",
];
const PATTERNS: [&str; 12] = [
    "* /**",
    "GET /**",
    "GET /x",
    "GET /x/",
    "GET,PUT /x/*",
    "* /x/**",
    "DELETE /x/*/z",
    "PUT /",
    "HEAD /x/y",
    "GET /X/%40y",
    "* /*",
    "* /@/**",
];
const PATHS: [&str; 12] =
    ["/", "/x", "/x/", "/x/y", "/x/y/z", "/X/Y", "/x/y/", "/X/%40Y", "/X/@y", "/x/%40y", "/%40/a", "/other"];

fn with() -> impl Strategy<Value = Option<WithFile>> {
    let texts = |all: &[&'static str]| {
        subsequence(all.to_vec(), 0..=2)
            .prop_map(|list| OneOrMany(list.into_iter().map(str::to_owned).collect()))
    };
    let claims =
        select(vec![vec![], vec![("dept.of", vec![json!("a"), json!(1)])], vec![("ok", vec![json!(true)])]]);
    let max_age = select(vec![None, None, Some(Span(Duration::from_hours(1)))]);
    let with = (texts(&["read", "write", "read write"]), texts(&["mfa", "phr"]), max_age, claims).prop_map(
        |(scope, acr, max_age, claims)| {
            let claims = claims.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
            WithFile { scope, acr, max_age, claims }
        },
    );
    prop_oneof![2 => Just(None), 1 => with.prop_map(Some)]
}

fn selectors(roles: usize) -> impl Strategy<Value = OneOrMany<String>> {
    let mut all: Vec<String> = SELECTORS.map(str::to_owned).into();
    all.extend((0..roles).flat_map(|role| [format!("role:r{role}"), format!("role:r{role}")]));
    prop::collection::vec(select(all), 1..3).prop_map(OneOrMany)
}

fn rule(denies: bool) -> impl Strategy<Value = RuleFile> {
    let networks: Vec<IpNet> =
        ["10.0.0.0/8", "::ffff:192.0.2.0/120", "2001:db8::/32"].map(|text| text.parse().unwrap()).into();
    let to = subsequence(PATTERNS.to_vec(), 1..3);
    (
        prop::bool::weighted(0.2),
        selectors(3),
        to,
        with(),
        prop_oneof![2 => Just(vec![]), 1 => subsequence(networks, 1..3)],
    )
        .prop_map(move |(deny, who, to, with, from)| {
            let (allow, deny) =
                if deny || denies { (OneOrMany::default(), who) } else { (who, OneOrMany::default()) };
            let to = OneOrMany(to.into_iter().map(str::to_owned).collect());
            RuleFile { name: None, allow, deny, to, with, from: OneOrMany(from) }
        })
}

fn policies() -> impl Strategy<Value = PolicySource> {
    let role = |roles| (selectors(roles), with()).prop_map(|(any, with)| RoleFile { any, with });
    let roles = (role(0), role(1), role(2));
    let kind = select(vec![ServiceKind::Http, ServiceKind::Http, ServiceKind::Tcp]);
    let services = (prop::collection::vec(rule(false), 0..6), any::<bool>(), select(vec!["", "corp"]), kind);
    let denials = (prop::collection::vec(rule(true), 0..2), prop::bool::weighted(0.2));
    (roles, services, denials).prop_map(
        |((r0, r1, r2), (mut rules, hidden, issuer, kind), (mut denials, connects))| {
            let of_tcp = rules.iter_mut().filter(|_| kind == ServiceKind::Tcp);
            for rule in of_tcp.chain(denials.first_mut().filter(|_| connects)) {
                rule.to = OneOrMany(vec!["CONNECT".to_owned()]);
            }
            if !issuer.is_empty() {
                let lists = rules.iter_mut().flat_map(|rule| [&mut rule.allow, &mut rule.deny]);
                for who in lists.flat_map(|list| &mut list.0) {
                    *who = who.replace("partners", "corp");
                }
            }
            let named = |rules: &mut [RuleFile], what: &str| {
                for (index, rule) in rules.iter_mut().enumerate() {
                    rule.name = Some(format!("{what} {index}"));
                }
            };
            named(&mut rules, "service");
            named(&mut denials, "global");
            let roles = BTreeMap::from([("r0".to_owned(), r0), ("r1".to_owned(), r1), ("r2".to_owned(), r2)]);
            let issuers = Some(issuer).filter(|name| !name.is_empty()).map(|name| name.parse().unwrap());
            let service = ServiceRules { kind, issuers: issuers.into_iter().collect(), hidden, rules };
            PolicySource {
                issuers: vec!["corp".parse().unwrap(), "partners".parse().unwrap()],
                roles,
                services: BTreeMap::from([("s".parse().unwrap(), service)]),
                rules: denials,
                tests: Vec::new(),
            }
        },
    )
}

fn callers() -> impl Strategy<Value = TestCaller> {
    let texts = |all: &[&'static str]| {
        subsequence(all.to_vec(), 0..=all.len())
            .prop_map(|list| OneOrMany(list.into_iter().map(str::to_owned).collect()))
    };
    let maybe = |all: &[&'static str]| prop::option::of(select(all.to_vec()).prop_map(str::to_owned));
    let claims = select(vec![
        json!({}),
        json!({ "dept": { "of": ["b", 1] } }),
        json!({ "ok": true, "dept": { "of": "a" } }),
    ]);
    let ip = select(vec!["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "2001:db8::7", "2001:db9::7"]);
    let lists = (texts(&["a", "b"]), texts(&["read", "write"]), texts(&["x"]));
    let words = (maybe(&["ada", "bob"]), maybe(&["batch"]), maybe(&["mfa", "phr", "low"]));
    let age = prop::option::of(select(vec![Span(Duration::from_mins(30)), Span(Duration::from_mins(90))]));
    (select(vec!["corp", "corp", "partners"]), lists, words, age, claims, ip).prop_map(
        |(issuer, (groups, scope, roles), (user, client, acr), auth_age, claims, ip)| TestCaller {
            issuer: Some(issuer.parse().unwrap()),
            user,
            subject: None,
            client,
            groups,
            scope,
            roles,
            acr,
            auth_age,
            claims: claims.as_object().unwrap().clone(),
            ip: Some(ip.parse().unwrap()),
        },
    )
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
                (Outcome::Allowed(names), Ok(permit)) => prop_assert!(names.iter().any(|name| name == permit.rule())),
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
