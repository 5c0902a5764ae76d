//! Policies that are refused: where and in which words.

use postern_base::config::Source;

use super::*;

/// The problems of a policy with one or two issuers and this text, as `path: message`.
fn problems(issuers: &str, text: &str) -> Vec<String> {
    let refused = Policy::compile(source(&format!("issuers = [{issuers}]\n{text}")));
    refused
        .unwrap_err()
        .into_iter()
        .map(|problem| format!("{}: {}", problem.at.join("."), problem.message))
        .collect()
}

#[test]
fn problems_of_meaning_have_a_place_and_a_remedy() {
    let service = |rule: &str| format!("[services.billing]\nrules = [{rule}]");
    let (one, two) = ("'corp'", "'corp', 'partners'");
    for (issuers, text, expected) in [
        (
            one,
            "[roles]\nclerk = { any = ['group:a', 'role:clark'] }".to_owned(),
            "roles.clerk.any.1: there is no role \"clark\": did you mean \"clerk\"?",
        ),
        (
            one,
            "[roles]\nclerk = { any = 'gruop:a' }".to_owned(),
            "roles.clerk.any.0: there is no kind of selector \"gruop\": did you mean \"group\"?",
        ),
        (
            two,
            "[roles]\nclerk = { any = 'group:a' }".to_owned(),
            "roles.clerk.any.0: \"group:a\" could mean issuer corp or partners: write \"corp/group:a\" or the like",
        ),
        (
            two,
            "[roles]\nclerk = { any = 'partner/group:a' }".to_owned(),
            "roles.clerk.any.0: there is no issuer \"partner\": did you mean \"partners\"?",
        ),
        (
            one,
            "[roles]\na = { any = ['group:x', 'role:b'] }\nb = { any = 'role:c' }\nc = { any = 'role:a' }".to_owned(),
            "roles.a.any.1: roles in a circle: a -> b -> c -> a",
        ),
        (one, "[roles]\nz = { any = 'role:z' }".to_owned(), "roles.z.any.0: roles in a circle: z -> z"),
        (
            one,
            "[roles]\na = { any = 'role:b' }\nb = { any = 'role:c' }\nc = { any = 'role:b' }".to_owned(),
            "roles.b.any.0: roles in a circle: b -> c -> b",
        ),
        (
            one,
            service("{ allow = 'finance', to = 'GET /**' }"),
            "services.billing.rules.0.allow: \"finance\" names nobody: write \"role:NAME\", \"KIND:VALUE\" or \
             \"ISSUER/KIND:VALUE\"; kinds are group, user, client, scope, token-role",
        ),
        (
            one,
            service("{ allow = ['*', 'corp/role:clerk'], to = 'GET /**' }"),
            "services.billing.rules.0.allow.1: \"corp/role:clerk\": roles are this file's own and have no issuer: write \"role:clerk\"",
        ),
        (
            one,
            service("{ allow = 'role:clerk', to = 'GET /**' }"),
            "services.billing.rules.0.allow: there is no role \"clerk\", nor any other",
        ),
        (
            one,
            service("{ allow = 'scope:a b', to = 'GET /**' }"),
            "services.billing.rules.0.allow: \"scope:a b\" must have one value behind its colon",
        ),
        (
            two,
            "[services.billing]\nissuers = ['corp']\nrules = [{ allow = 'partners/group:a', to = 'GET /**' }]".to_owned(),
            "services.billing.rules.0.allow: service billing takes no tokens of issuer \"partners\": add it to its issuers",
        ),
        (
            one,
            "[services.billing]\nissuers = ['copr']".to_owned(),
            "services.billing.issuers.0: there is no issuer \"copr\": did you mean \"corp\"?",
        ),
        (
            one,
            service("{ allow = '*', to = ['GET /**', 'GET /**/x'] }"),
            "services.billing.rules.0.to.1: \"/**/x\" has ** before its end: it may only be the last segment",
        ),
        (
            one,
            service("{ allow = '*', to = 'CONNECT' }"),
            "services.billing.rules.0.to: CONNECT is for services of kind tcp: write \"GET /v1/**\" or the like, or give service billing \
             kind = \"tcp\"",
        ),
        (
            one,
            "[services.db]\nkind = 'tcp'\nrules = [{ deny = '*', to = ['CONNECT', '* /**'] }]".to_owned(),
            "services.db.rules.0.to.1: service db is of kind tcp, which has no methods and paths: write \"CONNECT\"",
        ),
        (
            one,
            "[services.db]\nkind = 'tcp'\nrules = [{ allow = '*', to = 'CONNECT /db' }]".to_owned(),
            "services.db.rules.0.to: CONNECT stands alone, without a path or other methods: it is for services of kind tcp",
        ),
        (
            one,
            service("{ allow = '*' }"),
            "services.billing.rules.0: says not to what: write to = \"GET /**\" or the like",
        ),
        (
            one,
            service("{ to = 'GET /**' }"),
            "services.billing.rules.0: says not whom it allows: write allow = \"role:NAME\", or deny = \"*\"",
        ),
        (
            one,
            service("{ allow = '*', deny = '*', to = 'GET /**' }"),
            "services.billing.rules.0.allow: allows and denies at once: make two rules of it",
        ),
        (
            one,
            service("{ name = 'a', allow = '*', to = 'GET /**' }, { name = 'a', deny = '*', to = 'GET /**' }"),
            "services.billing.rules.1.name: another rule is called \"a\" too: give it a name of its own",
        ),
        (
            one,
            service("{ allow = '*', to = 'GET /**', with = { scope = ['a', ' '] } }"),
            "services.billing.rules.0.with.scope: an empty scope is in every token: leave the key out",
        ),
        (
            one,
            "[[rules]]\nallow = '*'\nto = 'GET /**'".to_owned(),
            "rules.0.allow: rules for all services can only deny: write allow under [services.X]",
        ),
        (
            one,
            service("{ deny = '*', to = 'GET /**', quota = '5/h per ip' }"),
            "services.billing.rules.0.quota: a rule that denies has nothing to count: leave it out",
        ),
        (
            one,
            "[[rules]]\nto = 'GET /**'".to_owned(),
            "rules.0: says not whom it denies: write deny = \"*\" or the like",
        ),
        (
            two,
            "[[rules]]\ndeny = 'group:a'\nto = 'GET /**'".to_owned(),
            "rules.0.deny: \"group:a\" could mean issuer corp or partners: write \"corp/group:a\" or the like",
        ),
        (
            "",
            service("{ allow = 'group:a', to = 'GET /**' }"),
            "services.billing.rules.0.allow: \"group:a\" needs an issuer: add one under [[issuers]]",
        ),
    ] {
        assert_eq!(problems(issuers, &text), [expected], "{text}");
    }
}

#[test]
fn problems_of_tests_have_a_place_too() {
    let test = |as_: &str, call: &str, expect: &str| {
        format!(
            "[services.db]\nkind = 'tcp'\n[services.billing]\nrules = [{{ name = 'yes', allow = '*', to = 'GET /**' }}, {{ name = 'no', deny = '*', to = 'GET /x' }}]\n\
             [[tests]]\nname = 't'\nas = {{ {as_} }}\ncall = '{call}'\nexpect = '{expect}'"
        )
    };
    for (as_, call, expect, expected) in [
        (
            "",
            "GET biling/x",
            "deny",
            "tests.0.call: there is no service \"biling\": did you mean \"billing\"?",
        ),
        (
            "",
            "billing/x",
            "deny",
            "tests.0.call: \"billing/x\" is not METHOD SERVICE/PATH: write \"GET billing/v1/invoices\" or the like",
        ),
        (
            "",
            "get billing/x",
            "deny",
            "tests.0.call: \"get\" is not a method: write them in capitals, such as \"GET\" or \"PUT,DELETE\"",
        ),
        (
            "",
            "GET billing//x",
            "deny",
            "tests.0.call: there is an empty segment (\"//\") at byte 1 of the path: write one \"/\"",
        ),
        (
            "",
            "CONNECT billing",
            "deny",
            "tests.0.call: CONNECT is for services of kind tcp: write \"GET billing/v1/invoices\" or the like",
        ),
        ("", "CONNECT db/x", "deny", "tests.0.call: service db is of kind tcp: write \"CONNECT db\""),
        ("", "GET db", "deny", "tests.0.call: service db is of kind tcp: write \"CONNECT db\""),
        (
            "",
            "GET billing/x",
            "denied",
            "tests.0.expect: write \"allow\", \"deny\", \"allow: RULE\" or \"deny: RULE\"",
        ),
        (
            "",
            "GET billing/x",
            "deny: noo",
            "tests.0.expect: there is no denying rule \"noo\": did you mean \"no\"?",
        ),
        (
            "",
            "GET billing/x",
            "allow: no",
            "tests.0.expect: there is no allowing rule \"no\": write one that there is, such as \"yes\"",
        ),
        (
            "issuer = 'crop'",
            "GET billing/x",
            "deny",
            "tests.0.as.issuer: there is no issuer \"crop\": did you mean \"corp\"?",
        ),
    ] {
        assert_eq!(problems("'corp'", &test(as_, call, expect)), [expected]);
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let text = "[roles]\na = { any = ['x', 'role:b'] }\n[services.s]\nrules = [{ allow = 'role:c', to = 'GET x', with = { acr = 'a b' } }]\n\
                [[rules]]\ndeny = 'y'\nto = 'get /'";
    let told = problems("'corp'", text);
    let places: Vec<_> = told.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    let expected = [
        "roles.a.any.0",
        "roles.a.any.1",
        "rules.0.deny",
        "rules.0.to",
        "services.s.rules.0.allow",
        "services.s.rules.0.to",
        "services.s.rules.0.with.acr",
    ];
    assert_eq!(places, expected);
}

#[test]
fn keys_and_values_are_refused_where_they_stand() {
    let rule = |text: &str| {
        let line = format!("rules = [{{ {text} }}]");
        let source = Source::from_text("r.toml", format!("issuers = ['corp']\n[services.s]\n{line}\n"));
        let error = source.parse::<File>().map(|_| ()).unwrap_err();
        let place = error.place.unwrap();
        let marked: String = line.chars().skip(place.column - 1).take(place.width).collect();
        format!("{marked} | {}", error.message)
    };
    for (text, expected) in [
        ("with = { scop = 'a' }", "scop | unknown key \"scop\": did you mean \"scope\"?"),
        ("with = { bounds = true }", "bounds | unknown key \"bounds\": did you mean \"bound\"?"),
        (
            "with = { bound = false }",
            "false | write bound = true, or leave it out: every token is good enough then",
        ),
        ("with = { 'claim.a' = 'x' }", "'claim.a' | unknown key \"claim.a\": did you mean \"claims.NAME\"?"),
        ("with = { 'claims.a..b' = 'x' }", "'claims.a..b' | \"claims.a..b\" has an empty part"),
        (
            "with = { claims.a = 'x' }",
            "claims | a claim's path is one key in quotes, as in \"claims.department\" = \"finance\"",
        ),
        (
            "with = { 'claims.a' = [] }",
            "[] | a claim is compared with a string, number or boolean, or a list of them",
        ),
        (
            "with = { 'claims.a' = 2020-01-01 }",
            "2020-01-01 | a claim is compared with a string, number or boolean, or a list of them",
        ),
        ("with = { scope = [] }", "[] | the list is empty: name at least one, or leave the key out"),
        ("from = []", "[] | the list is empty: name at least one, or leave the key out"),
        ("allow = []", "[] | the list is empty: name at least one, or leave the key out"),
        (
            "from = ['10.0.0.0/8', '10.1.2.3']",
            "['10.0.0.0/8', '10.1.2.3'] | \"10.1.2.3\" is not a network: write \"10.0.0.0/8\", \"2001:db8::/32\" or, for one address, \"10.1.2.3/32\"",
        ),
        ("with = { max_age = 60 }", "60 | invalid type: integer `60`, expected a string"),
    ] {
        assert_eq!(rule(text), expected, "{text}");
    }
    for (text, key, said) in [
        ("rate = '20 per user'", "'20 per user'", "is no limit"),
        ("quota = '0/day per ip'", "'0/day per ip'", "refuses everybody: write 1 or more"),
    ] {
        assert!(rule(text).starts_with(key) && rule(text).contains(said), "{}", rule(text));
    }
}

#[test]
fn the_schema_knows_conditions_and_networks() {
    let schema = serde_json::to_value(schemars::schema_for!(RuleFile)).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["from"]["$ref"], schema["properties"]["to"]["$ref"]);
    let with = &schema["$defs"]["WithFile"];
    assert_eq!(with["additionalProperties"], false);
    assert_eq!(
        with["properties"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["scope", "acr", "max_age", "bound"]
    );
    assert_eq!(with["patternProperties"].as_object().unwrap().keys().collect::<Vec<_>>(), ["^claims\\.."]);
}
