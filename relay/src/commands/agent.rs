//! `agent invite`, `agent ls`, `agent remove`: through the running relay, or on the database where none runs.

use std::time::SystemTime;

use postern_base::audit::Destination;
use postern_base::id::{AgentName, ServiceName};
use serde_json::{Value, json};

use super::{Context, Done, Failure, answer, block_on, enrollment};
use crate::admin::api::{self, AgentList, InviteCall, Invited, RemoveCall, Removed};
use crate::audit::Audit;
use crate::cli::Agent;
use crate::config::Loaded;
use postern_base::console::{self, time};

pub(super) fn run(context: &Context, command: Agent) -> Done {
    match command {
        Agent::Invite { name, services, ttl } => {
            let services = (!services.is_empty()).then_some(services);
            invite(
                context,
                &InviteCall { agent: name, services, ttl: ttl.map(|span| span.0.as_secs().max(1)) },
            )
        }
        Agent::Ls => list(context),
        Agent::Remove { name } => remove(context, name),
    }
}

fn invite(context: &Context, wanted: &InviteCall) -> Done {
    let called = block_on(context.relay()?.post(api::INVITE, &serde_json::to_value(wanted)?))?;
    let loaded = context.load();
    let invited: Invited = if let Some(invited) = answer(called)? {
        invited
    } else {
        let loaded = context.load()?;
        let audit = open_audit(&loaded)?;
        let invited = api::invite(&enrollment(&loaded.settings)?, wanted, SystemTime::now())?;
        record(
            audit,
            "admin",
            json!({ "action": "agent invite", "agent": wanted.agent, "services": wanted.services }),
        );
        invited
    };
    let output = context.output;
    if output.json {
        console::json(&invited)?;
    } else {
        console::line(&invited.invite)?;
    }
    if let Ok(loaded) = loaded {
        for doubt in doubts(&loaded, &wanted.agent, wanted.services.as_deref().unwrap_or_default()) {
            output.note(doubt);
        }
        let address = loaded.settings.url.origin().trim_start_matches("https://").to_owned();
        output.note(format!(
            "Next, on the agent's machine: postern-agent join {address}   (it asks for this invite)"
        ));
    }
    output.note("It works once. Who holds it can become this agent: hand it over as you would a password.");
    Ok(())
}

/// What is allowed, but leaves the agent with less to serve than was probably meant.
fn doubts(loaded: &Loaded, agent: &AgentName, narrowed: &[ServiceName]) -> Vec<String> {
    let services = &loaded.settings.services;
    let assigned =
        |name: &ServiceName| services.get(name).is_some_and(|service| service.agents.contains(agent));
    let mut doubts: Vec<String> = narrowed
        .iter()
        .filter(|name| !assigned(name))
        .map(|name| format!("! relay.toml does not assign service {name} to agent {agent} yet"))
        .collect();
    if !services.keys().any(assigned) {
        doubts.push(format!(
            "! no service in relay.toml names agent {agent} yet: add agent = \"{agent}\" to one"
        ));
    }
    doubts
}

fn list(context: &Context) -> Done {
    let called = block_on(context.relay()?.get(api::AGENTS))?;
    let (list, relay_runs): (AgentList, bool) = match answer(called)? {
        Some(list) => (list, true),
        None => (api::list(&enrollment(&context.load()?.settings)?, Vec::new()), false),
    };
    if context.output.json {
        return Ok(console::json(&list)?);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let narrowed = |services: &Option<Vec<ServiceName>>| match services {
        None => "all of its own".to_owned(),
        Some(services) => services.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
    };
    let mut rows = Vec::new();
    for agent in &list.agents {
        let tunnels = agent.tunnels.iter().filter(|tunnel| tunnel.usable).count();
        let state = match tunnels {
            0 if !relay_runs => "relay not running".to_owned(),
            0 if agent.row.certificate.not_after <= now => "down, certificate expired".to_owned(),
            0 => "down".to_owned(),
            1 => "up, 1 tunnel".to_owned(),
            n => format!("up, {n} tunnels"),
        };
        let row = &agent.row;
        let until = time(row.certificate.not_after);
        rows.push(vec![
            row.name.to_string(),
            row.instance.to_string(),
            state,
            until,
            narrowed(&row.services),
        ]);
    }
    for invite in &list.invites {
        let state = if invite.expires <= now { "invite expired" } else { "invited" };
        let until = time(invite.expires);
        rows.push(vec![
            invite.agent.to_string(),
            "-".into(),
            state.into(),
            until,
            narrowed(&invite.services),
        ]);
    }
    if rows.is_empty() {
        context.output.note("no agents yet: invite one with: postern-relay agent invite NAME");
        return Ok(());
    }
    Ok(console::table(&["AGENT", "INSTANCE", "STATE", "GOOD UNTIL", "MAY SERVE"], &rows)?)
}

fn remove(context: &Context, agent: AgentName) -> Done {
    let call = RemoveCall { agent };
    let called = block_on(context.relay()?.post(api::REMOVE, &serde_json::to_value(&call)?))?;
    let removed: Removed = if let Some(removed) = answer(called)? {
        removed
    } else {
        let loaded = context.load()?;
        let audit = open_audit(&loaded)?;
        let instances = enrollment(&loaded.settings)?.remove(&call.agent, SystemTime::now())?;
        record(
            audit,
            "admin",
            json!({ "action": "agent remove", "agent": call.agent, "instances": instances }),
        );
        Removed { instances, tunnels: 0 }
    };
    if context.output.json {
        return Ok(console::json(&removed)?);
    }
    let Removed { instances, tunnels } = removed;
    context.output.note(format!(
        "{} is out: {instances} instance(s) removed for good, {tunnels} tunnel(s) cut, open invites void",
        call.agent
    ));
    Ok(())
}

/// The audit file, which a relay that does not run leaves to the commands. Where audit is stdout there is nothing to add to. Opened
/// before the change, so that what cannot be recorded does not happen.
pub(super) fn open_audit(loaded: &Loaded) -> Result<Option<Audit>, Failure> {
    let settings = &loaded.settings;
    match settings.audit.log.to {
        Destination::File(_) => Ok(Some(Audit::open(&settings.audit, &settings.state)?)),
        Destination::Stdout => Ok(None),
    }
}

pub(super) fn record(audit: Option<Audit>, event: &'static str, mut detail: Value) {
    if let Some(audit) = audit {
        detail["uid"] = rustix::process::getuid().as_raw().into();
        audit.event(event, detail);
        audit.close();
    }
}
