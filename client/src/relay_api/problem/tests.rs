use super::*;

const DENIED: &str = r#"{"type":"urn:postern:denied","title":"Forbidden","status":403,
    "detail":"no rule lets role clerk DELETE /v1/invoices/7; closest: \"admins change invoices\" needs role billing-admin","request_id":"01JC7","decision_id":"01JC8",
    "closest":{"rule":"admins change invoices","missing":["role billing-admin"]},"more":1}"#;

#[test]
fn a_denial_reads_as_documented() {
    let failure =
        Problem::ours(DENIED.as_bytes()).unwrap().explain(Some("DELETE billing/v1/invoices/7"), "r");
    assert_eq!(failure.exit, Exit::Denied);
    assert_eq!(
        failure.message,
        "Denied (403): no rule lets role clerk DELETE /v1/invoices/7   [decision 01JC8]"
    );
    assert_eq!(failure.details, ["Closest: \"admins change invoices\" needs role billing-admin"]);
    assert_eq!(
        failure.fix.unwrap(),
        "ask for that role; try it with: postern can DELETE billing/v1/invoices/7"
    );
}

#[test]
fn others_problems_are_not_ours_and_controls_are_escaped() {
    assert!(Problem::ours(DENIED.replace("urn:postern:denied", "about:blank").as_bytes()).is_none());
    assert!(Problem::ours(b"<html>").is_none());
    let evil = DENIED.replace("no rule", "\\u001b[2Jno rule\\n");
    let failure = Problem::ours(evil.as_bytes()).unwrap().explain(None, "r");
    assert!(!failure.message.contains(['\u{1b}', '\n']), "{:?}", failure.message);
}

#[test]
fn a_missing_group_or_method_and_no_rule_at_all_have_fixes_of_their_own() {
    let fix = |missing: &str| {
        let closest = Closest { rule: "r".into(), missing: vec![missing.into()] };
        deny_fix(Some(&closest), Some("PUT billing/v1"))
    };
    assert_eq!(
        fix("group finance"),
        "ask to be put in group finance; try it with: postern can PUT billing/v1"
    );
    assert_eq!(fix("method GET or HEAD"), "you may: GET or HEAD (see: postern ls)");
    assert_eq!(deny_fix(None, Some("PUT billing/v1")), "see what you may do: postern ls");
}

#[test]
fn a_message_stands_alone_and_blames_who_is_at_fault() {
    let explain = |kind: &str, status: u16, title: &str, detail: &str| {
        let problem = serde_json::json!({ "type": format!("urn:postern:{kind}"), "title": title, "status": status, "detail": detail });
        Problem::ours(problem.to_string().as_bytes())
            .unwrap()
            .about(&"nope".parse().unwrap())
            .explain(None, "r")
    };
    let gone = explain("no-such-service", 404, "No such service", "see what you may reach");
    assert_eq!(gone.message, "Refused (404): No such service: nope");
    assert_eq!(gone.fix.unwrap(), "see what there is: postern ls");
    let audit = explain("audit-unavailable", 503, "The audit log cannot be written", "wait");
    assert_eq!(audit.message, "Refused (503): The audit log cannot be written: wait");
    assert!(audit.fix.unwrap().contains("whoever runs the relay"));
    let clock = explain("invalid-dpop-proof", 401, "The token's proof is not accepted", "older");
    assert!(clock.exit == Exit::LoginNeeded && clock.fix.unwrap().contains("clock"));
    for (kind, status) in [("upstream-unreachable", 502), ("upstream-timeout", 504), ("agent-refused", 502)] {
        let fix = explain(kind, status, "It is down", "refused").fix.unwrap();
        assert!(fix.starts_with("the service behind the agent is at fault"), "{kind}: {fix}");
    }
}

#[test]
fn a_lock_sends_nobody_to_log_in() {
    let locked = |kind: &str, status: u16, detail: &str| {
        let problem = serde_json::json!({ "type": format!("urn:postern:{kind}"), "title": "Locked", "status": status, "detail": detail });
        let failure = Problem::ours(problem.to_string().as_bytes()).unwrap().explain(None, "r");
        (failure.exit.code(), failure.fix.unwrap())
    };
    let ask = "ask the relay's operator about lock 0225753d".to_owned();
    assert_eq!(locked("locked", 401, "refused; ask about lock 0225753d"), (5, ask.clone()));
    assert_eq!(locked("service-locked", 503, "ask about lock 0225753d"), (8, ask));
    assert!(locked("locked", 401, "ask about lock x; run: rm").1.ends_with("about that lock"));
}

#[test]
fn a_limit_says_how_long_to_wait() {
    let problem = br#"{"type":"urn:postern:rate-limited","title":"Too many","status":429}"#;
    let fix = |seconds: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.extend(seconds.map(|s| (RETRY_AFTER, http::HeaderValue::from_static(s))));
        Problem::ours(problem).unwrap().challenged(&headers).explain(None, "r").fix.unwrap()
    };
    assert_eq!(fix(None), "wait a moment, then try again");
    for (seconds, said) in [("1", "1 s"), ("119", "119 s"), ("150", "3 min"), ("86400", "24 h")] {
        assert_eq!(fix(Some(seconds)), format!("wait {said}, then try again"));
    }
}

#[test]
fn a_step_up_wants_a_new_login() {
    let problem = r#"{"type":"urn:postern:step-up","title":"A stronger login is needed","status":401,"detail":"needs mfa"}"#;
    let failure = Problem::ours(problem.as_bytes()).unwrap().explain(None, "r");
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::LoginNeeded, "Refused (401): needs mfa"));
    assert_eq!(failure.fix.unwrap(), "log in anew, and more strongly if asked: postern login r --force");
    let fix = |challenge: &str| {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, http::HeaderValue::from_static("DPoP acr_values=\"no\""));
        headers.append(WWW_AUTHENTICATE, challenge.parse().unwrap());
        Problem::ours(problem.as_bytes()).unwrap().challenged(&headers).explain(None, "r").fix.unwrap()
    };
    let error = format!("Bearer error=\"{STEP_UP}\"");
    assert_eq!(
        fix(&format!("{error}, acr_values=\"mfa hw\", max_age=\"900\"")),
        "log in anew, by mfa hw, not longer ago than 900 s: postern login r --force"
    );
    assert_eq!(
        fix(&format!("{error}, max_age=60, resource_metadata=\"x\"")),
        "log in anew, not longer ago than 60 s: postern login r --force"
    );
}

#[test]
fn a_missing_scope_is_asked_for_at_login() {
    let closest =
        Closest { rule: "r".into(), missing: vec!["scope a b".into(), "scope c or scope d".into()] };
    let fix = deny_fix(Some(&closest), None);
    assert_eq!(fix, "log in with it: postern login --scope a --scope b --scope c");
    let closest = Closest { rule: "r".into(), missing: vec!["scope a;reboot".into()] };
    assert_eq!(deny_fix(Some(&closest), None), "ask whoever runs the relay for access");
}
