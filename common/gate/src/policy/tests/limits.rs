//! Limits of rules: which of them a permit asks for, whose they are, and what tells a rule from another.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::*;

fn whose(policy: &Policy, who: &str, call: &str) -> Vec<u64> {
    let permit = decide(policy, who, call).unwrap();
    let (principal, address) = (principal(policy, who), address(&caller(who)));
    let hashing = BuildHasherDefault::<DefaultHasher>::new();
    let limits = permit.rates().iter().flat_map(|rated| rated.limits.iter());
    limits.map(|limit| hashing.hash_one(limit.whose(&principal, address))).collect()
}

#[test]
fn only_where_every_rule_that_allows_has_limits_do_they_count() {
    let policy = one(
        "{ name = 'fast', allow = '*', to = 'GET /**', rate = '20/s per user', quota = '5/day per client' }, \
         { name = 'slow', allow = '*', to = '* /v1/**', rate = '1/m per ip' }, \
         { name = 'free', allow = 'group:vip', to = 'GET /**' }",
    );
    let rates = |who: &str, call: &str| {
        let permit = decide(&policy, who, call).unwrap();
        let rates = permit.rates().iter().map(|rated| {
            let limits: Vec<_> = rated.limits.iter().map(|l| format!("{} {l}", l.kind.name())).collect();
            format!("{}: {}", rated.rule, limits.join(", "))
        });
        (permit.rule().to_owned(), rates.collect::<Vec<_>>())
    };
    let fast = "fast: rate 20/s per user, quota 5/day per client".to_owned();
    let slow = "slow: rate 1/m per ip".to_owned();
    assert_eq!(rates("", "GET s/x"), ("fast".to_owned(), vec![fast.clone()]));
    assert_eq!(rates("", "GET s/v1/x"), ("fast".to_owned(), vec![fast, slow.clone()]));
    assert_eq!(rates("", "PUT s/v1/x"), ("slow".to_owned(), vec![slow]));
    assert_eq!(rates("groups = 'vip'", "GET s/v1/x"), ("free".to_owned(), vec![]));
    let mut permit = decide(&policy, "", "GET s/v1/x").unwrap();
    permit.settle(1);
    assert_eq!(permit.rule(), "slow");
    let told = policy.why(&caller(""), "GET s/x", now(), &uncounted).unwrap();
    let limits: Vec<_> = told.limits.iter().map(|told| (&*told.limit, told.left)).collect();
    assert_eq!(limits, [("20/s per user", None), ("5/day per client", None)]);
}

#[test]
fn everyone_has_a_count_of_their_own_and_an_issuer_one_of_its_own() {
    let of = |per: &str| {
        policy(&format!(
            "issuers = ['corp', 'partners']\n[services.s]\nrules = [{{ allow = '*', to = 'GET /**', rate = '1/s per {per}' }}]"
        ))
    };
    let same = |per: &str, a: &str, b: &str| {
        let policy = of(per);
        whose(&policy, a, "GET s/") == whose(&policy, b, "GET s/")
    };
    let ada = "issuer = 'corp', subject = 'ada', client = 'cli', ip = '10.0.0.1'";
    for per in ["user", "client", "ip", "service"] {
        assert!(same(per, ada, ada), "{per}");
        assert!(!same(per, ada, &ada.replace("corp", "partners")), "{per}");
    }
    // A name that somebody else may have as well is not an identity.
    assert!(!same("user", ada, &format!("{}, user = 'ada'", ada.replace("'ada'", "'bob'"))));
    assert!(same("user", ada, &ada.replace("'cli'", "'web'").replace("10.0.0.1", "10.0.0.2")));
    assert!(
        !same("client", ada, &ada.replace("'cli'", "'web'"))
            && same("client", ada, &ada.replace("'ada'", "'bob'"))
    );
    assert!(same("ip", ada, &ada.replace("'ada'", "'bob'").replace("10.0", "::ffff:10.0")));
    let v6 = |last: &str| format!("issuer = 'corp', ip = '2001:db8:0:{last}'");
    assert!(same("ip", &v6("1::1"), &v6("1::2")) && !same("ip", &v6("1::1"), &v6("2::1")));
    assert!(same("service", ada, "issuer = 'corp'"));
}

#[test]
fn a_rule_is_the_same_as_long_as_it_says_the_same() {
    let rule = "{ allow = '*', to = 'GET /**', rate = '1/s per user' }";
    let before = whose(&one(rule), "", "GET s/");
    assert_eq!(
        whose(&one(&format!("{{ allow = 'group:x', to = 'PUT /**' }}, {rule}")), "", "GET s/"),
        before
    );
    assert_ne!(whose(&one(&rule.replace("1/s", "2/s")), "", "GET s/"), before);
    assert_ne!(whose(&one(&rule.replace("'*'", "['*', 'group:x']")), "", "GET s/"), before);
    let other = policy(&format!("issuers = ['corp']\n[services.t]\nrules = [{rule}]"));
    assert_ne!(whose(&other, "", "GET t/"), before);
    let both = one("{ allow = '*', to = 'GET /**', rate = '1/s per user', quota = '1/s per user' }");
    let both = whose(&both, "", "GET s/");
    assert_ne!(both[0], both[1]);
}

#[test]
fn a_bound_token_may_be_demanded() {
    let policy = policy(
        "issuers = ['corp']\n[roles]\nsafe = { any = '*', with = { bound = true } }\n\
         [services.s]\nrules = [{ name = 'r', allow = '*', to = 'GET /r', with = { bound = true } }, \
         { name = 'role', allow = 'role:safe', to = 'GET /role' }]",
    );
    let refused = |path: &str, rule: &str| {
        format!(
            "403: no rule lets you GET {path}; closest: {rule:?} needs a token bound to a key (DPoP or mutual TLS)"
        )
    };
    check(
        &policy,
        &[
            ("", "GET s/r", &refused("/r", "r")),
            ("bound = true", "GET s/r", "allow: r"),
            ("", "GET s/role", &refused("/role", "role")),
            ("bound = true", "GET s/role", "allow: role"),
        ],
    );
}
