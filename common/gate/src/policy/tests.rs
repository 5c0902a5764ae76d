//! Policies written as in relay.toml, callers as in `[[tests]]`, and verdicts as text.

mod decisions;
mod limits;
mod problems;
mod scale;
mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use postern_base::id::ServiceName;
use serde::Deserialize;

use super::test::{address, hypothetical};
use super::*;
use crate::path::PathMode;

/// The contract's own example (config.md), as far as policy goes.
const EXAMPLE: &str = r#"
issuers = ["corp", "partners"]
[roles]
clerk         = { any = ["corp/group:finance"] }
billing-admin = { any = ["corp/group:finance-leads", "role:superuser"], with = { acr = "mfa" } }
superuser     = { any = ["corp/user:root@example.com"] }
batch         = { any = ["partners/client:nightly-batch"] }
[services.wiki]
issuers = ["corp"]
rules = [{ allow = "role:clerk", to = "GET /**" }]
[services.billing]
[[services.billing.rules]]
name  = "clerks read invoices"
allow = ["role:clerk", "role:batch"]
to    = ["GET /v1/invoices/**"]
with  = { scope = "invoices:read" }
from  = ["10.0.0.0/8", "2001:db8::/32"]
[[services.billing.rules]]
name  = "admins change invoices"
allow = "role:billing-admin"
to    = "POST,PUT,DELETE /v1/invoices/*"
with  = { scope = "invoices:write", "claims.department" = ["finance", "audit"], max_age = "1h" }
[[rules]]
name = "nobody reaches debug pages"
deny = "*"
to   = "* /debug/**"
[[tests]]
name   = "clerks cannot delete"
as     = { issuer = "corp", groups = ["finance"], scope = ["invoices:read"], ip = "10.1.2.3" }
call   = "DELETE billing/v1/invoices/7"
expect = "deny"
"#;

/// A service with these rules, one issuer.
fn one(rules: &str) -> Policy {
    policy(&format!("issuers = [\"corp\"]\n[services.s]\nrules = [{rules}]"))
}

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

fn source(text: &str) -> PolicySource {
    policy_source(toml::from_str(text).unwrap())
}

fn policy_source(file: File) -> PolicySource {
    let File { issuers, roles, services, rules, tests } = file;
    let service = |file: ServiceFile| {
        let ServiceFile { kind, issuers, hidden, rules } = file;
        ServiceRules { kind, issuers, hidden, rules }
    };
    let services = services.into_iter().map(|(name, file)| (name, service(file))).collect();
    PolicySource { issuers, roles, services, rules, tests }
}

pub(super) fn policy(text: &str) -> Policy {
    Policy::compile(source(text)).unwrap()
}

pub(super) fn caller(text: &str) -> TestCaller {
    #[derive(Deserialize)]
    struct Wrap {
        caller: TestCaller,
    }
    toml::from_str::<Wrap>(&format!("caller = {{ {text} }}")).unwrap().caller
}

pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn principal(policy: &Policy, text: &str) -> Principal {
    hypothetical(&caller(text), policy, now()).unwrap()
}

fn decide(policy: &Policy, who: &str, call: &str) -> Result<Permit, Denial> {
    let (method, place) = call.split_once(' ').unwrap();
    let (service, path) = place.split_once('/').unwrap_or((place, ""));
    let path = format!("/{path}");
    let path = CanonicalPath::parse(&path, PathMode::Loose).unwrap();
    let target = Target { service: &service.parse().unwrap(), method, path: &path };
    policy.decide(&principal(policy, who), &target, &Context { address: address(&caller(who)), now: now() })
}

/// `allow: RULE`, `deny: RULE` or the kind and the detail.
fn verdict(policy: &Policy, who: &str, call: &str) -> String {
    match decide(policy, who, call) {
        Ok(permit) => format!("allow: {}", permit.rule()),
        Err(denial) => match denial.kind() {
            DenialKind::NotVisible => "404".to_owned(),
            DenialKind::DeniedByRule => format!("deny: {}", denial.rule().unwrap()),
            DenialKind::NoRule => format!("403: {}", denial.detail()),
            DenialKind::MissingScope { scope } => format!("403 scope={scope}: {}", denial.detail()),
            DenialKind::StepUp { acr_values, max_age } => {
                format!("401 acr={acr_values:?} max_age={max_age:?}: {}", denial.detail())
            }
            DenialKind::MethodNotAllowed { allow } => format!("405 {}: {}", allow.join(","), denial.detail()),
        },
    }
}

fn check(policy: &Policy, table: &[(&str, &str, &str)]) {
    for (who, call, expected) in table {
        assert_eq!(verdict(policy, who, call), *expected, "{who}: {call}");
    }
}
