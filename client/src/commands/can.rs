//! `can`: what policy would say to a call, without making it. Exit 0 allowed, 5 denied, 6 no such service.
//! JSON: what `/.postern/explain` gives.

use super::Context;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::relay_api::address::Target;
use crate::relay_api::problem::deny_fix;
use crate::relay_api::{Allowance, Explained};

pub(super) async fn run(
    context: &Context,
    method: &str,
    target: &Target,
    out: &Output,
) -> Result<u8, Failure> {
    let relay = &context.relay;
    let method = method.to_ascii_uppercase();
    let asked = &method;
    let mut target = target.clone();
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
    let code = if explained.allowed { 0 } else { Exit::Denied.code() };
    if out.json {
        out.json(&explained);
    } else {
        out.data(&verdict(&explained));
    }
    Ok(code)
}

fn verdict(explained: &Explained) -> String {
    let id = format!("   [decision {}]", explained.decision_id);
    if explained.allowed {
        let by = explained.rule.as_ref().map(|rule| format!(": \"{rule}\"")).unwrap_or_default();
        let limits = explained.limits.iter().map(|Allowance { limit, left }| {
            let left = left.map_or_else(String::new, |left| format!(", {left} left"));
            format!("\n  At most {limit}{left}")
        });
        return format!("✓ Allowed{by}{id}{}", limits.collect::<String>());
    }
    let said = explained.verdict();
    let closest =
        explained.closest.as_ref().map(|closest| format!("\n  {}", closest.line())).unwrap_or_default();
    format!("✗ Denied: {said}{id}{closest}\n  Fix: {}", deny_fix(explained.closest.as_ref(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let mut explained: Explained = serde_json::from_value(serde_json::json!({
            "decision_id": "01JC8", "allowed": true, "service": "billing", "method": "GET", "path": "/v1/invoices/7",
            "rule": "clerks read invoices", "detail": "", "closest": null,
        }))
        .unwrap();
        assert_eq!(verdict(&explained), "✓ Allowed: \"clerks read invoices\"   [decision 01JC8]");
        explained.limits = vec![Allowance { limit: "20/s per user".into(), left: Some(17) }];
        assert!(verdict(&explained).ends_with("[decision 01JC8]\n  At most 20/s per user, 17 left"));
        explained.allowed = false;
        explained.detail = Some("no rule lets role clerk DELETE /v1/invoices/7".into());
        explained.closest = Some(
            serde_json::from_str(r#"{"rule":"admins change invoices","missing":["role billing-admin"]}"#)
                .unwrap(),
        );
        assert_eq!(
            verdict(&explained),
            "✗ Denied: no rule lets role clerk DELETE /v1/invoices/7   [decision 01JC8]\n  \
             Closest: \"admins change invoices\" needs role billing-admin\n  Fix: ask for that role"
        );
    }
}
