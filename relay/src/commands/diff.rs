//! `config diff [FILE]`: what a file would change, against what the running relay has in force; without one, against the configuration.

use std::path::Path;
use std::time::SystemTime;

use postern_base::console;
use postern_gate::policy::{Compared, Explanation, Flip};

use super::{Context, Done, Exit, Failure, answer, block_on};
use crate::admin::api::{self, DiffCall};
use crate::config::{self, diff::Diff};

pub(super) fn run(context: &Context, file: Option<&Path>) -> Done {
    let file = file.map(std::path::absolute).transpose()?;
    // The configuration that was named here, which need not be the one that the relay was started with.
    let asked = file.clone().map_or_else(|| std::path::absolute(&context.config), Ok)?;
    let call = serde_json::to_value(DiffCall { file: Some(asked) })?;
    let difference: Diff = match answer(block_on(context.relay()?.post(api::DIFF, &call))?)? {
        Some(difference) => {
            context.output.note("against what the running relay has in force:");
            difference
        }
        None => offline(context, file.as_deref())?,
    };
    if context.output.json {
        return Ok(console::json(&difference)?);
    }
    let Diff { changes, failing, decisions: Compared { flips, tried, stopped } } = difference;
    for test in failing {
        context.output.note(format!("! {test}"));
    }
    if changes.is_empty() {
        context.output.note("nothing changed");
    }
    for change in changes {
        console::line(change)?;
    }
    for Flip { who, call, before, after } in &flips {
        let verdict = |told: &Explanation| if told.allowed { "allowed" } else { "denied" };
        console::line(format!("{who}: {call}: {} -> {}: {}", verdict(before), verdict(after), after.detail))?;
        if let Some(closest) = &after.closest {
            console::line(format!("  closest: {closest}"))?;
        }
    }
    let more = if stopped { "; there are more to try than these" } else { "" };
    context.output.note(format!("{} of {tried} calls tried would be decided otherwise{more}", flips.len()));
    Ok(())
}

fn offline(context: &Context, file: Option<&Path>) -> Result<Diff, Failure> {
    let Some(file) = file else {
        let text = "no relay runs here, so there is nothing to compare the configuration with: give a FILE";
        return Err(Failure::new(Exit::Usage, text));
    };
    context.output.note(format!("no relay runs here; against {}:", context.config.display()));
    let old = context.look()?;
    let new = config::look(file).map_err(|errors| Failure {
        exit: Exit::Config,
        lines: std::iter::once(format!("{} is not good", file.display()))
            .chain(errors.iter().map(ToString::to_string))
            .collect(),
    })?;
    Ok(Diff::between((&old.outline, &old.policy), &new, SystemTime::now()))
}
