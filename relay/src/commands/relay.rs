//! `run`, and what asks the running relay about itself: `reload`, `status`.

use postern_base::telemetry;
use serde_json::json;

use super::{Context, Done, Exit, Failure, answer, block_on, not_running};
use crate::admin::api::{self, Reloaded, Status};
use postern_base::console::{self, time};

pub(super) fn run(context: &Context) -> Done {
    let loaded = context.load()?;
    let log = &loaded.settings.telemetry;
    telemetry::init(context.output.level().unwrap_or(&log.log), log.format)
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    for warning in &loaded.warnings {
        tracing::warn!("{}: {warning}", context.config.display());
    }
    Ok(crate::relay::run(context.config.clone(), loaded)?)
}

pub(super) fn reload(context: &Context) -> Done {
    let relay = context.relay()?;
    let called = block_on(relay.post(api::RELOAD, &json!({})))?;
    let reloaded: Reloaded = answer(called)?.ok_or_else(not_running)?;
    if context.output.json {
        return Ok(console::json(&reloaded)?);
    }
    if reloaded.changes.is_empty() {
        context.output.note("reloaded; nothing changed");
    }
    for change in reloaded.changes {
        console::line(change)?;
    }
    Ok(())
}

pub(super) fn status(context: &Context) -> Done {
    let relay = context.relay()?;
    let status: Status = answer(block_on(relay.get(api::STATUS))?)?.ok_or_else(not_running)?;
    if context.output.json {
        return Ok(console::json(&status)?);
    }
    console::line(format!("{} up since {}, version {}", status.url, time(status.started), status.version))?;
    let rows: Vec<Vec<String>> = status
        .tunnels
        .iter()
        .map(|tunnel| {
            let services: Vec<&str> = tunnel.services.iter().map(AsRef::as_ref).collect();
            vec![
                tunnel.agent.to_string(),
                tunnel.instance.clone(),
                tunnel.address.to_string(),
                time(tunnel.since),
                if tunnel.usable { "up" } else { "starting" }.to_owned(),
                services.join(" "),
            ]
        })
        .collect();
    if rows.is_empty() {
        context.output.note("no agent has a tunnel; see: postern-relay agent ls");
        return Ok(());
    }
    Ok(console::table(&["AGENT", "INSTANCE", "FROM", "SINCE", "STATE", "SERVICES"], &rows)?)
}
