use super::*;
use postern_base::config::Source;

const MINIMAL: &str = "name = \"corp\"\nissuer = \"https://id.example.com/realms/corp\"\naudience = [\"https://relay.example.com\"]\n";

fn parse(more: &str) -> Result<IssuerSettings, String> {
    let source = Source::from_text("relay.toml", format!("{MINIMAL}{more}"));
    let file: IssuerFile = source.parse().map_err(|e| e.message)?;
    file.settings(Path::new("/nowhere")).map_err(|problem| format!("{}: {problem}", problem.at.join(".")))
}

#[test]
fn three_lines_are_enough() {
    let settings = parse("").unwrap();
    assert_eq!(settings.algorithms, DEFAULT_ALGORITHMS);
    assert_eq!((settings.leeway, settings.max_lifetime), (DEFAULT_LEEWAY, DEFAULT_LIFETIME));
    assert_eq!(settings.token_types, ["at+jwt"]);
    assert_eq!(format!("{:?}", settings.client_from), "[client_id, azp]");
    assert_eq!(
        format!("{:?}", (settings.scope_from, settings.roles_from, settings.groups_from)),
        "([scope], [roles], [groups])"
    );
    assert_eq!(settings.user_from, None);
    assert_eq!(settings.keys.stale, DEFAULT_STALE);
    assert_eq!(settings.login, None);
}

#[test]
fn every_key_says_what_it_says() {
    let settings = parse(
        r#"
        algorithms = ["ES256", "EdDSA"]
        leeway = "60s"
        max_lifetime = "1h"
        token_type = ["application/AT+JWT", "JWT", ""]
        scope_from = ["scope", "scp"]
        roles_from = "realm_access.roles"
        groups_from = "https://example.com/groups"
        client_from = "cid"
        user_from = "email"
        private = true
        login = { client_id = "postern-cli", flows = "device", scopes = ["openid"] }
        jwks = { uri = "https://keys.example.com/k", stale = "1h" }
        "#,
    )
    .unwrap();
    assert_eq!(settings.algorithms, [Algorithm::Es256, Algorithm::EdDsa]);
    assert_eq!(settings.leeway, Duration::from_mins(1));
    assert_eq!(settings.token_types, ["at+jwt", "jwt", ""]);
    assert_eq!(format!("{:?}", settings.roles_from), "[realm_access.roles]");
    let login = settings.login.unwrap();
    assert_eq!(
        (login.client_id.as_str(), login.flows, login.scopes),
        ("postern-cli", vec![LoginFlow::Device], Some(vec!["openid".to_owned()]))
    );
    assert_eq!(settings.keys.uri.unwrap().to_string(), "https://keys.example.com/k");
    assert!(settings.keys.private);
}

#[test]
fn what_cannot_work_is_refused_where_it_stands() {
    for (more, at) in [
        ("algorithms = []", "algorithms: "),
        ("leeway = \"61s\"", "leeway: "),
        ("max_lifetime = \"0s\"", "max_lifetime: "),
        ("token_type = []", "token_type: "),
        ("jwks = { uri = \"http://keys.example.com\" }", "jwks.uri: "),
        ("jwks = { uri = \"https://u:p@keys.example.com\" }", "jwks.uri: "),
        ("ca = \"missing.pem\"", "ca: /nowhere/missing.pem cannot be read"),
        ("login = { client_id = \"\" }", "login.client_id: "),
        ("login = { client_id = \"x\", flows = [] }", "login.flows: "),
        ("algorithms = [\"HS256\"]", "unknown variant `HS256`"),
        ("algorithms = [\"none\"]", "unknown variant `none`"),
        ("leeway = 30", "invalid type"),
        ("roles_from = \"a..b\"", "\"a..b\" is not the name of a claim"),
        // Later issues deliver these.
        ("check = \"jwt\"", "unknown key"),
        ("provider = \"keycloak\"", "unknown key"),
        ("introspect = { client_id = \"relay\" }", "unknown key"),
        ("sender_constrained = \"optional\"", "unknown key"),
        ("jwks = { file = \"keys.json\" }", "unknown key"),
    ] {
        let refusal = parse(more).unwrap_err();
        assert!(refusal.starts_with(at), "{more}: {refusal}");
    }
}

#[test]
fn an_issuer_is_an_exact_https_url() {
    let parse = |issuer: &str| {
        let text = MINIMAL.replace("https://id.example.com/realms/corp", issuer);
        let file: IssuerFile = Source::from_text("relay.toml", text).parse().unwrap();
        file.settings(Path::new(""))
    };
    for good in [
        "https://id.example.com",
        "https://id.example.com/",
        "http://127.0.0.1:4011",
        "http://localhost:1/x",
        "http://[::1]:1",
    ] {
        assert_eq!(parse(good).unwrap().issuer, good);
    }
    for bad in [
        "",
        "id.example.com",
        "http://id.example.com",
        "ftp://id.example.com",
        "https://",
        "https://id.example.com?x=1",
        "https://id.example.com#x",
        "https://ada@id.example.com",
        " https://id.example.com",
        "https://id.example.com/ä",
        "http://127.0.0.1.example.com",
        "file:///etc/passwd",
    ] {
        assert_eq!(parse(bad).unwrap_err().at, ["issuer"], "{bad}");
    }
}

#[test]
fn a_certificate_file_is_read_and_must_hold_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), "nothing").unwrap();
    let file: IssuerFile =
        Source::from_text("relay.toml", format!("{MINIMAL}ca = \"ca.pem\"")).parse().unwrap();
    let problem = file.settings(dir.path()).unwrap_err();
    assert!(problem.message.contains("holds no certificate"), "{problem}");
}

#[test]
fn the_schema_names_every_key() {
    let schema = schemars::schema_for!(IssuerFile).to_value();
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 16, "{keys:?}");
    assert_eq!(schema["additionalProperties"], false);
}
