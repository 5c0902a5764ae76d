//! Policy files: parsed, compiled, its own tests run; every mistake is an error with its place. Nobody but whom a rule allows gets in.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use postern_base::config::Source;
use postern_base::id::{IssuerName, ServiceName};
use postern_gate::policy::{Policy, PolicySource, RoleFile, RuleFile, ServiceKind, ServiceRules, TestFile};
use serde::Deserialize;

/// What of relay.toml makes its policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    issuers: Vec<IssuerName>,
    #[serde(default)]
    roles: BTreeMap<String, RoleFile>,
    #[serde(default)]
    services: BTreeMap<ServiceName, ServiceFile>,
    #[serde(default)]
    rules: Vec<RuleFile>,
    #[serde(default)]
    tests: Vec<TestFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    #[serde(default)]
    kind: ServiceKind,
    #[serde(default)]
    issuers: Vec<IssuerName>,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    rules: Vec<RuleFile>,
}

fuzz_target!(|text: &str| {
    let source = Source::from_text("relay.toml", text);
    let file = match source.parse::<File>() {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let allows =
        file.services.values().flat_map(|service| &service.rules).any(|rule| !rule.allow.0.is_empty());
    let expected: Vec<_> = file.tests.iter().map(|test| test.expect.clone()).collect();
    let (issuers, names): (Vec<_>, Vec<_>) = (file.issuers.clone(), file.services.keys().cloned().collect());
    let service = |file: ServiceFile| {
        let ServiceFile { kind, issuers, hidden, rules } = file;
        ServiceRules { kind, issuers, hidden, rules }
    };
    let services = file.services.into_iter().map(|(name, file)| (name, service(file))).collect();
    let (roles, rules, tests) = (file.roles, file.rules, file.tests);
    match Policy::compile(PolicySource { issuers: file.issuers, roles, services, rules, tests }) {
        Ok(policy) => {
            for outcome in policy.run_tests() {
                let is_in = outcome.passed && expected[outcome.index].trim_start().starts_with("allow");
                assert!(allows || !is_in, "no rule allows anything: {outcome:?}");
            }
            issuers.iter().for_each(|issuer| drop(policy.scopes_named_for(issuer)));
            assert!(names.iter().all(|name| policy.rules_of(name) <= text.len()));
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(!source.locate(problem).to_string().is_empty());
            }
        }
    }
});
