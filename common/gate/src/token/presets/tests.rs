use std::path::Path;

use postern_base::config::Source;
use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Document {
    issuers: Vec<IssuerFile>,
}

fn entry(more: &str) -> IssuerFile {
    let text =
        format!("name = \"corp\"\nissuer = \"https://id.example.com\"\naudience = \"postern\"\n{more}");
    Source::from_text("relay.toml", text).parse().unwrap()
}

/// What `config check --expand` prints, read again.
fn written_and_read(file: &IssuerFile) -> IssuerFile {
    let text = toml::to_string(&Document { issuers: vec![file.clone()] }).unwrap();
    let mut read: Document =
        Source::from_text("expanded", text.as_str()).parse().unwrap_or_else(|e| panic!("{text}\n{e}"));
    read.issuers.remove(0)
}

const PROVIDERS: [&str; 8] = ["keycloak", "okta", "auth0", "entra", "cognito", "dex", "google", "generic"];

/// What some keys may say, besides what they say by themselves.
const TYPED: [&str; 14] = [
    "also = \"https://id.example.net\"",
    "audience_claim = \"azp\"",
    "clients = [\"cli\"]",
    "discovery = \"oidc\"",
    "leeway = \"1s\"",
    "max_lifetime = \"90m\"",
    "require = { ver = [1, 2], \"a.b\" = true, token_use = \"x\" }",
    "forbid = \"act\"",
    "roles_from = [\"a.b\", \"https://example.com/roles\"]",
    "subject_from = \"oid\"",
    "user_from = \"email\"",
    "sender_constrained = \"required\"",
    "private = true",
    "login = { client_id = \"cli\", flows = \"pkce\" }",
];

#[test]
fn what_is_filled_in_means_the_same_when_it_is_typed() {
    proptest!(|(provider in prop::sample::select(&PROVIDERS[..]),
                check in prop::sample::select(vec!["jwt", "introspect", "auto"]),
                typed in prop::sample::subsequence(TYPED.to_vec(), 0..TYPED.len()),
                quick in any::<bool>())| {
        let mut more = format!("provider = \"{provider}\"\ncheck = \"{check}\"\n{}\n", typed.join("\n"));
        if check != "jwt" {
            more += "introspect = { client_id = \"relay\", client_secret = { credential = \"corp\" } }\n";
        }
        if quick && check != "introspect" {
            more += "jwks = { max_ttl = \"30s\" }\nkid_missing = \"refuse\"\n";
        }
        let typed = entry(&more);
        let filled = typed.clone().filled();
        prop_assert_eq!(filled.clone().filled(), filled.clone(), "nothing is left to fill in");
        let read = written_and_read(&filled);
        prop_assert_eq!(&read, &filled);
        let (one, other) = (typed.settings(Path::new("/x")), read.settings(Path::new("/x")));
        prop_assert!(one.is_ok(), "{:?}", one);
        prop_assert_eq!(one, other);
    });
}

#[test]
fn what_is_typed_comes_first() {
    let filled =
        entry("provider = \"keycloak\"\ntoken_type = \"at+jwt\"\nrequire = {}\nuser_from = \"email\"")
            .filled();
    assert_eq!(filled.token_type, Some(OneOrMany(vec!["at+jwt".to_owned()])));
    assert_eq!(filled.require, Some(std::collections::BTreeMap::new()));
    assert_eq!(filled.user_from, Some(paths(&["email"])));
    assert_eq!(filled.roles_from, Some(paths(&["realm_access.roles"])), "the rest is Keycloak's");
}

#[test]
fn logins_follow_the_provider() {
    let login = |provider: &str, more: &str| {
        let login = entry(&format!("provider = \"{provider}\"\nlogin = {{ client_id = \"cli\" {more} }}"))
            .filled()
            .login;
        let login = login.unwrap();
        (login.resource.unwrap(), login.audience)
    };
    assert_eq!(login("keycloak", ""), (true, None));
    assert_eq!(login("entra", ""), (false, None), "it refuses resource");
    assert_eq!(login("auth0", ""), (true, Some("postern".to_owned())), "it wants audience");
    assert_eq!(login("auth0", ", audience = \"other\", resource = false"), (false, Some("other".to_owned())));
}

#[test]
fn secrets_stay_references() {
    let more = "check = \"introspect\"\nintrospect = { client_id = \"relay\", client_secret = { env = \"CORP_SECRET\" } }";
    let text = toml::to_string(&Document { issuers: vec![entry(more).filled()] }).unwrap();
    assert!(text.contains("[issuers.introspect.client_secret]\nenv = \"CORP_SECRET\""), "{text}");
    assert!(!text.contains("algorithms") && !text.contains("jwks"), "these would mean nothing: {text}");
}

#[test]
fn a_browser_is_offered_where_it_may_come_back() {
    for (provider, browser) in
        PROVIDERS.map(|name| (name, !["okta", "auth0", "entra", "cognito"].contains(&name)))
    {
        let flows = |more: &str| {
            let login = format!("provider = \"{provider}\"\nlogin = {{ client_id = \"cli\"{more} }}");
            entry(&login).filled().login.unwrap().flows.unwrap().0
        };
        assert_eq!(flows("").contains(&LoginFlow::Pkce), browser, "{provider}");
        assert!(flows("").contains(&LoginFlow::Device), "{provider}");
        assert_eq!(flows(", flows = \"pkce\""), [LoginFlow::Pkce], "{provider}: what is typed comes first");
    }
}
