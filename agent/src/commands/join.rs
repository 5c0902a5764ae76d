//! `join`: the invite from where it was put, the enrolment, and an agent.toml to start from.

use std::fs;
use std::io::{IsTerminal, stdin};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::file::{self, Access};
use postern_base::id::{AgentName, InstanceId};
use postern_base::secret::SecretRef;
use postern_wire::join::{Invite, InviteError};
use schemars::JsonSchema;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Context, Done, Exit, Failure};
use crate::cli::Join;
use crate::config::Transport;
use crate::identity::{AgentIdentity, IdentityError};
use crate::join::{Way, join};
use crate::settings::{RelayAddress, Settings};
use postern_base::console;

const STATE: &str = "/var/lib/postern-agent";

/// `join --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Joined<'a> {
    agent: &'a AgentName,
    instance: &'a InstanceId,
    /// The state directory, which holds the identity now.
    state: &'a Path,
    /// Whether there was no agent.toml, and is one now.
    wrote_config: bool,
}

pub(super) fn run(context: &Context, args: &Join) -> Done {
    let output = context.output;
    let configured = if context.config.exists() { Some(context.load()?.settings) } else { None };
    if configured.as_ref().is_some_and(|settings| settings.identity.is_some()) {
        let text = "agent.toml says that this agent's certificate is made elsewhere (identity): leave that out to join";
        return Err(Failure::new(Exit::Usage, text));
    }
    let state = state(context, args, configured.as_deref())?;
    let way = match &configured {
        Some(settings) => Way { transport: settings.transport, proxy: settings.proxy.clone() },
        None => Way { transport: Transport::Auto, proxy: "env".parse()? },
    };
    if !args.force {
        vacant(&state)?;
    }
    let text = if configured.is_some() {
        None
    } else {
        writable(&context.config)?;
        Some(agent_toml(&args.relay, &state)?)
    };
    let invite = invite(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let identity = runtime.block_on(join(&args.relay, &invite, &state, &way)).map_err(|e| {
        let exit = if e.is_unreachable() { Exit::Unreachable } else { Exit::Failed };
        Failure::new(exit, e.to_string())
    })?;
    let (name, instance) = (identity.name(), identity.instance());
    if output.json {
        console::json(&Joined { agent: name, instance, state: &state, wrote_config: text.is_some() })?;
    }
    output.note(format!("enrolled as agent {name}, instance {instance}; identity in {}", state.display()));
    if let Some(text) = text {
        let written = file::write_atomic(&context.config, text.as_bytes(), Access::Public);
        written.map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", context.config.display())))?;
        output.note(format!("made {}: put your services into it", context.config.display()));
    }
    output.note("Next: postern-agent config check, then postern-agent run (restart it if it runs)");
    Ok(())
}

/// agent.toml's state directory, or the flag's where there is no agent.toml yet.
fn state(context: &Context, args: &Join, settings: Option<&Settings>) -> Result<PathBuf, Failure> {
    let wanted = args.state.as_deref().map(std::path::absolute).transpose()?;
    let Some(settings) = settings else {
        return Ok(wanted.unwrap_or_else(|| PathBuf::from(STATE)));
    };
    let configured = settings.state.clone();
    match wanted {
        Some(wanted) if wanted != std::path::absolute(&configured)? => {
            let (file, state) = (context.config.display(), configured.display());
            Err(Failure::new(
                Exit::Usage,
                format!("{file} says state = {state}: leave --state out or change that"),
            ))
        }
        _ => Ok(configured),
    }
}

/// An identity that still works is not thrown away by accident; an ended or damaged one only a join can replace.
fn vacant(state: &Path) -> Done {
    match AgentIdentity::load(state) {
        Ok(held) if held.is_expired(SystemTime::now()) => Ok(()),
        Ok(held) => {
            let (name, instance) = (held.name(), held.instance());
            let text = format!(
                "this state directory already holds agent {name} (instance {instance}): use --force to replace it"
            );
            Err(Failure::new(Exit::Failed, text))
        }
        Err(e @ IdentityError::Io { .. }) => Err(Failure::new(Exit::Failed, e.to_string())),
        Err(_) => Ok(()),
    }
}

/// An invite must not be spent where the rest cannot be done.
fn writable(config: &Path) -> Done {
    let dir = config.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = dir.join(".postern-agent.probe");
    fs::create_dir_all(dir)
        .and_then(|()| file::write_atomic(&probe, b"", Access::Public))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|e| {
            let text =
                format!("{}: {e}; run this as a user who may write there, or give -c FILE", dir.display());
            Failure::new(Exit::Failed, text)
        })
}

fn invite(args: &Join) -> Result<Invite, Failure> {
    let text = if let Some(file) = &args.invite_file {
        let secret = SecretRef::File(file.clone()).load();
        let secret = secret.map_err(|e| {
            // "secret file …", as of any secret: here it is the invite's.
            let text = e.to_string();
            Failure::new(Exit::Usage, format!("invite {}", text.strip_prefix("secret ").unwrap_or(&text)))
        })?;
        Zeroizing::new(secret.expose().to_owned())
    } else if let Ok(text) = std::env::var("POSTERN_INVITE") {
        Zeroizing::new(text)
    } else if stdin().is_terminal() {
        Zeroizing::new(rpassword::prompt_password("Invite: ")?)
    } else {
        let text = "there is no invite: give --invite-file F, set POSTERN_INVITE, or run this on a terminal";
        return Err(Failure::new(Exit::Usage, text));
    };
    text.parse().map_err(|e: InviteError| Failure::new(Exit::Usage, e.to_string()))
}

fn agent_toml(relay: &RelayAddress, state: &Path) -> Result<String, Failure> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let state = state.to_str().ok_or_else(|| Failure::new(Exit::Usage, "--state must be UTF-8"))?;
    let relay = relay.to_string();
    let wiki = format!("https://{}/wiki", relay.strip_suffix(":443").unwrap_or(&relay));
    Ok(format!(
        r#"# Postern agent. Check changes with: postern-agent config check
# All keys: postern-agent config example
version = 1
relay   = {relay}
state   = {state}

# A service: its name as in relay.toml, and its address as seen from here.
# [services.wiki]
# upstream = "http://127.0.0.1:8080"

# To decide again here, whatever the relay says, on the caller's own token: below the service's upstream, and the issuer of its tokens.
# `postern-relay service add NAME … --verify` prints these lines for a service, and sets the relay up for it.
# verify = {{ issuers = "corp", audience = {audience}, urls = {url}, rules = [{{ allow = "group:staff", to = "GET /**" }}] }}
#
# [[issuers]]
# name = "corp"
# issuer = "https://id.example.com"
# audience = {audience}
"#,
        audience = quoted(&wiki),
        url = quoted(&format!("{wiki}/")),
        relay = quoted(&relay),
        state = quoted(state),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_agent_toml_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("etc/agent.toml");
        writable(&config).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 0);
        let relay: RelayAddress = "relay.example.com:8443".parse().unwrap();
        let text = agent_toml(&relay, Path::new("/var/lib/\"odd\"")).unwrap();
        fs::write(&config, &text).unwrap();
        let loaded = crate::config::load(&config).unwrap();
        assert_eq!(loaded.settings.state, Path::new("/var/lib/\"odd\""));
        // And so is what it shows.
        let is_toml = |shown: &str| shown.starts_with('[') || shown.contains(" = ");
        let shown = |line: &str| line.strip_prefix("# ").filter(|shown| is_toml(shown)).map(str::to_owned);
        let lines: Vec<_> = text.lines().map(|line| shown(line).unwrap_or_else(|| line.to_owned())).collect();
        fs::write(&config, lines.join("\n")).unwrap();
        let loaded = crate::config::load(&config).unwrap();
        assert_eq!(loaded.settings.verification.as_ref().map(|shown| shown.services.len()), Some(1));
    }
}
