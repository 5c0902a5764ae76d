//! What is allowed and what is not, and what refusals say.

use super::*;

#[test]
fn the_example_decides_as_the_contract_says() {
    let policy = policy(EXAMPLE);
    check(
        &policy,
        &[
            (
                "issuer = 'corp', groups = 'finance', scope = 'invoices:read', ip = '10.1.2.3'",
                "GET billing/v1/invoices/7",
                "allow: clerks read invoices",
            ),
            (
                "issuer = 'partners', client = 'nightly-batch', scope = 'invoices:read', ip = '2001:db8::1'",
                "HEAD billing/v1/invoices",
                "allow: clerks read invoices",
            ),
            (
                "issuer = 'corp', groups = 'finance', scope = 'invoices:read', ip = '10.1.2.3'",
                "DELETE billing/v1/invoices/7",
                "403: no rule lets role clerk DELETE /v1/invoices/7; closest: \"admins change invoices\" needs role billing-admin, \
                 scope invoices:write, a login within the last 1h and claims.department = finance or audit",
            ),
            (
                "issuer = 'corp', groups = ['finance'], scope = 'invoices:write', auth_age = '5m', claims = { department = 'audit' }",
                "DELETE billing/v1/invoices/7",
                "403: no rule lets role clerk DELETE /v1/invoices/7; closest: \"admins change invoices\" needs role billing-admin",
            ),
            (
                "issuer = 'corp', groups = 'finance-leads', acr = 'mfa', scope = 'invoices:write invoices:read', auth_age = '1h', \
                 claims = { department = 'finance' }",
                "DELETE billing/v1/invoices/7",
                "allow: admins change invoices",
            ),
            ("issuer = 'corp', groups = 'finance'", "GET wiki/", "allow: wiki#1"),
            ("issuer = 'corp', groups = 'finance'", "GET wiki/debug/x", "deny: nobody reaches debug pages"),
            ("issuer = 'corp', groups = 'finance'", "GET wiki/DeBuG", "deny: nobody reaches debug pages"),
            ("issuer = 'corp', groups = 'finance'", "GET wiki/Debugger", "allow: wiki#1"),
            ("issuer = 'partners', groups = 'finance'", "GET wiki/", "404"),
            ("issuer = 'corp', groups = 'finance'", "GET nowhere/", "404"),
            (
                "issuer = 'corp'",
                "GET wiki/",
                "403: no rule lets you GET /; closest: \"wiki#1\" needs role clerk",
            ),
            (
                "issuer = 'corp', groups = 'finance'",
                "PATCH wiki/x",
                "405 GET,HEAD: no rule for role clerk knows PATCH: use GET or HEAD; \
             closest: \"wiki#1\" needs method GET or HEAD",
            ),
        ],
    );
    assert!(policy.run_tests().iter().all(|test| test.passed));
}

#[test]
fn tcp_services_are_asked_to_connect() {
    let policy = policy(
        "issuers = ['corp']\n[services.db]\nkind = 'tcp'\nrules = [{ allow = 'group:dba', to = 'CONNECT', with = { max_age = '15m' } }]\n\
         [services.web]\nrules = [{ name = 'all', allow = '*', to = '* /**' }]\n\
         [[rules]]\nname = 'no guests'\ndeny = 'group:guest'\nto = '* /**'\n\
         [[rules]]\nname = 'no debug'\ndeny = '*'\nto = '* /debug/**'\n\
         [[rules]]\nname = 'no night shift'\ndeny = 'group:night'\nto = 'CONNECT'",
    );
    let closest = "closest: \"db#1\" needs";
    check(
        &policy,
        &[
            ("groups = 'dba', auth_age = '1m'", "CONNECT db", "allow: db#1"),
            (
                "groups = 'dba', auth_age = '1h'",
                "CONNECT db",
                &format!(
                    "401 acr=None max_age=Some(900): no rule lets you CONNECT; {closest} a login within the last 15m"
                ),
            ),
            ("auth_age = '1m'", "CONNECT db", &format!("403: no rule lets you CONNECT; {closest} group dba")),
            ("groups = ['dba', 'guest'], auth_age = '1m'", "CONNECT db", "deny: no guests"),
            ("groups = ['dba', 'night'], auth_age = '1m'", "CONNECT db", "deny: no night shift"),
            ("groups = ['dba', 'night']", "GET web/", "allow: all"),
            ("groups = 'dba'", "GET db/", "403: service db is of kind tcp: its method is CONNECT"),
            ("", "CONNECT web", "403: service web is of kind http: CONNECT is for kind tcp"),
        ],
    );
    let told =
        policy.why(&caller("groups = 'dba', auth_age = '1m'"), "CONNECT db", now(), &uncounted).unwrap();
    assert_eq!((told.allowed, &*told.path, &*told.detail), (true, "", "rule \"db#1\" lets you CONNECT"));
}

#[test]
fn step_up_and_scope_are_asked_for_only_when_they_would_help() {
    let lead = "issuer = 'corp', groups = 'finance-leads'";
    let call = "PUT billing/v1/invoices/7";
    let policy = policy(EXAMPLE);
    let needs = |missing: &str| {
        format!("no rule lets you PUT /v1/invoices/7; closest: \"admins change invoices\" needs {missing}")
    };
    let as_admin = |missing: &str| needs(missing).replace("lets you", "lets role billing-admin");
    let audit = "claims = { department = 'audit' }";
    check(
        &policy,
        &[
            (
                &format!("{lead}, {audit}, scope = 'invoices:write', auth_age = '1m'"),
                call,
                &format!("401 acr=Some(\"mfa\") max_age=None: {}", needs("a login with acr mfa")),
            ),
            (
                &format!("{lead}, {audit}, scope = 'invoices:write', auth_age = '61m'"),
                call,
                &format!(
                    "401 acr=Some(\"mfa\") max_age=Some(3600): {}",
                    needs("a login with acr mfa and a login within the last 1h")
                ),
            ),
            (
                &format!("{lead}, {audit}, scope = 'invoices:write', acr = 'mfa'"),
                call,
                &format!("401 acr=None max_age=Some(3600): {}", as_admin("a login within the last 1h")),
            ),
            (
                &format!("{lead}, {audit}, acr = 'mfa'"),
                call,
                &format!(
                    "403 scope=invoices:write: {}",
                    as_admin("scope invoices:write and a login within the last 1h")
                ),
            ),
            (
                &format!("{lead}, acr = 'mfa', scope = 'invoices:write', auth_age = '1m'"),
                call,
                &format!("403: {}", as_admin("claims.department = finance or audit")),
            ),
        ],
    );
    // Roles build on roles, but what the outer one asks for is still asked.
    let root = "issuer = 'corp', user = 'root@example.com'";
    assert!(verdict(&policy, root, call).contains(
        "role superuser PUT /v1/invoices/7; closest: \"admins change invoices\" needs a login with acr mfa, "
    ));
    assert!(
        verdict(&policy, &format!("{root}, acr = 'mfa'"), call).contains("roles billing-admin and superuser")
    );
    let foreign = "issuer = 'partners', user = 'root@example.com', acr = 'mfa'";
    assert!(verdict(&policy, foreign, call).contains("no rule lets you PUT"));
}

#[test]
fn selectors_read_their_own_part_of_the_token() {
    let policy = one(
        "{ name = 'g', allow = 'group:/a/b', to = '* /g' }, { name = 'u', allow = 'user:ada', to = '* /u' }, \
         { name = 'c', allow = 'client:cli:1', to = '* /c' }, { name = 's', allow = 'corp/scope:a:b', to = '* /s' }, \
         { name = 't', allow = 'token-role:ada', to = '* /t' }, { name = 'any', allow = '*', to = '* /any' }",
    );
    check(
        &policy,
        &[
            ("groups = ['x', '/a/b']", "GET s/g", "allow: g"),
            ("user = 'ada'", "GET s/u", "allow: u"),
            ("subject = 'ada'", "GET s/u", "allow: u"),
            ("client = 'cli:1'", "GET s/c", "allow: c"),
            ("scope = 'x a:b'", "GET s/s", "allow: s"),
            ("roles = ['ada']", "GET s/t", "allow: t"),
            ("", "BREW s/any", "allow: any"),
            (
                "groups = ['ada'], client = 'ada', scope = 'ada', roles = 'ada', subject = 'ada', user = 'bob'",
                "GET s/u",
                "403: no rule lets you GET /u; closest: \"u\" needs to be one of its users",
            ),
            ("groups = '/A/B'", "GET s/g", "403: no rule lets you GET /g; closest: \"g\" needs group /a/b"),
            ("", "GET s/s", "403 scope=a:b: no rule lets you GET /s; closest: \"s\" needs scope a:b"),
            ("", "GET s/c", "403: no rule lets you GET /c; closest: \"c\" needs client cli:1"),
            ("", "GET s/other", "403: no rule lets you GET /other"),
        ],
    );
}

#[test]
fn conditions_are_anded_and_their_lists_ored() {
    let policy = one("{ name = 'both', allow = '*', to = 'GET /both', with = { scope = 'a b' } }, \
         { name = 'either', allow = '*', to = 'GET /either', with = { scope = ['a b', 'c'] } }, \
         { name = 'acr', allow = '*', to = 'GET /acr', with = { acr = ['mfa', 'phr'] } }, \
         { name = 'claims', allow = '*', to = 'GET /claims', with = { 'claims.a.b' = ['x', 3, true, 1.5] } }, \
         { name = 'url', allow = '*', to = 'GET /url', with = { 'claims.https://a.example/b.c' = 'x' } }, \
         { name = 'from', allow = '*', to = 'GET /from', from = ['10.0.0.0/8', '::ffff:192.0.2.0/120', '2001:db8::/32'] }");
    let refused =
        |path: &str, rest: &str| format!("no rule lets you GET /{path}; closest: \"{path}\" needs {rest}");
    let claims = format!("403: {}", refused("claims", "claims.a.b = x, 3, true or 1.5"));
    let from = format!("403: {}", refused("from", "an address in 10.0.0.0/8, 192.0.2.0/24 or 2001:db8::/32"));
    let login =
        format!("401 acr=Some(\"mfa phr\") max_age=None: {}", refused("acr", "a login with acr mfa or phr"));
    check(
        &policy,
        &[
            ("scope = 'b a'", "GET s/both", "allow: both"),
            ("scope = 'b'", "GET s/both", &format!("403 scope=a: {}", refused("both", "scope a"))),
            ("scope = 'ab'", "GET s/both", &format!("403 scope=a b: {}", refused("both", "scope a b"))),
            ("scope = 'c'", "GET s/either", "allow: either"),
            ("scope = 'a b'", "GET s/either", "allow: either"),
            ("", "GET s/either", &format!("403 scope=c: {}", refused("either", "scope a b or scope c"))),
            ("acr = 'phr'", "GET s/acr", "allow: acr"),
            ("acr = 'MFA'", "GET s/acr", &login),
            ("", "GET s/acr", &login),
            ("claims = { a = { b = 'x' } }", "GET s/claims", "allow: claims"),
            ("claims = { a = { b = ['y', 'x'] } }", "GET s/claims", "allow: claims"),
            ("claims = { a = { b = 3 } }", "GET s/claims", "allow: claims"),
            ("claims = { a = { b = [false, true] } }", "GET s/claims", "allow: claims"),
            ("claims = { a = { b = 1.5 } }", "GET s/claims", "allow: claims"),
            ("claims = { a = { b = '3' } }", "GET s/claims", &claims),
            ("claims = { a = { b = 'true' } }", "GET s/claims", &claims),
            ("claims = { a = { b = { x = 'x' } } }", "GET s/claims", &claims),
            ("claims = { a = { b = [['x']] } }", "GET s/claims", &claims),
            ("claims = { a = ['b', 'x'] }", "GET s/claims", &claims),
            ("claims = { 'a.b' = 'x' }", "GET s/claims", &claims),
            ("claims = { 'https://a.example/b.c' = 'x' }", "GET s/url", "allow: url"),
            ("ip = '10.255.0.1'", "GET s/from", "allow: from"),
            ("ip = '::ffff:10.255.0.1'", "GET s/from", "allow: from"),
            ("ip = '192.0.2.9'", "GET s/from", "allow: from"),
            ("ip = '2001:db8:1::1'", "GET s/from", "allow: from"),
            ("ip = '11.0.0.1'", "GET s/from", &from),
            ("ip = '::10.0.0.1'", "GET s/from", &from),
            ("", "GET s/from", &from),
        ],
    );
}

#[test]
fn a_deny_wins_wherever_it_stands() {
    let deny = "{ name = 'no', deny = 'group:contractors', to = 'DELETE,GET /x/**', with = { scope = 'a' }, from = '10.0.0.0/8' }";
    let allow = "{ name = 'yes', allow = '*', to = '* /**' }";
    for rules in [format!("{deny}, {allow}"), format!("{allow}, {deny}")] {
        check(
            &one(&rules),
            &[
                ("groups = 'contractors', scope = 'a', ip = '10.0.0.1'", "DELETE s/x/1", "deny: no"),
                ("groups = 'contractors', scope = 'a', ip = '10.0.0.1'", "delete s/X", "deny: no"),
                ("groups = 'contractors', scope = 'a', ip = '10.0.0.1'", "HEAD s//x%2f1", "deny: no"),
                ("groups = 'contractors', scope = 'a', ip = '10.0.0.1'", "POST s/x/1", "allow: yes"),
                ("groups = 'contractors', scope = 'a'", "DELETE s/x/1", "allow: yes"),
                ("groups = 'contractors', ip = '10.0.0.1'", "DELETE s/x/1", "allow: yes"),
                ("scope = 'a', ip = '10.0.0.1'", "DELETE s/x/1", "allow: yes"),
            ],
        );
    }
}

#[test]
fn the_closest_rule_misses_least_and_order_does_not_matter() {
    let far = "{ name = 'far', allow = 'group:a', to = 'GET /x', with = { scope = 'a' } }";
    let near = "{ name = 'near', allow = 'group:b', to = 'GET /x' }";
    let curable = "{ name = 'curable', allow = '*', to = 'GET /x', with = { scope = 's' } }";
    let other = "{ name = 'other method', allow = '*', to = 'PUT /x' }";
    let said = |rules: &[&str], expected: &str| {
        let reversed: Vec<&str> = rules.iter().rev().copied().collect();
        for rules in [rules.join(", "), reversed.join(", ")] {
            let told = verdict(&one(&rules), "", "GET s/x");
            assert!(told.ends_with(expected), "{rules}: {told}");
        }
    };
    said(&[far, near, other], "closest: \"near\" needs group b");
    said(&[far, near, curable], "closest: \"curable\" needs scope s");
    said(&[far, other], "closest: \"far\" needs group a and scope a");
    said(&[other], "405 PUT: no rule for you knows GET: use PUT; closest: \"other method\" needs method PUT");
    let denial = decide(&one(&[far, near].join(",")), "", "GET s/x").unwrap_err();
    assert_eq!(denial.missing(), ["group b"]);
    assert_eq!(denial.summary(), "no rule lets you GET /x");
}

#[test]
fn hidden_services_are_seen_by_those_whom_a_rule_names() {
    let policy = policy(
        "issuers = ['corp', 'partners']\n[services.s]\nhidden = true\n\
         rules = [{ allow = 'corp/group:a', to = 'GET /x', with = { scope = 'b' } }, { deny = 'corp/group:b', to = '* /**' }]",
    );
    for (who, visible) in
        [("'corp', groups = 'a'", true), ("'corp', groups = 'b'", false), ("'partners', groups = 'a'", false)]
    {
        let who = format!("issuer = {who}");
        for call in ["GET s/x", "GET s/y", "PUT s/x"] {
            assert_eq!(verdict(&policy, &who, call) != "404", visible, "{who} {call}");
        }
        assert_eq!(policy.reach_at(&principal(&policy, &who), now()).len(), usize::from(visible));
    }
}

#[test]
fn roles_are_kept_with_the_principal_but_not_beyond_their_time_or_policy() {
    let text = "issuers = ['corp']\n[roles]\nfresh = { any = 'group:a', with = { max_age = '15m' } }\nold = { any = 'role:fresh' }\n\
                [services.s]\nrules = [{ allow = 'role:old', to = 'GET /**' }]";
    let (policy, path) = (policy(text), CanonicalPath::parse("/", PathMode::Strict).unwrap());
    let caller = principal(&policy, "groups = 'a', auth_age = '5m'");
    let service = "s".parse().unwrap();
    let target = Target { service: &service, method: "GET", path: &path };
    let at =
        |minutes: u64| Context { address: [127, 0, 0, 1].into(), now: now() + Duration::from_mins(minutes) };
    let permit = policy.decide(&caller, &target, &at(0)).unwrap();
    assert_eq!(permit.roles().iter().collect::<Vec<_>>(), ["fresh", "old"]);
    let first = caller.held.load_full().unwrap();
    assert!(policy.decide(&caller, &target, &at(10)).is_ok());
    assert!(std::sync::Arc::ptr_eq(&first, &caller.held.load_full().unwrap()), "resolved once");
    let late = policy.decide(&caller, &target, &at(11)).unwrap_err();
    assert_eq!(late.closest().unwrap().to_string(), "\"s#1\" needs role old");
    let stricter = Policy::compile(source(&text.replace("group:a", "group:b"))).unwrap();
    assert!(stricter.decide(&caller, &target, &at(0)).is_err(), "another policy, resolved anew");
    assert!(policy.decide(&caller, &target, &at(0)).is_ok());
    assert_eq!(policy.roles_of(&caller).iter().count(), 0, "that login is years behind today's clock");
}
