//! `policy replay --audit FILE`: takes the decisions of an audit log and the configuration's rules; lists the calls that would now be
//! decided otherwise. What a log does not hold (claims; names behind pseudonyms) is not guessed: such calls are counted as uncertain.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use postern_base::console;
use postern_base::id::{IssuerName, ServiceName};
use postern_base::value::{OneOrMany, Span};
use postern_gate::policy::{Policy, Replayed, TestCaller};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Context, Done, Exit, Failure};

/// How a pseudonym begins; a rule for a user cannot be held against one.
const VEIL: char = '~';

/// What of a decision's line is needed to decide again.
#[derive(Debug, Deserialize)]
struct Line {
    time: jiff::Timestamp,
    decision_id: Option<String>,
    outcome: String,
    issuer: Option<IssuerName>,
    subject: Option<String>,
    user: Option<String>,
    client: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    token_roles: Vec<String>,
    acr: Option<String>,
    /// Seconds since the epoch.
    auth_time: Option<u64>,
    /// `none`, or what the token was bound to.
    binding: Option<String>,
    address: String,
    service: Option<ServiceName>,
    method: String,
    path: String,
    rule: Option<String>,
}

/// A call whose decision would change.
#[derive(Debug, Serialize, JsonSchema)]
struct Changed {
    #[schemars(with = "String")]
    time: jiff::Timestamp,
    decision_id: Option<String>,
    user: String,
    call: String,
    before: String,
    after: String,
    detail: String,
}

/// What came of all lines.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Summary {
    changed: Vec<Changed>,
    same: usize,
    uncertain: usize,
    /// Decisions about tokens or addresses, which rules have no part in.
    not_policy: usize,
}

pub(super) fn run(context: &Context, audit: &Path) -> Done {
    let loaded = context.look()?;
    let mut summary = Summary::default();
    let input: Box<dyn BufRead> = if audit == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let file = File::open(audit);
        let file = file.map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", audit.display())))?;
        Box::new(BufReader::new(file))
    };
    for (number, line) in input.lines().enumerate() {
        let refuse = |e: &dyn std::fmt::Display| {
            Failure::new(Exit::Failed, format!("{}:{}: no audit line: {e}", audit.display(), number + 1))
        };
        let line = line?;
        let value: Value = serde_json::from_str(&line).map_err(|e| refuse(&e))?;
        if value["event"] == "decision" {
            let line = serde_json::from_value(value).map_err(|e| refuse(&e))?;
            replay(&loaded.policy, line, &mut summary);
        }
    }
    if context.output.json {
        console::json(&summary)?;
    } else {
        for Changed { time, user, call, before, after, detail, .. } in &summary.changed {
            console::line(format!("{time:.0} {user}: {call}: {before} -> {after}: {detail}"))?;
        }
    }
    let Summary { changed, same, uncertain, not_policy } = &summary;
    context.output.note(format!(
        "{} changed, {same} the same, {uncertain} uncertain (they hang on what the log does not hold), {not_policy} not by rules",
        changed.len()
    ));
    if changed.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn replay(policy: &Policy, line: Line, summary: &mut Summary) {
    // A token or service that was refused before any rule was looked at names no principal or no service.
    let (Some(issuer), Some(service)) = (&line.issuer, &line.service) else {
        summary.not_policy += 1;
        return;
    };
    let Ok(address) = line.address.parse::<IpAddr>() else {
        summary.uncertain += 1;
        return;
    };
    let seconds = u64::try_from(line.time.as_second()).unwrap_or(0);
    let age = line.auth_time.map(|login| Span(Duration::from_secs(seconds.saturating_sub(login))));
    let caller = TestCaller {
        issuer: Some(issuer.clone()),
        user: line.user.clone(),
        subject: line.subject.clone(),
        client: line.client.clone(),
        groups: OneOrMany(line.groups.clone()),
        scope: OneOrMany(line.scopes.clone()),
        roles: OneOrMany(line.token_roles.clone()),
        acr: line.acr.clone(),
        auth_age: age,
        claims: serde_json::Map::new(),
        bound: line.binding.as_ref().is_some_and(|binding| binding != "none"),
        ip: Some(address),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let was_allowed = line.outcome == "allow";
    let (is_allowed, detail) = match policy.replay(&caller, (service, &line.method, &line.path), now) {
        Ok(Replayed { uncertain: true, .. }) => {
            summary.uncertain += 1;
            return;
        }
        Ok(Replayed { now, .. }) => (now.allowed, now.detail),
        // A pseudonym in its place.
        Err(problem) if problem.at == ["path"] => {
            summary.uncertain += 1;
            return;
        }
        // An issuer that is gone lets nobody in.
        Err(problem) => (false, problem.to_string()),
    };
    if is_allowed == was_allowed {
        summary.same += 1;
        return;
    }
    if line.user.as_ref().is_some_and(|user| user.starts_with(VEIL)) {
        summary.uncertain += 1;
        return;
    }
    let verdict = |allowed: bool| if allowed { "allow" } else { "deny" }.to_owned();
    let by = line.rule.map(|rule| format!(" by {rule:?}")).unwrap_or_default();
    summary.changed.push(Changed {
        time: line.time,
        decision_id: line.decision_id,
        user: line.user.or(line.subject).unwrap_or_default(),
        call: format!("{} {service}{}", line.method, if line.method == "CONNECT" { "" } else { &line.path }),
        before: format!("{}{by}", verdict(was_allowed)),
        after: verdict(is_allowed),
        detail,
    });
}

#[cfg(test)]
mod tests {
    use postern_gate::policy::{PolicySource, ServiceRules};
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_that_rules_had_no_part_in_are_no_calls() {
        let rules = |text: &str| toml::from_str::<std::collections::BTreeMap<String, Vec<_>>>(text).unwrap();
        let rules =
            rules("rules = [{ allow = '*', to = 'GET /**', with = { bound = true, max_age = '1h' } }]");
        let service = ServiceRules { rules: rules["rules"].clone(), ..ServiceRules::default() };
        let policy = Policy::compile(PolicySource {
            issuers: vec!["corp".parse().unwrap()],
            services: [("wiki".parse().unwrap(), service)].into(),
            ..PolicySource::default()
        })
        .unwrap();
        let mut summary = Summary::default();
        let whole = json!({
            "time": "2026-01-31T14:05:00Z", "outcome": "deny", "issuer": "corp", "subject": "ada", "address": "10.0.0.1",
            "service": "wiki", "method": "GET", "path": "/x", "auth_time": 1_769_868_000, "binding": "dpop",
        });
        let mut try_with = |changes: &[(&str, Value)]| {
            let mut line = whole.clone();
            for (key, value) in changes {
                line[key] = value.clone();
            }
            replay(&policy, serde_json::from_value(line).unwrap(), &mut summary);
            (summary.changed.len(), summary.same, summary.uncertain, summary.not_policy)
        };
        assert_eq!(try_with(&[]), (1, 0, 0, 0));
        assert_eq!(try_with(&[("outcome", json!("allow"))]), (1, 1, 0, 0));
        assert_eq!(try_with(&[("binding", json!("none"))]), (1, 2, 0, 0));
        assert_eq!(try_with(&[("auth_time", json!(1_700_000_000))]), (1, 3, 0, 0));
        assert_eq!(try_with(&[("address", json!("p-1234"))]), (1, 3, 1, 0));
        assert_eq!(try_with(&[("path", json!("~0123456789abcdef"))]), (1, 3, 2, 0));
        assert_eq!(try_with(&[("user", json!("~0123456789abcdef"))]), (1, 3, 3, 0));
        assert_eq!(try_with(&[("issuer", Value::Null)]), (1, 3, 3, 1));
        assert_eq!(try_with(&[("service", Value::Null)]), (1, 3, 3, 2));
        assert_eq!(try_with(&[("issuer", json!("gone")), ("outcome", json!("allow"))]), (2, 3, 3, 2));
    }
}
