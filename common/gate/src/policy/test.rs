//! Takes callers that somebody made up and calls such as `DELETE billing/v1/invoices/7`; gives what the policy would decide, by the
//! very code that decides. Hypothetical principals never leave this room.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use postern_base::config::Problem;
use postern_base::id::{IssuerName, ServiceName};
use schemars::JsonSchema;
use serde::Serialize;

use super::compile::unknown;
use super::explain::{Explanation, Tell};
use super::file::{TestCaller, TestFile};
use super::rule::{Rule, listed};
use super::target::check_method;
use super::{CONNECT, Context, Policy, ServiceKind, Target, seconds};
use crate::path::{CanonicalPath, PathMode};
use crate::principal::{Principal, Proved, TokenId};
use crate::token::Binding;

/// When the tests take place. Nothing in them depends on the day: logins are as old as `auth_age` says.
const TEST_TIME: Duration = Duration::from_secs(2_000_000_000);

/// One entry of `[[tests]]`, understood.
#[derive(Debug)]
pub(super) struct Test {
    name: String,
    principal: Principal,
    call: Call,
    context: Context,
    allow: bool,
    rule: Option<String>,
}

#[derive(Debug)]
struct Call {
    service: ServiceName,
    method: String,
    path: CanonicalPath<'static>,
}

/// How a test went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TestOutcome {
    /// Its place among the tests, from 0: the problem's key path is `tests.<index>`.
    #[serde(skip)]
    pub index: usize,
    pub name: String,
    pub passed: bool,
    /// `expected deny, got allow by rule "clerks read invoices"`
    pub detail: String,
}

impl Test {
    pub(super) fn compile(file: TestFile, policy: &Policy) -> Result<Self, Problem> {
        let call = Call::parse(&file.call, policy).map_err(|message| Problem::new("call", message))?;
        let now = SystemTime::UNIX_EPOCH + TEST_TIME;
        let context = Context { address: address(&file.r#as), now };
        let principal = hypothetical(&file.r#as, policy, now).map_err(|problem| problem.under("as"))?;
        let (verdict, rule) = file
            .expect
            .split_once(':')
            .map_or((&*file.expect, None), |(verdict, rule)| (verdict, Some(rule.trim())));
        let allow = match verdict.trim() {
            "allow" => true,
            "deny" => false,
            _ => {
                let message = "write \"allow\", \"deny\", \"allow: RULE\" or \"deny: RULE\"";
                return Err(Problem::new("expect", message));
            }
        };
        if let Some(rule) = rule {
            let service = policy.services.get(&call.service);
            let (allows, denies) = service.map_or((&[][..], &[][..]), |s| (s.allow.all(), s.deny.all()));
            let (what, rules): (_, Vec<&Rule>) = if allow {
                ("allowing rule", allows.iter().collect())
            } else {
                ("denying rule", policy.denials.all().iter().chain(denies).collect())
            };
            if !rules.iter().any(|known| *known.name == *rule) {
                return Err(Problem::new(
                    "expect",
                    unknown(what, rule, rules.iter().map(|rule| &*rule.name)),
                ));
            }
        }
        Ok(Self { name: file.name, principal, call, context, allow, rule: rule.map(str::to_owned) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn principal(&self) -> &Principal {
        &self.principal
    }

    pub(super) fn target(&self) -> Target<'_> {
        self.call.target()
    }

    pub(super) fn context(&self) -> Context {
        self.context
    }

    fn run(&self, index: usize, policy: &Policy) -> TestOutcome {
        let verdict = |allow: bool| if allow { "allow" } else { "deny" };
        let (allowed, rule, got) = match policy.decide(&self.principal, &self.call.target(), &self.context) {
            Ok(permit) => {
                (true, Some(permit.rule().to_owned()), format!("allow by rule {:?}", permit.rule()))
            }
            Err(denial) => (false, denial.rule().map(str::to_owned), format!("deny: {}", denial.detail())),
        };
        let passed = allowed == self.allow && (self.rule.is_none() || self.rule == rule);
        let by = self.rule.as_ref().map(|rule| format!(" by rule {rule:?}")).unwrap_or_default();
        let detail = if passed { got } else { format!("expected {}{by}, got {got}", verdict(self.allow)) };
        TestOutcome { index, name: self.name.clone(), passed, detail }
    }
}

impl Call {
    /// `METHOD SERVICE/PATH` or `CONNECT SERVICE`; the path is what the service sees, and strict.
    fn parse(text: &str, policy: &Policy) -> Result<Self, String> {
        let form =
            || format!("{text:?} is not METHOD SERVICE/PATH: write \"GET billing/v1/invoices\" or the like");
        let (method, place) = text.split_once(' ').ok_or_else(form)?;
        let method = if method == CONNECT { method } else { check_method(method)? }.to_owned();
        let place = place.trim_start();
        let (name, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let Some((service, rules)) = policy.services.get_key_value(name) else {
            return Err(unknown("service", name, policy.services.keys().map(ServiceName::as_str)));
        };
        match rules.kind {
            ServiceKind::Tcp if method != CONNECT || !path.is_empty() => {
                return Err(format!("service {name} is of kind tcp: write \"CONNECT {name}\""));
            }
            ServiceKind::Http if method == CONNECT => {
                return Err(format!(
                    "CONNECT is for services of kind tcp: write \"GET {name}/v1/invoices\" or the like"
                ));
            }
            ServiceKind::Tcp | ServiceKind::Http => {}
        }
        let path = if path.is_empty() { "/" } else { path };
        let path = CanonicalPath::parse(path, PathMode::Strict).map_err(|e| e.to_string())?.into_owned();
        Ok(Self { service: service.clone(), method, path })
    }

    fn target(&self) -> Target<'_> {
        Target { service: &self.service, method: &self.method, path: &self.path }
    }
}

impl Policy {
    /// Runs all `[[tests]]`, in their order.
    pub fn run_tests(&self) -> Vec<TestOutcome> {
        self.tests.iter().enumerate().map(|(index, test)| test.run(index, self)).collect()
    }

    /// What `caller` would get for `call` (`METHOD SERVICE/PATH`) at `now`: for the operator, so it also says why a service is not
    /// visible.
    ///
    /// # Errors
    /// The call or the caller's `issuer` cannot be understood.
    pub fn why(
        &self,
        caller: &TestCaller,
        call: &str,
        now: SystemTime,
        tell: Tell<'_>,
    ) -> Result<Explanation, Problem> {
        let call = Call::parse(call, self).map_err(|message| Problem::new("call", message))?;
        let principal = hypothetical(caller, self, now)?;
        let context = Context { address: address(caller), now };
        Ok(self.explain_to_operator(&principal, &call.target(), &context, tell))
    }
}

pub(super) fn address(caller: &TestCaller) -> IpAddr {
    caller.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

pub(super) fn hypothetical(
    caller: &TestCaller,
    policy: &Policy,
    now: SystemTime,
) -> Result<Principal, Problem> {
    let names = || policy.issuers.iter().map(IssuerName::as_str);
    let issuer = match (&caller.issuer, &policy.issuers[..]) {
        (None, [only]) => only.clone(),
        (Some(name), known) if known.contains(name) => name.clone(),
        (Some(name), _) => return Err(Problem::new("issuer", unknown("issuer", name.as_str(), names()))),
        (None, _) => {
            let message = format!(
                "says not whose token it has: write issuer = {}",
                listed(names().map(|name| format!("{name:?}")), "or")
            );
            return Err(Problem::new("", message));
        }
    };
    Ok(Principal::new(proved(caller, issuer, now)))
}

/// What a made-up token of `issuer` says.
pub(super) fn proved(caller: &TestCaller, issuer: IssuerName, now: SystemTime) -> Proved {
    let subject = caller.subject.clone().unwrap_or_else(|| "test".to_owned());
    let now = seconds(now);
    Proved {
        issuer,
        // Policy knows issuers by their names alone, and tokens by what they say.
        iss: String::new(),
        user: caller.user.clone().unwrap_or_else(|| subject.clone()),
        subject,
        client: caller.client.clone(),
        audience: Vec::new(),
        scopes: caller.scope.0.iter().flat_map(|text| text.split_whitespace().map(str::to_owned)).collect(),
        token_roles: caller.roles.0.clone(),
        groups: caller.groups.0.clone(),
        acr: caller.acr.clone(),
        auth_time: caller.auth_age.map(|age| now.saturating_sub(age.0.as_secs())),
        expires: now.saturating_add(3600),
        token_id: TokenId([0; 8]),
        binding: caller.bound.then_some(Binding::Key([0; 32])),
        claims: caller.claims.clone(),
    }
}
