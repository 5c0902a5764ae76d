use std::path::Path;

use super::*;
use crate::config::file::RelayFile;
use crate::settings::Settings;

const TOP: &str = r#"
version = 1
url = "https://relay.example.com"
listen = { https = "127.0.0.1:443", quic = "127.0.0.1:443" }
tls = { mode = "self-signed" }
state = { dir = "state" }
agents = { trust_domain = "example.com" }
"#;

const CORP: &str = r#"
[[issuers]]
name = "corp"
issuer = "https://id.example.com"
audience = ["https://relay.example.com"]
"#;

fn settings(text: &str) -> Result<Settings, Vec<String>> {
    let file: RelayFile = toml::from_str(&format!("{TOP}{text}")).unwrap();
    let services = file.services.iter().map(|(name, service)| (name, service, "relay.toml"));
    Settings::new(&file, services, Path::new("/")).map_err(|problems| {
        problems.into_iter().map(|p| format!("{}: {}", p.at.join("."), p.message)).collect()
    })
}

/// The one problem with a service that has these keys.
fn problem(keys: &str) -> String {
    let mut found = settings(&format!("{CORP}[services.a]\nagent = \"dc1\"\n{keys}")).unwrap_err();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn service(keys: &str) -> Arc<Service> {
    let settings = settings(&format!("{CORP}[services.a]\nagent = \"dc1\"\n{keys}")).unwrap();
    settings.services.values().next().unwrap().clone()
}

#[test]
fn a_token_is_handed_on_only_where_it_is_worth_nothing_elsewhere() {
    for way in ["agent", "upstream"] {
        let none = problem(&format!("caller_token = \"{way}\""));
        assert!(none.starts_with("services.a.caller_token: ") && none.contains("bound = true"), "{none}");
        let issuers = format!("caller_token = \"{way}\"\naudience = [\"https://relay.example.com\"]");
        assert!(problem(&issuers).contains("issuer corp"), "{}", problem(&issuers));
        let own = format!("caller_token = \"{way}\"\naudience = [\"https://a.example.com\"]");
        assert_ne!(service(&own).caller_token, TokenUse::None);
        let shared = format!("{own}\n[services.b]\nagent = \"dc1\"\naudience = [\"https://a.example.com\"]");
        assert!(problem(&shared).contains("service b"), "{}", problem(&shared));
        let rule = |with: &str| format!("{{ allow = \"*\", to = \"GET /**\"{with} }}");
        let (bound, not) = (rule(", with = { bound = true }"), rule(""));
        let bound_alone = format!("caller_token = \"{way}\"\nrules = [{bound}]");
        assert!(service(&bound_alone).is_bound);
        assert!(
            problem(&format!("caller_token = \"{way}\"\nrules = [{bound}, {not}]")).contains("of its own")
        );
    }
    assert_eq!(service("").caller_token, TokenUse::None);
}

#[test]
fn an_exchange_says_what_for() {
    assert!(problem("caller_token = \"exchange\"").contains("exchange = { audience"));
    assert!(problem("exchange = { audience = \"x\" }").contains("caller_token"));
    assert!(
        problem("caller_token = \"exchange\"\nexchange = { scope = \"x\" }").contains("audience or resource")
    );
    assert!(problem("caller_token = \"exchange\"\nexchange = { resource = \"x\" }").contains("URI"));
    assert!(problem("caller_token = \"exchange\"\nexchange = { audience = \"\" }").contains("empty"));
    let lacks = problem("caller_token = \"exchange\"\nexchange = { audience = \"x\" }");
    assert!(lacks.contains("issuer corp") && lacks.contains("exchange = { client_id"), "{lacks}");
}

#[test]
fn origins_are_written_as_browsers_do() {
    for bad in
        ["*", "null", "https://app.example.com/", "HTTPS://app.example.com", "app.example.com", "file:///x"]
    {
        let why = problem(&format!("cors = {{ origins = [\"{bad}\"] }}"));
        assert!(why.starts_with("services.a.cors.origins.0: "), "{bad}: {why}");
    }
    assert!(problem("cors = { origins = [] }").contains("at least one"));
    let rules = "rules = [{ allow = \"*\", to = [\"GET /**\", \"PUT,PATCH /x\"] }, { deny = \"*\", to = \"DELETE /**\" }]";
    let cors = service(&format!("cors = {{ origins = [\"https://app.example.com:8443\"] }}\n{rules}"));
    let cors = cors.cors.as_ref().unwrap();
    assert_eq!(cors.methods.as_ref().unwrap(), "GET, HEAD, PATCH, PUT");
    assert!(cors.lists(&HeaderValue::from_static("https://app.example.com:8443")));
    assert!(!cors.lists(&HeaderValue::from_static("https://app.example.com")));
    let any = service(
        "cors = { origins = [\"http://localhost:5173\"] }\nrules = [{ allow = \"*\", to = \"* /**\" }]",
    );
    assert_eq!(any.cors.as_ref().unwrap().methods, None);
}

#[test]
fn what_send_says_no_caller_says() {
    let sent = "send = { user = \"X-Remote-User\", claims = { \"X_Department\" = \"org.department\" } }\n";
    let kept = service(&format!("{sent}strip_request = [\"X-Debug\"]"));
    assert_eq!(kept.removed, ["x-debug", "x-remote-user", "x-department"]);
    assert!(
        problem("send = { claims = { \"X-Forwarded-User\" = \"sub\" } }")
            .starts_with("services.a.send.claims.")
    );
    assert!(problem("send = { user = \"X-A\", claims = { \"x_a\" = \"sub\" } }").contains("twice"));
    assert!(problem("send = { claims = { \"a b\" = \"sub\" } }").contains("not a header name"));
    assert!(problem("strip_request = [\"a b\"]").starts_with("services.a.strip_request.0: "));
}

#[test]
fn a_tcp_service_takes_a_token_to_its_agent_alone() {
    let tcp = |keys: &str| format!("kind = \"tcp\"\naudience = [\"https://a.example.com\"]\n{keys}");
    assert_eq!(service(&tcp("caller_token = \"agent\"")).caller_token, TokenUse::Agent);
    assert!(problem(&tcp("caller_token = \"upstream\"")).contains("no field"));
    assert!(problem(&tcp("cors = { origins = [\"https://app.example.com\"] }")).contains("carry bytes"));
    assert!(problem(&tcp("send = { claims = { X-A = \"sub\" } }")).contains("carry bytes"));
}

#[test]
fn the_relay_is_no_issuer() {
    for url in ["https://relay.example.com", "https://relay.example.com/", "https://relay.example.com:443"] {
        let issuer = format!("[[issuers]]\nname = \"self\"\nissuer = \"{url}\"\naudience = [\"x\"]");
        let found = settings(&issuer).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with("issuers.0.issuer: "), "{found:?}");
    }
    let also = "[[issuers]]\nname = \"corp\"\nissuer = \"https://id.example.com\"\nalso = \"https://relay.example.com\"\naudience = [\"x\"]";
    assert!(settings(also).unwrap_err()[0].starts_with("issuers.0.also"));
}
