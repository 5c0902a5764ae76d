//! Services added to files that people wrote, and taken out again.

use postern_base::console::Output;

use super::*;

const MAIN: &str = r#"# ours
version = 1
url = "https://relay.example.com" # public
listen = { https = "127.0.0.1:0", quic = "127.0.0.1:0" }
tls = { mode = "self-signed" }
state = { dir = "state" }
agents = { trust_domain = "example.com" }

[[issuers]]
name = "corp"
issuer = "https://id.example.com"
audience = ["https://relay.example.com"]

[roles]
clerk = { any = "group:finance" }

# the wiki, since 2009
[services.wiki]
agent = "dc1" # beside it
rules = [
    { allow = "role:clerk", to = "GET /**" }, # readers
]

[limits] # none
"#;

fn context(dir: &Path, main: &str) -> Context {
    let output = Output { json: false, quiet: true, verbose: 0 };
    let context = Context { config: dir.join("relay.toml"), output, begin_anew: std::cell::Cell::default() };
    fs::write(&context.config, main).unwrap();
    context
}

fn args(name: &str, to: &[&str]) -> ServiceAdd {
    ServiceAdd {
        name: name.parse().unwrap(),
        agents: vec!["dc1".parse().unwrap()],
        allow: vec!["role:clerk".to_owned()],
        to: to.iter().map(|to| (*to).to_owned()).collect(),
        issuers: Vec::new(),
        hosts: Vec::new(),
        about: None,
        verify: false,
        audience: None,
        reload: false,
    }
}

#[test]
fn comments_and_order_stay_when_a_service_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let main = MAIN;
    let context = context(dir.path(), main);
    add(&context, &args("ledger", &["CONNECT"])).unwrap();
    let text = fs::read_to_string(&context.config).unwrap();
    let lines = "\n[services.ledger]\nagent = \"dc1\"\nkind = \"tcp\"\nrules = [{ allow = \"role:clerk\", to = \"CONNECT\" }]\n";
    assert_eq!(text, main.replace("\n[limits]", &format!("{lines}\n[limits]")), "{text}");
    assert_eq!(add(&context, &args("ledger", &["CONNECT"])).unwrap_err().exit, Exit::Failed);
    remove(&context, &"ledger".parse().unwrap(), false).unwrap();
    assert_eq!(fs::read_to_string(&context.config).unwrap(), main);
    assert_eq!(remove(&context, &"ledger".parse().unwrap(), false).unwrap_err().exit, Exit::NoSuchService);
}

#[test]
fn a_file_of_its_own_where_include_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let main = MAIN.replace("# ours\n", "include = [\"services.d/*.toml\"]\n");
    let context = context(dir.path(), &main);
    let path = dir.path().join("services.d/web.toml");
    add(&context, &args("web", &["GET /a", "PUT,POST /b/**"])).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "[services.web]\nagent = \"dc1\"\nrules = [{ allow = \"role:clerk\", to = [\"GET /a\", \"PUT,POST /b/**\"] }]\n"
    );
    assert_eq!(fs::read_to_string(&context.config).unwrap(), main);
    assert_eq!(context.load().unwrap().origins[&"web".parse::<ServiceName>().unwrap()], path);
    remove(&context, &"web".parse().unwrap(), false).unwrap();
    assert!(!path.exists());
}

#[test]
fn what_would_not_be_good_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let main = MAIN.replace(
        "[limits]",
        "[[tests]]\nname = 't'\nas = { groups = 'finance' }\ncall = 'GET wiki/'\nexpect = 'allow'\n[limits]",
    );
    let context = context(dir.path(), &main);
    for to in ["GET **", "get /", "CONNECT /x"] {
        let failure = add(&context, &args("web", &[to])).unwrap_err();
        assert_eq!(failure.exit, Exit::Config, "{to}: {failure:?}");
    }
    // A test asks for the wiki.
    assert_eq!(remove(&context, &"wiki".parse().unwrap(), false).unwrap_err().exit, Exit::Config);
    assert_eq!(fs::read_to_string(&context.config).unwrap(), main);
}

#[test]
fn what_verifies_has_an_audience_and_urls_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &MAIN.replace("[roles]", "login = { client_id = 'cli' }\n[roles]"));
    let url = context.load().unwrap().settings.url.clone();
    let issuer = |audience: &str| {
        format!(
            "[[issuers]]\nname = \"corp\"\nissuer = \"https://id.example.com\"\naudience = [\"{audience}\"]"
        )
    };
    let rules = "rules = [{ allow = \"group:it\", to = \"GET /**\" }]";
    for (hosts, given, audience, verify) in [
        (&[][..], None, "https://relay.example.com/web", "urls = \"https://relay.example.com/web/\", "),
        (&["w.example.com"], None, "https://w.example.com", "urls = \"https://w.example.com/\", "),
        (&["*.example.com"], Some("web"), "web", ""),
    ] {
        let mut args = args("web", &["GET /**"]);
        (args.allow, args.verify) = (vec!["group:it".to_owned()], true);
        (args.hosts, args.audience) =
            (hosts.iter().map(ToString::to_string).collect(), given.map(str::to_owned));
        let lines = Verify::new(&context, &args, &url).unwrap().lines;
        let verify = format!("verify = {{ issuers = \"corp\", audience = \"{audience}\", {verify}{rules} }}");
        assert_eq!(lines, format!("{verify}\n\n{}", issuer(audience)));
        add(&context, &args).unwrap();
        let text = fs::read_to_string(&context.config).unwrap();
        assert!(text.contains(&format!("audience = [\"{audience}\"]\ncaller_token = \"agent\"\n")), "{text}");
        remove(&context, &args.name, false).unwrap();
    }
    // Roles are the relay's, and a pattern is no address.
    let mut of_roles = args("db", &["CONNECT"]);
    of_roles.verify = true;
    let Verify { audience, lines, notes } = Verify::new(&context, &of_roles, &url).unwrap();
    assert_eq!(audience, "https://relay.example.com/.postern/tcp/db");
    assert!(!lines.contains("rules") && notes.iter().any(|note| note.contains("roles")), "{lines} {notes:?}");
    let mut many = args("web", &["GET /**"]);
    (many.verify, many.hosts) = (true, vec!["*.example.com".to_owned()]);
    assert_eq!(add(&context, &many).unwrap_err().exit, Exit::Usage);
}

#[test]
fn permissions_stay_as_they_were() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), MAIN);
    fs::set_permissions(&context.config, fs::Permissions::from_mode(0o640)).unwrap();
    add(&context, &args("web", &["GET /"])).unwrap();
    assert_eq!(fs::metadata(&context.config).unwrap().permissions().mode() & 0o777, 0o640);
}
