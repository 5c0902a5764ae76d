//! `run`, and `reload` of what runs.

use postern_base::telemetry;
use serde_json::json;

use super::{Context, Done, Exit, Failure, answer, block_on, not_running};
use crate::admin::api::{self, Reloaded};
use postern_base::console;

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
    let relay = context.relay().map_err(|mut failure| {
        failure.lines.push("a relay that runs keeps the old one in force".to_owned());
        failure
    })?;
    let called = block_on(relay.post(api::RELOAD, &json!({})))?;
    let reloaded: Reloaded = answer(called)?.ok_or_else(not_running)?;
    if context.output.json {
        return Ok(console::json(&reloaded)?);
    }
    for warning in &reloaded.warnings {
        context.output.note(format!("! {warning}"));
    }
    if reloaded.changes.is_empty() {
        context.output.note("reloaded; nothing changed");
    }
    for change in reloaded.changes {
        console::line(change)?;
    }
    Ok(())
}
