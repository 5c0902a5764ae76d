//! What callers and operators are told: reach, scopes to log in with, explanations, outcomes of `[[tests]]`.

use super::*;

#[test]
fn reach_lists_rules_as_written_and_what_they_still_ask() {
    let policy = policy(EXAMPLE);
    let caller = principal(
        &policy,
        "issuer = 'corp', groups = ['finance', 'finance-leads'], acr = 'mfa', scope = 'invoices:write'",
    );
    let reach = serde_json::to_value(policy.reach_at(&caller, now())).unwrap();
    let expected = serde_json::json!([
        { "service": "billing", "rules": [
            { "rule": "clerks read invoices", "to": ["GET /v1/invoices/**"],
              "needs": ["scope invoices:read", "an address in 10.0.0.0/8 or 2001:db8::/32"] },
            { "rule": "admins change invoices", "to": ["POST,PUT,DELETE /v1/invoices/*"],
              "needs": ["a login within the last 1h", "claims.department = finance or audit"] },
        ] },
        { "service": "wiki", "rules": [{ "rule": "wiki#1", "to": ["GET /**"], "needs": [] }] },
    ]);
    assert_eq!(reach, expected);
}

#[test]
fn logins_ask_for_the_scopes_that_rules_could_want() {
    let policy = policy(
        "issuers = ['corp', 'partners']\n[roles]\nreader = { any = 'corp/scope:r1', with = { scope = ['r2', 'r3 r4'] } }\n\
         outer = { any = ['role:reader', 'partners/scope:p1'] }\nunused = { any = 'corp/scope:unused' }\n\
         [services.a]\nissuers = ['corp']\nrules = [{ allow = 'role:outer', to = '* /**', with = { scope = 'w1 w2' } },\n\
         { deny = 'corp/scope:never', to = '* /**', with = { scope = 'never' } }]\n\
         [services.b]\nrules = [{ allow = '*', to = '* /**', with = { scope = 'all' } },\n\
         { allow = 'partners/client:x', to = '* /**', with = { scope = 'p2' } }]",
    );
    assert_eq!(
        policy.scopes_named_for(&"corp".parse().unwrap()),
        ["all", "r1", "r2", "r3", "r4", "w1", "w2"]
    );
    assert_eq!(policy.scopes_named_for(&"partners".parse().unwrap()), ["all", "p2"]);
}

#[test]
fn explanations_are_the_decision() {
    let policy = policy(EXAMPLE);
    let why = |who: &str, call: &str| policy.why(&caller(who), call, now(), &uncounted).unwrap();
    let told = serde_json::to_value(why("issuer = 'corp', groups = 'finance'", "GET wiki/x")).unwrap();
    assert!(told.get("decision_id").is_none(), "no log has it: {told}");
    assert_eq!(told["allowed"], true);
    assert_eq!(told["rule"], "wiki#1");
    assert_eq!(told["detail"], "rule \"wiki#1\" lets role clerk GET /x");
    let told = serde_json::to_value(why("issuer = 'corp'", "GET wiki")).unwrap();
    assert_eq!(told["path"], "/");
    assert_eq!(told["detail"], "no rule lets you GET /");
    assert_eq!(told["closest"], serde_json::json!({ "rule": "wiki#1", "missing": ["role clerk"] }));
    assert_eq!(why("issuer = 'partners'", "GET wiki/x").detail, "service wiki takes only tokens of corp");
    assert_eq!(why("issuer = 'corp'", "GET wiki/debug").rule.as_deref(), Some("nobody reaches debug pages"));
    let refused = |who, call| policy.why(&caller(who), call, now(), &uncounted).unwrap_err();
    assert_eq!(
        refused("issuer = 'corp'", "GET wikki/x").message,
        "there is no service \"wikki\": did you mean \"wiki\"?"
    );
    assert_eq!(refused("issuer = 'cropp'", "GET wiki/x").at, ["issuer"]);
    assert_eq!(
        refused("", "GET wiki/x").message,
        "says not whose token it has: write issuer = \"corp\" or \"partners\""
    );
}

#[test]
fn tests_say_what_they_got() {
    let tests = "
        [[tests]]\nname = 'a'\nas = { groups = 'a' }\ncall = 'GET s/x'\nexpect = 'deny'
        [[tests]]\nname = 'b'\nas = { groups = 'a' }\ncall = 'GET s/x'\nexpect = 'allow: r2'
        [[tests]]\nname = 'c'\nas = {}\ncall = 'GET s/x'\nexpect = 'allow'
        [[tests]]\nname = 'd'\nas = { groups = 'a' }\ncall = 'GET s/no'\nexpect = 'deny: d1'
        [[tests]]\nname = 'e'\nas = { groups = 'a', auth_age = '2h' }\ncall = 'GET s/x'\nexpect = 'allow: r1'
        [[tests]]\nname = 'f'\nas = {}\ncall = 'GET s/x'\nexpect = 'deny: d1'";
    let policy = policy(&format!(
        "issuers = ['corp']\n[services.s]\nrules = [{{ name = 'r1', allow = 'group:a', to = 'GET /**' }}, \
         {{ name = 'r2', allow = 'group:b', to = 'GET /**' }}, {{ name = 'd1', deny = '*', to = '* /no' }}]\n{tests}"
    ));
    let outcomes: Vec<_> =
        policy.run_tests().into_iter().map(|t| (t.index, t.name, t.passed, t.detail)).collect();
    let closest = "deny: no rule lets you GET /x; closest: \"r1\" needs group a";
    let expected = [
        ("a", false, "expected deny, got allow by rule \"r1\"".to_owned()),
        ("b", false, "expected allow by rule \"r2\", got allow by rule \"r1\"".to_owned()),
        ("c", false, format!("expected allow, got {closest}")),
        ("d", true, "deny: rule \"d1\" denies GET /no".to_owned()),
        ("e", true, "allow by rule \"r1\"".to_owned()),
        ("f", false, format!("expected deny by rule \"d1\", got {closest}")),
    ];
    for ((index, (name, passed, detail)), got) in expected.into_iter().enumerate().zip(outcomes) {
        assert_eq!(got, (index, name.to_owned(), passed, detail));
    }
}
