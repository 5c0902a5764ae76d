//! `ls`: the services the caller may use, what it may do there, and whether they are up, locked, or used as often as the rules let.
//! JSON: [`LsDocument`].

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::cli::services::Ls;
use crate::failure::Failure;
use crate::output::Output;
use crate::output::text::{Afar, escape, local_clock, table};
use crate::relay_api::Service;

/// `ls --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct LsDocument {
    relay: String,
    services: Vec<Service>,
}

pub(super) async fn run(context: &Context, Ls { pattern, wide }: &Ls, out: &Output) -> Result<u8, Failure> {
    let (relay, pattern) = (&context.relay, pattern.as_deref());
    let mut found = context.ask(|pass| async move { relay.services(&pass).await }).await?.services;
    let has_any = !found.is_empty();
    found.retain(|service| pattern.is_none_or(|pattern| matches(pattern, service.name.as_str())));
    if out.json {
        out.json(&LsDocument { relay: relay.url.origin(), services: found });
    } else if let Some(pattern) = pattern.filter(|_| found.is_empty() && has_any) {
        out.note(&format!("None of your services matches {pattern:?}. All of them: postern ls"));
    } else if found.is_empty() {
        out.note("Nothing here that you may use. Who you are: postern whoami");
    } else if *wide {
        out.whole_states(&listing(&found, true, local_clock));
    } else {
        out.states(&listing(&found, false, local_clock));
    }
    Ok(0)
}

/// A pattern with `*` matches the whole name, any other a part of it.
fn matches(pattern: &str, name: &str) -> bool {
    if !pattern.contains('*') {
        return name.contains(pattern);
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether it can be used now; `clock` tells a time.
pub(super) fn state(service: &Service, clock: impl Fn(u64) -> String) -> String {
    match (service.up, &service.locked, service.down_since) {
        (true, ..) if service.is_used_up() => "● up, limit used up".to_owned(),
        (true, ..) => "● up".to_owned(),
        (false, Some(_), _) => "○ locked".to_owned(),
        (false, None, Some(since)) => format!("○ down since {}", clock(since)),
        (false, None, None) => "○ down".to_owned(),
    }
}

fn listing(services: &[Service], wide: bool, clock: impl Fn(u64) -> String) -> String {
    let join = |items: &[Afar], by: &str| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(by);
    let mut header = vec!["SERVICE", "KIND", "YOU MAY", "AGENT", "ABOUT"];
    if wide {
        header.extend(["AGENTS", "URL"]);
    }
    let rows: Vec<Vec<String>> = services
        .iter()
        .map(|service| {
            let mut row = vec![
                service.name.to_string(),
                service.kind.to_string(),
                join(&service.may, if wide { ", " } else { "\n" }),
                state(service, &clock),
                service.about.as_ref().map(ToString::to_string).unwrap_or_default(),
            ];
            if wide {
                row.push(join(&service.agents, ", "));
                row.push(escape(service.url.as_deref().unwrap_or_default()));
            }
            row
        })
        .collect();
    table(&header, &rows, wide)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn services() -> Vec<Service> {
        serde_json::from_value(serde_json::json!([
            { "name": "billing", "kind": "http", "about": "Legacy invoice API (2009)", "url": "https://relay.example.com/billing/",
              "may": ["GET /v1/invoices/**"], "agents": ["dc1"], "up": true, "later": "ignored" },
            { "name": "wiki", "kind": "http", "about": null, "url": "https://relay.example.com/wiki/",
              "may": ["GET /**", "POST /pages/*"], "agents": [], "up": false, "down_since": 1_772_632_860u64 },
            { "name": "ledger-db", "kind": "tcp", "url": null, "may": ["CONNECT"], "agents": ["dc1"], "up": true },
        ]))
        .unwrap()
    }

    #[test]
    fn the_list() {
        let clock = |_| "14:01".to_owned();
        insta::assert_snapshot!(listing(&services(), false, clock), @r"
        SERVICE    KIND  YOU MAY              AGENT               ABOUT
        billing    http  GET /v1/invoices/**  ● up                Legacy invoice API
                                                                  (2009)
        wiki       http  GET /**              ○ down since 14:01
                         POST /pages/*
        ledger-db  tcp   CONNECT              ● up
        ");
        insta::assert_snapshot!(listing(&services(), true, clock), @r"
        SERVICE    KIND  YOU MAY                 AGENT               ABOUT                      AGENTS  URL
        billing    http  GET /v1/invoices/**     ● up                Legacy invoice API (2009)  dc1     https://relay.example.com/billing/
        wiki       http  GET /**, POST /pages/*  ○ down since 14:01                                     https://relay.example.com/wiki/
        ledger-db  tcp   CONNECT                 ● up                                           dc1
        ");
    }

    #[test]
    fn what_is_locked_or_used_up_is_told() {
        let of = |value: serde_json::Value| {
            let mut service = json!({ "name": "billing", "kind": "http", "up": true });
            service.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            state(&serde_json::from_value(service).unwrap(), |_| "14:01".to_owned())
        };
        let rule = |wait: Option<u64>| json!({ "name": "r", "limits": [{ "limit": "1/day per user", "left": 0, "wait": wait }] });
        assert_eq!(of(json!({ "up": false, "locked": "00c0ffee", "down_since": 1 })), "○ locked");
        assert_eq!(of(json!({ "rules": [rule(Some(9))] })), "● up, limit used up");
        assert_eq!(of(json!({ "rules": [rule(Some(9)), rule(None)] })), "● up");
        assert_eq!(of(json!({ "rules": [] })), "● up");
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("bill", "billing", true),
            ("ing", "billing", true),
            ("b*g", "billing", true),
            ("*ill*", "billing", true),
            ("*", "billing", true),
            ("b*", "wiki", false),
            ("*x*g", "billing", false),
            ("bill*ling", "billing", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
