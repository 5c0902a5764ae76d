//! `show`: one service: what the caller may do there, by which rules and how often, whether it is up, and how to reach it. One that is
//! not there and one that the caller may not know of look alike: exit code 6.
//! JSON: [`ShowDocument`].

use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::ls::state;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::output::text::{Afar, escape, local_clock, table};
use crate::relay_api::problem::lock_fix;
use crate::relay_api::{Rule, Service};

/// `show --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ShowDocument {
    relay: String,
    service: Service,
}

pub(super) async fn run(context: &Context, name: &ServiceName, out: &Output) -> Result<u8, Failure> {
    let relay = &context.relay;
    let found = context.ask(|pass| async move { relay.services(&pass).await }).await?.services;
    let service = found.into_iter().find(|service| service.name == *name).ok_or_else(|| {
        Failure::new(Exit::NoSuchService, format!("no such service: {name}"))
            .fix("see what there is: postern ls")
    })?;
    if out.json {
        out.json(&ShowDocument { relay: relay.url.origin(), service });
    } else {
        out.states(&page(&service, local_clock));
    }
    Ok(0)
}

fn page(service: &Service, clock: impl Fn(u64) -> String) -> String {
    let list = |items: &[Afar]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let name = &service.name;
    let is_tcp = service.kind.raw() == "tcp";
    let use_it = if is_tcp {
        format!("postern forward {name}\npostern connect {name}")
    } else {
        format!("postern forward 8080:{name}\npostern curl {name}/")
    };
    let text = |text: Option<String>| text.unwrap_or_default();
    let rows = [
        ("service", name.to_string()),
        ("kind", service.kind.to_string()),
        ("about", text(service.about.as_ref().map(ToString::to_string))),
        ("state", state(service, clock)),
        ("fix", text(service.locked.as_ref().map(|lock| lock_fix(lock.raw())))),
        ("agents", list(&service.agents)),
        ("url", text(service.url.as_deref().map(escape))),
        ("audience", text(service.resource.as_deref().map(escape))),
        ("use it", use_it),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    let card = table(&[], &rows.map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>(), true);
    if service.rules.is_empty() {
        return format!("{card}\n\nNo rule lets you do anything here. Who you are: postern whoami");
    }
    let rules: Vec<_> = service.rules.iter().map(row).collect();
    format!("{card}\n\n{}", table(&["YOU MAY", "BY THE RULE", "NEEDS, LIMITS"], &rules, false))
}

fn row(rule: &Rule) -> Vec<String> {
    let to: Vec<_> = rule.to.iter().map(ToString::to_string).collect();
    let needs = rule.needs.iter().map(|need| format!("needs {need}"));
    let limits: Vec<_> = needs.chain(rule.limits.iter().map(ToString::to_string)).collect();
    vec![to.join("\n"), rule.name.to_string(), limits.join("\n")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_page_of_an_http_service() {
        let billing = service(json!({
            "name": "billing", "kind": "http", "about": "Legacy invoice API (2009)", "url": "https://relay.example.com/billing/",
            "may": ["GET /v1/invoices/**"], "agents": ["dc1", "dc2"], "up": true,
            "rules": [
                { "name": "clerks read invoices", "to": ["GET /v1/invoices/**", "GET /v1/rates"], "needs": [],
                  "limits": [{ "limit": "20/s per user", "left": 17 }, { "limit": "100/day per user", "left": 0, "wait": 7201 }] },
                { "name": "clerks change invoices", "to": ["PUT /v1/invoices/*"], "needs": ["scope invoices:write"], "limits": ["1/s per user"] },
            ],
        }));
        insta::assert_snapshot!(page(&billing, |_| "14:01".into()), @r"
        service  billing
        kind     http
        about    Legacy invoice API (2009)
        state    ● up
        agents   dc1, dc2
        url      https://relay.example.com/billing/
        use it   postern forward 8080:billing
                 postern curl billing/

        YOU MAY              BY THE RULE             NEEDS, LIMITS
        GET /v1/invoices/**  clerks read invoices    20/s per user, 17 left
        GET /v1/rates                                100/day per user, used up: wait 3 h
        PUT /v1/invoices/*   clerks change invoices  needs scope invoices:write
                                                     1/s per user
        ");
    }

    #[test]
    fn a_locked_one_says_whom_to_ask_and_one_without_rules_says_so() {
        let ledger = service(json!({
            "name": "ledger-db", "kind": "tcp", "url": null, "may": [], "agents": ["dc1"], "up": false, "locked": "00c0ffee",
        }));
        insta::assert_snapshot!(page(&ledger, |_| "14:01".into()), @r"
        service  ledger-db
        kind     tcp
        state    ○ locked
        fix      ask the relay's operator about lock 00c0ffee
        agents   dc1
        use it   postern forward ledger-db
                 postern connect ledger-db

        No rule lets you do anything here. Who you are: postern whoami
        ");
    }
}
