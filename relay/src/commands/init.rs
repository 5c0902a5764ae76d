//! `init`: makes what is missing, and nothing twice: relay.toml, the state directory with the agents' CA and the database, and the
//! self-signed certificate where the configuration asks for one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::audit::chain::Chain;
use postern_base::file::{self, Access};
use schemars::JsonSchema;
use serde::Serialize;
use url::{Host, Url};

use super::{Context, Done, Exit, Failure, enroll_settings};
use crate::audit;
use crate::cli;
use crate::config;
use crate::enroll::Enrollment;
use crate::settings::{Settings, TlsSettings};
use postern_base::console;

mod self_signed;

/// `init --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct InitDocument<'a> {
    /// Files that were not there, or that were made anew.
    made: &'a [PathBuf],
    /// The agents' root CA's key, where it was made now.
    root_key: Option<&'a Path>,
    /// The audit log's first key, shown this once.
    audit_key: Option<String>,
}

pub(super) fn run(context: &Context, args: &cli::Init) -> Done {
    let output = context.output;
    let mut made = Vec::new();
    if context.config.exists() {
        if args.url.is_some() || args.issuer.is_some() || args.audience.is_some() || args.client_id.is_some()
        {
            output.note(format!("{} is there and stays as it is", context.config.display()));
        }
    } else {
        write_config(context, args)?;
        made.push(context.config.clone());
    }
    let loaded = context.load()?;
    let settings = &loaded.settings;
    let differing = differing(settings, args);
    if !differing.is_empty() {
        let text = format!("{} says otherwise; nothing was changed", context.config.display());
        let next = "To have it otherwise, change that file; for another relay, give -c FILE and --dir DIR";
        let lines = std::iter::once(text).chain(differing).chain([next.to_owned()]).collect();
        return Err(Failure { exit: Exit::Config, lines });
    }
    let now = SystemTime::now();
    let issuing = settings.state.join("ca/issuing.pem");
    let had_issuing = issuing.exists();
    let report = Enrollment::init(&enroll_settings(settings), now)?;
    made.extend(report.made);
    let chain = audit::chain_path(&settings.state);
    let audit_key = Chain::create(&chain)?;
    made.extend(audit_key.is_some().then_some(chain));
    if let TlsSettings::SelfSigned { cert, key } = &settings.tls {
        made.extend(self_signed::make(cert, key, settings.url.host(), now)?);
    }
    if output.json {
        let audit_key = audit_key.as_ref().map(|key| key.expose().to_string());
        console::json(&InitDocument { made: &made, root_key: report.root_key.as_deref(), audit_key })?;
    } else if let Some(key) = &audit_key {
        output.note(
            "The audit log's first key, shown this once: keep it away from this machine (postern-relay audit verify --key-file)",
        );
        console::line(key.expose().as_str())?;
    }
    for path in &made {
        let verb = if had_issuing && *path == issuing { "replaced" } else { "made" };
        output.note(format!("{verb} {}", path.display()));
    }
    if made.is_empty() {
        output.note("everything is there; nothing was changed");
    }
    output.note("Next:");
    if let Some(root_key) = &report.root_key {
        output.note(format!(
            "  take {} away to a safe place: it is needed again only for a new issuing CA",
            root_key.display()
        ));
    }
    if settings.services.is_empty() {
        output.note(format!("  put your services into {}", context.config.display()));
    }
    if let TlsSettings::SelfSigned { cert, .. } = &settings.tls {
        output.note(format!("  give clients {} (postern --ca FILE)", cert.display()));
    }
    output.note("  postern-relay run");
    output.note("  postern-relay agent invite NAME");
    Ok(())
}

/// What was asked for and is not what the configuration says.
fn differing(settings: &Settings, args: &cli::Init) -> Vec<String> {
    let said = |key: &str, wanted: &str, there: Vec<&str>| {
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        format!("  {key} is {there}, not {wanted}")
    };
    let mut differing = Vec::new();
    if let Some(url) = &args.url {
        let origin = Url::parse(url).map_or_else(|_| url.clone(), |url| url.origin().ascii_serialization());
        if origin != settings.url.origin() {
            differing.push(said("url", url, vec![settings.url.origin()]));
        }
    }
    let issuers = || settings.issuers.iter();
    let logins = issuers().filter_map(|issuer| issuer.login.as_ref()).map(|login| login.client_id.as_str());
    for (key, wanted, there) in [
        ("issuer", &args.issuer, issuers().map(|issuer| issuer.issuer.as_str()).collect::<Vec<_>>()),
        (
            "audience",
            &args.audience,
            issuers().flat_map(|issuer| &issuer.audience).map(String::as_str).collect(),
        ),
        ("client_id", &args.client_id, logins.collect()),
    ] {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| !there.contains(wanted)) {
            differing.push(said(key, wanted, there));
        }
    }
    differing
}

fn write_config(context: &Context, args: &cli::Init) -> Done {
    let path = &context.config;
    let (Some(url), Some(issuer)) = (&args.url, &args.issuer) else {
        let text = format!(
            "there is no {} yet: to have it written, give --url https://… (this relay's address) and --issuer https://… (whose tokens it accepts)",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, text));
    };
    let text = render(url, issuer, args)?;
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", dir.display())))?;
    }
    file::write_atomic(path, text.as_bytes(), Access::Public)
        .map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))?;
    if let Err(errors) = config::load(path) {
        let invalid = context.invalid(&errors);
        // What was just written with bad values is not kept: the next try starts afresh.
        fs::remove_file(path)?;
        return Err(invalid);
    }
    Ok(())
}

/// A relay.toml that works as it is and has a line on everything that most people change.
fn render(url: &str, issuer: &str, args: &cli::Init) -> Result<String, Failure> {
    let usage = |e: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("--url {url}: {e}"));
    let parsed = Url::parse(url).map_err(|e| usage(&e))?;
    let host = parsed.host().ok_or_else(|| usage(&"it has no host"))?;
    // A relay for this machine alone listens on this machine alone.
    let (ip, domain) = match host {
        Host::Domain("localhost") => (IpAddr::from(Ipv4Addr::LOCALHOST), "localhost".to_owned()),
        Host::Domain(name) => (Ipv4Addr::UNSPECIFIED.into(), name.to_owned()),
        Host::Ipv4(ip) if ip.is_loopback() => (ip.into(), "localhost".to_owned()),
        Host::Ipv4(ip) => (Ipv4Addr::UNSPECIFIED.into(), ip.to_string()),
        Host::Ipv6(ip) if ip.is_loopback() => (ip.into(), "localhost".to_owned()),
        Host::Ipv6(_) => (std::net::Ipv6Addr::UNSPECIFIED.into(), "postern".to_owned()),
    };
    let listen = std::net::SocketAddr::new(ip, parsed.port().unwrap_or(443));
    let audience = args.audience.clone().unwrap_or_else(|| parsed.origin().ascii_serialization());
    let dir = std::path::absolute(&args.dir)?;
    // Beside the state, which is there and ours; on stdout its lines would bury what a newcomer's terminal says.
    let log = dir.join("audit.jsonl");
    let utf8 = || Failure::new(Exit::Usage, "--dir must be UTF-8");
    let (dir, log) = (dir.to_str().ok_or_else(utf8)?, log.to_str().ok_or_else(utf8)?);
    let login = match &args.client_id {
        Some(id) => format!("login    = {{ client_id = {} }}", quoted(id)),
        None => "# login  = { client_id = \"postern-cli\" }    # lets people use `postern login`".to_owned(),
    };
    Ok(format!(
        r#"# Postern relay. After a change: postern-relay config check, then postern-relay reload.
# All keys: postern-relay config example
version = 1
url     = {url}

[listen]
https   = "{listen}"          # callers, TCP
quic    = "{listen}"          # agents, UDP
metrics = "127.0.0.1:9440"    # /metrics /healthz /readyz

[tls]
mode = "self-signed"          # for clients that are given the certificate; else "files" with cert and key

[state]
dir = {dir}

[agents]
trust_domain = {domain}

[audit]
file = {log}    # who asked for what, and what was decided; "-" is stdout

[[issuers]]
name     = "main"
issuer   = {issuer}
audience = {audience}
{login}

# A service is three lines here and two in its agent's agent.toml:
# [services.wiki]
# agent = "dc1"
# rules = [{{ allow = "group:staff", to = "GET /**" }}]
"#,
        url = quoted(url),
        dir = quoted(dir),
        log = quoted(log),
        domain = quoted(&domain),
        issuer = quoted(issuer),
        audience = quoted(&audience),
    ))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use postern_base::audit::Destination;
    use postern_base::console::Output;

    fn context(dir: &Path) -> Context {
        let output = Output { json: false, quiet: true, verbose: 0 };
        Context { config: dir.join("etc/relay.toml"), output, begin_anew: std::cell::Cell::default() }
    }

    fn args(dir: &Path, url: &str) -> cli::Init {
        cli::Init {
            url: Some(url.to_owned()),
            issuer: Some("https://id.example.com/realms/\"corp\"".to_owned()),
            audience: None,
            client_id: Some("postern-cli".to_owned()),
            dir: dir.join("state"),
        }
    }

    /// Every file with its content and mode.
    fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u32)> {
        use std::os::unix::fs::PermissionsExt;
        let mut all = Vec::new();
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                if path.is_dir() {
                    all.push((path.clone(), Vec::new(), mode));
                    left.push(path);
                } else {
                    all.push((path.clone(), fs::read(&path).unwrap(), mode));
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn run_twice_it_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (context, args) = (context(dir.path()), args(dir.path(), "https://relay.example.com:8443"));
        run(&context, &args).unwrap();
        let settings = config::load(&context.config).unwrap().settings;
        assert_eq!(settings.listen.https.to_string(), "0.0.0.0:8443");
        assert_eq!(settings.agents.trust_domain.as_str(), "relay.example.com");
        assert_eq!(settings.audit.log.to, Destination::File(dir.path().join("state/audit.jsonl")));
        let first = tree(dir.path());
        let modes: Vec<_> = first
            .iter()
            .filter(|(path, ..)| path.starts_with(dir.path().join("state")))
            .map(|(path, _, mode)| (path.file_name().unwrap().to_str().unwrap(), *mode))
            .collect();
        for private in [
            ("state", 0o700),
            ("tls", 0o700),
            ("key.pem", 0o600),
            ("root.key", 0o600),
            ("issuing.key", 0o600),
            ("audit.key", 0o600),
        ] {
            assert!(modes.contains(&private), "{private:?} in {modes:?}");
        }
        assert!(modes.contains(&("postern.redb", 0o600)));
        run(&context, &args).unwrap();
        assert_eq!(tree(dir.path()), first);
        let other = cli::Init {
            url: Some("https://other.example.com".to_owned()),
            client_id: Some("another".to_owned()),
            ..args
        };
        let failure = run(&context, &other).unwrap_err();
        let said = failure.lines.join("\n");
        assert_eq!(failure.exit, Exit::Config);
        assert!(
            said.contains("url is https://relay.example.com:8443, not https://other.example.com"),
            "{said}"
        );
        assert!(
            said.contains("client_id is postern-cli, not another") && !said.contains("issuer is"),
            "{said}"
        );
        assert_eq!(tree(dir.path()), first);
    }

    #[test]
    fn bad_values_leave_no_configuration_behind() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        let failure = run(&context, &args(dir.path(), "http://relay.example.com")).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(!context.config.exists());
        let nothing = cli::Init { url: None, ..args(dir.path(), "") };
        assert_eq!(run(&context, &nothing).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_loopback_relay_listens_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        run(&context, &args(dir.path(), "https://127.0.0.1:9443")).unwrap();
        let settings = config::load(&context.config).unwrap().settings;
        assert_eq!(settings.listen.quic.to_string(), "127.0.0.1:9443");
    }
}
