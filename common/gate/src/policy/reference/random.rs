//! Random small policies and callers, in the words of the files, made so that their parts meet often.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use postern_base::value::{OneOrMany, Span};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use super::super::*;

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
pub(super) const PATHS: [&str; 12] =
    ["/", "/x", "/x/", "/x/y", "/x/y/z", "/X/Y", "/x/y/", "/X/%40Y", "/X/@y", "/x/%40y", "/%40/a", "/other"];

fn with() -> impl Strategy<Value = Option<WithFile>> {
    let texts = |all: &[&'static str]| {
        subsequence(all.to_vec(), 0..=2)
            .prop_map(|list| OneOrMany(list.into_iter().map(str::to_owned).collect()))
    };
    let claims =
        select(vec![vec![], vec![("dept.of", vec![json!("a"), json!(1)])], vec![("ok", vec![json!(true)])]]);
    let max_age = select(vec![None, None, Some(Span(Duration::from_hours(1)))]);
    let bound = prop::bool::weighted(0.2);
    let lists = (texts(&["read", "write", "read write"]), texts(&["mfa", "phr"]));
    let with = (lists, max_age, claims, bound).prop_map(|((scope, acr), max_age, claims, bound)| {
        let claims = claims.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
        WithFile { scope, acr, max_age, claims, bound }
    });
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
        (select(vec!["", "", "20/s per user"]), select(vec!["", "", "9/day per ip"])),
    )
        .prop_map(move |(deny, who, to, with, from, limits)| {
            let (allow, deny) =
                if deny || denies { (OneOrMany::default(), who) } else { (who, OneOrMany::default()) };
            let to = OneOrMany(to.into_iter().map(str::to_owned).collect());
            let (rate, quota) = if deny.0.is_empty() { limits } else { ("", "") };
            let (rate, quota) = (rate.parse().ok(), quota.parse().ok());
            RuleFile { name: None, allow, deny, to, with, from: OneOrMany(from), rate, quota }
        })
}

pub(super) fn policies() -> impl Strategy<Value = PolicySource> {
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

pub(super) fn callers() -> impl Strategy<Value = TestCaller> {
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
    (select(vec!["corp", "corp", "partners"]), lists, words, age, claims, ip, any::<bool>()).prop_map(
        |(issuer, (groups, scope, roles), (user, client, acr), auth_age, claims, ip, bound)| TestCaller {
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
            bound,
            ip: Some(ip.parse().unwrap()),
        },
    )
}
