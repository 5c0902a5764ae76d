//! `agent invite`, `agent suspend`, `agent resume`, `agent remove`: through the running relay, or on the database where none runs. `agent ls` is
//! in [`ls`].

use std::time::SystemTime;

use postern_base::admin::Actor;
use postern_base::audit::Destination;
use postern_base::console::{self, Exit};
use postern_base::id::{AgentName, ServiceName};
use serde_json::Value;

use super::{Context, Done, Failure, answer, block_on, database};
use crate::admin::api;
use crate::admin::api::agents::{self, AgentCall, InviteCall, Invited, Removed, SuspendCall, Suspended};
use crate::audit::Audit;
use crate::cli::Agent;
use crate::config::Loaded;
use crate::enroll::Who;

mod ls;

pub(super) fn run(context: &Context, command: Agent) -> Done {
    match command {
        Agent::Invite { name, services, ttl } => {
            let services = (!services.is_empty()).then_some(services);
            invite(
                context,
                &InviteCall { agent: name, services, ttl: ttl.map(|span| span.0.as_secs().max(1)) },
            )
        }
        Agent::Ls => ls::list(context),
        Agent::Suspend { who, reason } => suspend(context, who, reason),
        Agent::Resume { who } => resume(context, who),
        Agent::Remove { who } => remove(context, who),
    }
}

fn invite(context: &Context, wanted: &InviteCall) -> Done {
    let called = block_on(context.relay()?.post(api::INVITE, &serde_json::to_value(wanted)?))?;
    let loaded = context.load();
    let invited: Invited = if let Some(invited) = answer(called)? {
        invited
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = open_audit(&loaded)?;
        let invited = agents::invite(&enrollment, wanted, SystemTime::now())?;
        record(audit, "admin", wanted.told());
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

fn suspend(context: &Context, agent: Who, reason: String) -> Done {
    if reason.trim().is_empty() {
        let text = "--reason says nothing: say why, for whoever finds the suspension later";
        return Err(Failure::new(Exit::Usage, text));
    }
    let call = SuspendCall { agent, reason };
    let called = block_on(context.relay()?.post(api::SUSPEND, &serde_json::to_value(&call)?))?;
    let suspended: Suspended = if let Some(suspended) = answer(called)? {
        suspended
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = open_audit(&loaded)?;
        let uid = rustix::process::getuid().as_raw();
        let (suspended, detail) = agents::suspend(&enrollment, call, uid, |_| 0)?;
        record(audit, "admin", detail);
        suspended
    };
    if context.output.json {
        return Ok(console::json(&suspended)?);
    }
    let Suspended { who, tunnels, .. } = suspended;
    context.output.note(format!("{who} is suspended: {tunnels} tunnel(s) cut, none let in"));
    context.output.note(format!("To undo: postern-relay agent resume {who}"));
    Ok(())
}

fn resume(context: &Context, agent: Who) -> Done {
    let call = AgentCall { agent };
    let called = block_on(context.relay()?.post(api::RESUME, &serde_json::to_value(&call)?))?;
    let resumed: Suspended = if let Some(resumed) = answer(called)? {
        resumed
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = open_audit(&loaded)?;
        let (resumed, detail) = agents::resume(&enrollment, call)?;
        record(audit, "admin", detail);
        resumed
    };
    if context.output.json {
        return Ok(console::json(&resumed)?);
    }
    context.output.note(format!("{} is suspended no more; an agent asks every 15 s", resumed.who));
    for other in &resumed.others {
        context.output.note(format!("! still suspended: {other} (postern-relay agent resume {other})"));
    }
    Ok(())
}

fn remove(context: &Context, agent: Who) -> Done {
    let call = AgentCall { agent };
    let called = block_on(context.relay()?.post(api::REMOVE, &serde_json::to_value(&call)?))?;
    let removed: Removed = if let Some(removed) = answer(called)? {
        removed
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = open_audit(&loaded)?;
        let (removed, detail) = agents::remove(&enrollment, &call, |_| 0)?;
        record(audit, "admin", detail);
        removed
    };
    if context.output.json {
        return Ok(console::json(&removed)?);
    }
    let Removed { instances, tunnels } = removed;
    let invites = if call.agent.instance.is_none() { ", open invites void" } else { "" };
    context.output.note(format!(
        "{} is out: {instances} instance(s) removed for good, {tunnels} tunnel(s) cut{invites}",
        call.agent
    ));
    Ok(())
}

/// The audit file, which a relay that does not run leaves to the commands. Where audit is stdout there is nothing to add to. Opened
/// before the change, so that what cannot be recorded does not happen; and while the command holds the database, so that a relay that starts
/// finds both free.
pub(super) fn open_audit(loaded: &Loaded) -> Result<Option<Audit>, Failure> {
    let settings = &loaded.settings;
    match settings.audit.log.to {
        Destination::File(_) => Ok(Some(Audit::open(&settings.audit, &settings.state)?)),
        Destination::Stdout => Ok(None),
    }
}

pub(super) fn record(audit: Option<Audit>, event: &'static str, mut detail: Value) {
    if let Some(audit) = audit {
        Actor::here().sign(&mut detail);
        audit.event(event, detail);
        audit.close();
    }
}
