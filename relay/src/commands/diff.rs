//! `config diff [FILE]`: what a file would change, against what the running relay has in force; without one, against the configuration.

use std::path::Path;
use std::time::SystemTime;

use postern_base::console;
use serde::Deserialize;
use serde_json::Value;

use super::{Context, Done, Exit, Failure, answer, block_on};
use crate::admin::api::{self, DiffCall};
use crate::config::{self, diff::Diff};

/// What the command prints of a difference, whoever found it.
#[derive(Debug, Deserialize)]
struct Shown {
    changes: Vec<String>,
    flips: Vec<Flip>,
    tried: usize,
    stopped: bool,
}

#[derive(Debug, Deserialize)]
struct Flip {
    who: String,
    call: String,
    before: Verdict,
    after: Verdict,
}

#[derive(Debug, Deserialize)]
struct Verdict {
    allowed: bool,
    detail: String,
    closest: Option<Closest>,
}

#[derive(Debug, Deserialize)]
struct Closest {
    rule: String,
    missing: Vec<String>,
}

pub(super) fn run(context: &Context, file: Option<&Path>) -> Done {
    let file = file.map(std::path::absolute).transpose()?;
    let call = serde_json::to_value(DiffCall { file: file.clone() })?;
    let difference: Value = match answer(block_on(context.relay()?.post(api::DIFF, &call))?)? {
        Some(difference) => {
            context.output.note("against what the running relay has in force:");
            difference
        }
        None => offline(context, file.as_deref())?,
    };
    if context.output.json {
        return Ok(console::json(&difference)?);
    }
    let Shown { changes, flips, tried, stopped } = serde_json::from_value(difference)?;
    if changes.is_empty() {
        context.output.note("nothing changed");
    }
    for change in changes {
        console::line(change)?;
    }
    for Flip { who, call, before, after } in &flips {
        let verdict = |verdict: &Verdict| if verdict.allowed { "allowed" } else { "denied" };
        console::line(format!("{who}: {call}: {} -> {}: {}", verdict(before), verdict(after), after.detail))?;
        if let Some(Closest { rule, missing }) = &after.closest {
            console::line(format!("  closest: {rule:?} needs {}", missing.join(" and ")))?;
        }
    }
    let more = if stopped { "; there are more to try than these" } else { "" };
    context.output.note(format!("{} of {tried} calls tried would be decided otherwise{more}", flips.len()));
    Ok(())
}

fn offline(context: &Context, file: Option<&Path>) -> Result<Value, Failure> {
    let Some(file) = file else {
        let text = "no relay runs here, so there is nothing to compare the configuration with: give a FILE";
        return Err(Failure::new(Exit::Usage, text));
    };
    context.output.note(format!("no relay runs here; against {}:", context.config.display()));
    let old = context.load()?;
    let new = config::load(file).map_err(|errors| Failure {
        exit: Exit::Config,
        lines: std::iter::once(format!("{} is not good", file.display()))
            .chain(errors.iter().map(ToString::to_string))
            .collect(),
    })?;
    Ok(serde_json::to_value(Diff::between((&old.outline, &old.policy), &new, SystemTime::now()))?)
}
