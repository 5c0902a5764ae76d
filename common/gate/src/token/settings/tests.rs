use super::*;
use postern_base::config::Source;
use postern_base::secret::SecretRef;

const MINIMAL: &str = "name = \"corp\"\nissuer = \"https://id.example.com/realms/corp\"\naudience = [\"https://relay.example.com\"]\n";

fn parse(more: &str) -> Result<IssuerSettings, String> {
    let source = Source::from_text("relay.toml", format!("{MINIMAL}{more}"));
    let file: IssuerFile = source.parse().map_err(|e| e.message)?;
    file.settings(Path::new("/nowhere")).map_err(|problem| format!("{}: {problem}", problem.at.join(".")))
}

#[test]
fn three_lines_are_enough() {
    let settings = parse("").unwrap();
    assert_eq!(settings.algorithms, [Algorithm::Rs256, Algorithm::Ps256, Algorithm::Es256, Algorithm::EdDsa]);
    assert_eq!((settings.leeway.as_secs(), settings.max_lifetime.as_secs()), (30, 86_400));
    assert_eq!(settings.token_types, ["at+jwt"]);
    assert_eq!(
        format!(
            "{:?}",
            (&settings.scope_from, &settings.roles_from, &settings.groups_from, &settings.client_from)
        ),
        "([scope], [roles], [groups], [client_id, azp])"
    );
    assert_eq!(
        format!("{:?}", (&settings.subject_from, &settings.user_from, &settings.audience_claim)),
        "([sub], [sub], [aud])"
    );
    assert_eq!((settings.check, settings.introspect.clone()), (Check::Jwt, None));
    assert!(settings.has_keys() && !settings.takes_opaque());
    assert_eq!(settings.sender_constrained, SenderConstrained::Optional);
    assert_eq!((settings.kid_missing, settings.clients.clone()), (KidMissing::Try, None));
    assert!(settings.require.is_empty() && settings.forbid.is_empty());
    let keys = &settings.keys;
    assert_eq!((keys.min_ttl.as_secs(), keys.max_ttl.as_secs(), keys.stale.as_secs()), (5, 600, 86_400));
    assert_eq!((&keys.place, keys.reach.discovery), (&KeyPlace::Discovered, Discovery::Auto));
    assert_eq!(settings.login, None);
}

#[test]
fn every_key_says_what_it_says() {
    let settings = parse(
        r#"
        also = "https://id.example.com/auth/realms/corp"
        audience_claim = ["aud", "client_id"]
        clients = ["cli", "web"]
        discovery = "oauth"
        kid_missing = "refuse"
        algorithms = ["ES256", "EdDSA"]
        leeway = "60s"
        max_lifetime = "1h"
        token_type = ["application/AT+JWT", "JWT", ""]
        require = { token_use = "access", ver = [1, 2], "https://example.com/ok" = true }
        forbid = ["nonce", "act.sub"]
        scope_from = ["scope", "scp"]
        roles_from = "realm_access.roles"
        groups_from = "https://example.com/groups"
        client_from = "cid"
        subject_from = ["oid", "sub"]
        user_from = "email"
        sender_constrained = "required"
        private = true
        login = { client_id = "postern-cli", device_client_id = "tv", flows = "device", scopes = ["openid"], resource = false, audience = "api" }
        jwks = { uri = "https://keys.example.com//k", min_ttl = "10s", max_ttl = "1h", stale = "2h" }
        "#,
    )
    .unwrap();
    assert!(settings.is_meant_by("https://id.example.com/auth/realms/corp"));
    assert!(settings.is_meant_by(&settings.issuer) && !settings.is_meant_by("https://id.example.com/"));
    assert_eq!(settings.clients, Some(vec!["cli".to_owned(), "web".to_owned()]));
    assert_eq!(settings.algorithms, [Algorithm::Es256, Algorithm::EdDsa]);
    assert_eq!((settings.leeway.as_secs(), settings.max_lifetime.as_secs()), (60, 3600));
    assert_eq!(settings.token_types, ["at+jwt", "jwt", ""]);
    assert_eq!(
        format!("{:?}", settings.require.keys().collect::<Vec<_>>()),
        "[https://example.com/ok, token_use, ver]"
    );
    assert_eq!(
        format!("{:?}", (&settings.forbid, &settings.roles_from, &settings.groups_from)),
        "([nonce, act.sub], [realm_access.roles], [https://example.com/groups])"
    );
    assert_eq!(
        format!("{:?}", (&settings.subject_from, &settings.user_from, &settings.audience_claim)),
        "([oid, sub], [email], [aud, client_id])"
    );
    assert_eq!(settings.sender_constrained, SenderConstrained::Required);
    assert_eq!(settings.kid_missing, KidMissing::Refuse);
    let login = settings.login.unwrap();
    assert_eq!((login.client_id(LoginFlow::Pkce), login.client_id(LoginFlow::Device)), ("postern-cli", "tv"));
    assert_eq!((login.resource, login.audience.as_deref()), (false, Some("api")));
    let keys = settings.keys;
    assert_eq!((keys.min_ttl.as_secs(), keys.max_ttl.as_secs(), keys.stale.as_secs()), (10, 3600, 7200));
    assert_eq!(keys.place, KeyPlace::At("https://keys.example.com//k".parse().unwrap()));
    assert!(keys.reach.private && keys.reach.discovery == Discovery::Oauth);
}

#[test]
fn issuers_are_asked_in_every_way_that_there_is() {
    let auth = |pieces: &str| {
        let more = format!("check = \"auto\"\nintrospect = {{ {pieces} }}");
        parse(&more).map(|settings| settings.introspect.unwrap().auth)
    };
    let secret = SecretRef::Env("S".to_owned());
    let id = || "relay".to_owned();
    let given = "client_id = \"relay\", client_secret = { env = \"S\" }";
    assert_eq!(auth(given).unwrap(), Authentication::Basic { client_id: id(), secret: secret.clone() });
    let post = format!("{given}, auth = \"post\"");
    assert_eq!(auth(&post).unwrap(), Authentication::Post { client_id: id(), secret: secret.clone() });
    assert_eq!(
        auth("client_id = \"relay\", auth = \"private_key_jwt\", key = \"k.pem\", kid = \"k1\"").unwrap(),
        Authentication::PrivateKeyJwt {
            client_id: id(),
            key: "/nowhere/k.pem".into(),
            kid: Some("k1".to_owned())
        }
    );
    assert_eq!(
        auth("client_id = \"relay\", auth = \"mtls\", key = \"k.pem\", cert = \"/c.pem\"").unwrap(),
        Authentication::Mtls { client_id: id(), cert: "/c.pem".into(), key: "/nowhere/k.pem".into() }
    );
    assert_eq!(
        auth("auth = \"bearer\", token = { env = \"S\" }").unwrap(),
        Authentication::Bearer { token: secret }
    );
    let whole = parse(&format!(
        "check = \"introspect\"\nintrospect = {{ {given}, endpoint = \"https://id.example.com//i\", cache = \"5m\", negative = \"0s\" }}"
    ))
    .unwrap();
    let introspect = whole.introspect.clone().unwrap();
    assert_eq!(introspect.endpoint.unwrap().to_string(), "https://id.example.com//i");
    assert_eq!((introspect.cache.as_secs(), introspect.negative.as_secs()), (300, 0));
    assert!(!whole.has_keys() && whole.takes_opaque());
    for (pieces, at) in [
        ("", "introspect: auth = \"basic\" needs client_id, client_secret"),
        ("client_id = \"relay\"", "introspect: auth = \"basic\" needs"),
        ("client_id = \"\", client_secret = { env = \"S\" }", "introspect.client_id: "),
        ("client_id = \"relay\", client_secret = { env = \"S\" }, key = \"k\"", "introspect.key: "),
        ("client_id = \"relay\", auth = \"mtls\", key = \"k\"", "introspect: auth = \"mtls\" needs"),
        ("client_id = \"relay\", auth = \"bearer\", token = { env = \"S\" }", "introspect.client_id: "),
        ("client_id = \"relay\", client_secret = \"hunter2\"", "unknown variant"),
        ("client_id = \"relay\", client_secret = { env = \"S\" }, cache = \"6m\"", "introspect.cache: "),
        (
            "client_id = \"relay\", client_secret = { env = \"S\" }, negative = \"6m\"",
            "introspect.negative: ",
        ),
        (
            "client_id = \"relay\", client_secret = { env = \"S\" }, endpoint = \"http://id.example.com\"",
            "introspect.endpoint: ",
        ),
        ("client_id = \"relay\", auth = \"none\"", "unknown variant `none`"),
    ] {
        let refusal = auth(pieces).unwrap_err();
        assert!(refusal.starts_with(at), "{pieces}: {refusal}");
    }
}

#[test]
fn what_cannot_work_is_refused_where_it_stands() {
    let asked = "introspect = { client_id = \"relay\", client_secret = { env = \"S\" } }";
    for (more, at) in [
        ("algorithms = []", "algorithms: "),
        ("leeway = \"61s\"", "leeway: "),
        ("max_lifetime = \"0s\"", "max_lifetime: "),
        ("token_type = []", "token_type: "),
        ("audience_claim = []", "audience_claim: "),
        ("subject_from = []", "subject_from: "),
        ("clients = []", "clients: "),
        ("require = { token_use = [] }", "require.token_use: "),
        ("require = { token_use = 1.5 }", "invalid type"),
        ("require = { a = { b = \"c\" } }", "invalid type"),
        ("also = [\"https://a.example.com\", \"http://b.example.com\"]", "also.1: "),
        ("jwks = { uri = \"http://keys.example.com\" }", "jwks.uri: "),
        ("jwks = { uri = \"https://u:p@keys.example.com\" }", "jwks.uri: "),
        ("jwks = { uri = \"https://keys.example.com\", file = \"k\" }", "jwks.file: "),
        ("jwks = { file = \"missing.json\" }", "jwks.file: /nowhere/missing.json: cannot be read"),
        ("jwks = { min_ttl = \"4s\" }", "jwks.min_ttl: at least 5s"),
        ("jwks = { max_ttl = \"25h\" }", "jwks.max_ttl: at most 24h"),
        ("jwks = { min_ttl = \"1m\", max_ttl = \"30s\" }", "jwks.min_ttl: cannot be longer"),
        ("discovery = \"off\"", "discovery: without discovery, say where the keys are"),
        (
            "discovery = \"off\"\njwks = { uri = \"https://k.example.com\" }\nexchange = { client_id = \"r\", client_secret = { env = \"S\" } }",
            "discovery: without discovery, say where tokens are exchanged",
        ),
        ("discovery = \"never\"", "unknown variant"),
        ("ca = \"missing.pem\"", "ca: /nowhere/missing.pem cannot be read"),
        ("login = { client_id = \"\" }", "login.client_id: "),
        ("login = { client_id = \"x\", flows = [] }", "login.flows: "),
        (
            "login = { client_id = \"x\", flows = \"pkce\", device_client_id = \"y\" }",
            "login.device_client_id: ",
        ),
        ("algorithms = [\"HS256\"]", "unknown variant `HS256`"),
        ("algorithms = [\"none\"]", "unknown variant `none`"),
        ("leeway = 30", "invalid type"),
        ("roles_from = \"a..b\"", "\"a..b\" is not the name of a claim"),
        ("provider = \"keyclaok\"", "unknown variant"),
        ("sender_constrained = \"always\"", "unknown variant"),
        // Asked about without a word of how; and how without being asked about.
        ("check = \"introspect\"", ": tokens of this issuer are asked about"),
        ("check = \"auto\"", ": tokens of this issuer are asked about"),
        ("provider = \"google\"", ": tokens of this issuer are asked about"),
        (asked, "introspect: check = \"jwt\" asks nobody"),
        (
            &format!(
                "{asked}\ncheck = \"auto\"\ndiscovery = \"off\"\njwks = {{ uri = \"https://k.example.com\" }}"
            ),
            "discovery: without discovery, say whom",
        ),
        (
            &format!("{asked}\ncheck = \"introspect\"\njwks = {{ stale = \"1h\" }}"),
            "jwks: check = \"introspect\" looks at no signature",
        ),
        (&format!("{asked}\ncheck = \"introspect\"\nalgorithms = \"RS256\""), "algorithms: check"),
        (&format!("{asked}\ncheck = \"introspect\"\nkid_missing = \"try\""), "kid_missing: check"),
        (&format!("{asked}\ncheck = \"introspect\"\ntoken_type = \"JWT\""), "token_type: check"),
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
fn files_are_read_and_must_hold_what_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let judge = |more: &str| {
        let file: IssuerFile = Source::from_text("relay.toml", format!("{MINIMAL}{more}")).parse().unwrap();
        file.settings(dir.path())
    };
    std::fs::write(dir.path().join("nothing"), "nothing").unwrap();
    let problem = judge("ca = \"nothing\"").unwrap_err();
    assert!(problem.message.contains("holds no certificate"), "{problem}");
    for (content, said) in [("nothing", "is not a key set"), ("{}", "missing field `keys`")] {
        std::fs::write(dir.path().join("nothing"), content).unwrap();
        let problem = judge("jwks = { file = \"nothing\" }").unwrap_err();
        assert!(problem.message.contains(said) && problem.at == ["jwks", "file"], "{problem}");
    }
    assert!(judge("jwks = { file = \".\" }").unwrap_err().message.contains("is not a file"));
    std::fs::write(dir.path().join("keys.json"), "{\"keys\":[]}").unwrap();
    // No network is needed, and none is used.
    let keys = judge("discovery = \"off\"\njwks = { file = \"keys.json\", stale = \"1h\" }").unwrap().keys;
    assert_eq!(keys.place, KeyPlace::File(dir.path().join("keys.json")));
    let problem = judge("jwks = { file = \"keys.json\", max_ttl = \"1h\" }").unwrap_err();
    assert!(problem.message.contains("re-read when it changes"), "{problem}");
}

#[test]
fn the_schema_names_every_key() {
    let schema = schemars::schema_for!(IssuerFile).to_value();
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 29, "{keys:?}");
    assert_eq!(schema["additionalProperties"], false);
}
