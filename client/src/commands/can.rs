//! `can`: what policy would say to a call, without making it, and what would hold an allowed one up. Exit 0 allowed, 5 denied, 6 no such
//! service, 8 locked, 9 used as often as the rule lets.
//! JSON: [`Explained`].

use postern_base::console::wait;

use super::Context;
use crate::cli::services::Can;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::output::text::local_clock;
use crate::relay_api::problem::{deny_fix, lock_fix};
use crate::relay_api::{Explained, Held};

pub(super) async fn run(context: &Context, args: Can, out: &Output) -> Result<u8, Failure> {
    let relay = &context.relay;
    let Can { method, mut target } = args;
    let method = method.to_ascii_uppercase();
    let asked = &method;
    // A TCP service has no paths; what was typed behind it is the relay's to refuse.
    if method == "CONNECT" && target.path == "/" {
        target.path.clear();
    }
    // Policy sees no query.
    if let Some((path, _)) = target.path.split_once('?') {
        target.path = path.to_owned();
    }
    let target = &target;
    let explained = context.ask(|pass| async move { relay.explain(&pass, asked, target).await }).await?;
    if out.json {
        out.json(&explained);
    } else {
        out.states(&verdict(&explained, local_clock));
    }
    Ok(code(&explained))
}

/// What the call itself would end with; a service that is down may be up by then.
fn code(explained: &Explained) -> u8 {
    match &explained.held {
        _ if !explained.allowed => Exit::Denied.code(),
        Some(Held::Lock { .. }) => Exit::UpstreamDown.code(),
        Some(Held::Limit { .. }) => Exit::RateLimited.code(),
        Some(Held::Down { .. } | Held::Other) | None => 0,
    }
}

fn verdict(explained: &Explained, clock: impl Fn(u64) -> String) -> String {
    if !explained.allowed {
        let said = explained.verdict();
        let closest =
            explained.closest.as_ref().map(|closest| format!("\n  {}", closest.line())).unwrap_or_default();
        return format!("✗ Denied: {said}{closest}\n  Fix: {}", deny_fix(explained.closest.as_ref(), None));
    }
    let by = explained.rule.as_ref().map(|rule| format!(" by the rule \"{rule}\"")).unwrap_or_default();
    let service = &explained.service;
    match &explained.held {
        Some(Held::Lock { lock }) => {
            format!("✗ Locked: {service} is locked; the call is allowed{by}\n  Fix: {}", lock_fix(lock.raw()))
        }
        Some(Held::Limit { retry_after }) => {
            format!(
                "✗ Used up: the call is allowed{by}{}\n  Fix: wait {}, then try again",
                limits(explained),
                wait(*retry_after)
            )
        }
        held => {
            let rule = explained.rule.as_ref().map(|rule| format!(": \"{rule}\"")).unwrap_or_default();
            let down = match held {
                Some(Held::Down { since, suspended }) => {
                    let since = since.map_or_else(String::new, |since| format!(" since {}", clock(since)));
                    let why = if *suspended { ", as its agent is suspended" } else { "" };
                    format!("\n! {service} is down{since}{why}: the call would fail now")
                }
                _ => String::new(),
            };
            format!("✓ Allowed{rule}{}{down}", limits(explained))
        }
    }
}

fn limits(explained: &Explained) -> String {
    let lines: Vec<_> = explained.limits.iter().map(|limit| format!("\n  At most {limit}")).collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay_api::said::Allowance;

    #[test]
    fn verdicts() {
        let clock = |_| "14:01".to_owned();
        let mut explained: Explained = serde_json::from_value(serde_json::json!({
            "allowed": true, "service": "billing", "method": "GET", "path": "/v1/invoices/7",
            "rule": "clerks read invoices", "detail": "", "closest": null,
        }))
        .unwrap();
        assert_eq!(verdict(&explained, clock), "✓ Allowed: \"clerks read invoices\"");
        explained.limits = vec![Allowance { limit: "20/s per user".into(), left: Some(17), wait: None }];
        assert!(verdict(&explained, clock).ends_with("\n  At most 20/s per user, 17 left"));
        explained.held = Some(Held::Down { since: Some(1), suspended: false });
        assert!(
            verdict(&explained, clock).ends_with("\n! billing is down since 14:01: the call would fail now")
        );
        explained.held = Some(Held::Down { since: None, suspended: true });
        assert!(
            verdict(&explained, clock).contains("is down, as its agent is suspended: the call would fail")
        );
        assert_eq!(code(&explained), 0);
        explained.limits[0].wait = Some(90);
        explained.held = Some(Held::Limit { retry_after: 90 });
        assert_eq!(
            verdict(&explained, clock),
            "✗ Used up: the call is allowed by the rule \"clerks read invoices\"\n  \
             At most 20/s per user, used up: wait 90 s\n  Fix: wait 90 s, then try again"
        );
        assert_eq!(code(&explained), 9);
        explained.held = Some(Held::Lock { lock: "00c0ffee".into() });
        assert!(verdict(&explained, clock).ends_with("Fix: ask the relay's operator about lock 00c0ffee"));
        assert_eq!(code(&explained), 8);
        explained.allowed = false;
        explained.detail = Some("no rule lets role clerk DELETE /v1/invoices/7".into());
        explained.closest = Some(
            serde_json::from_str(r#"{"rule":"admins change invoices","missing":["role billing-admin"]}"#)
                .unwrap(),
        );
        assert_eq!(
            verdict(&explained, clock),
            "✗ Denied: no rule lets role clerk DELETE /v1/invoices/7\n  \
             Closest: \"admins change invoices\" needs role billing-admin\n  Fix: ask for that role"
        );
    }
}
