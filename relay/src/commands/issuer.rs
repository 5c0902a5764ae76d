//! `issuer test`: looks at an issuer, and at a token with it, by the code that judges requests: in the running relay, or here where none runs.

use std::time::SystemTime;

use postern_base::console::checks::{Check, Doctor, State};
use postern_base::console::{self, count, span};
use postern_base::secret::Secret;
use postern_gate::token::Issuers;
use postern_gate::token::examine::Examined;

use super::{Context, Done, Exit, Failure, answer, block_on};
use crate::admin::api;
use crate::admin::api::issuer::{IssuerCall, no_such};
use crate::cli;
use crate::settings::Settings;

pub(super) fn run(context: &Context, command: &cli::Issuer) -> Done {
    let cli::Issuer::Test { name, token_file } = command;
    let token = match token_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))?;
            Some(Secret::new(text.trim()))
        }
    };
    let call =
        IssuerCall { name: name.to_string(), token: token.as_ref().map(|token| token.expose().to_owned()) };
    let called = block_on(context.relay()?.post(api::ISSUER, &serde_json::to_value(&call)?))?;
    let answered: Option<Examined> = answer(called)?;
    let is_running = answered.is_some();
    let examined = if let Some(examined) = answered {
        examined
    } else {
        let loaded = context.load()?;
        block_on(examine(&loaded.settings, name.as_str(), token.as_ref().map(Secret::expose)))??
    };
    if context.output.json {
        console::json(&examined)?;
        return if examined.ok { Ok(()) } else { Err(Failure::silent(Exit::Failed)) };
    }
    show(context, examined, is_running)
}

/// Looks from this process.
pub(super) async fn examine(
    settings: &Settings,
    name: &str,
    token: Option<&str>,
) -> Result<Examined, Failure> {
    let now = SystemTime::now();
    let issuers =
        Issuers::new(settings.issuers.clone()).map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    let issuers = issuers.taking_proofs(settings.dpop.clone(), now);
    let no_such = || Failure::new(Exit::Failed, no_such(name, settings));
    issuers.examine(name, token, now).await.ok_or_else(no_such)
}

fn show(context: &Context, examined: Examined, is_running: bool) -> Done {
    let output = context.output;
    let mut doctor = Doctor::new(output);
    if !output.quiet {
        console::line(format!("{}  {}", examined.name, examined.issuer))?;
    }
    for check in examined.checks {
        doctor.add(check)?;
    }
    if !output.quiet {
        for endpoint in &examined.endpoints {
            console::line(format!("  {}: {}", endpoint.name, endpoint.uri))?;
        }
        for key in &examined.keys {
            let kid = key.kid.as_deref().unwrap_or("(no kid)");
            let used = key.algorithm.as_deref().map_or("not used", |_| "used");
            console::line(format!("  key {kid}: {}, {used}", key.says))?;
        }
    }
    let now = postern_base::clock::seconds(SystemTime::now());
    doctor.add(match (&examined.held, is_running) {
        (_, false) => Check::skipped("in the relay", "none runs here; this is what it would find"),
        (None, true) => Check::skipped("in the relay", "it has not fetched keys yet"),
        (Some(held), true) => {
            let age = held.fetched.map_or_else(
                || "never fetched".to_owned(),
                |at| format!("fetched {} ago", span(now.saturating_sub(at))),
            );
            let until = held.usable_until.map_or_else(String::new, |until| {
                format!(", good for {} more if the issuer falls silent", span(until.saturating_sub(now)))
            });
            let text = format!("{}, {age}{until}", count(held.keys, "key"));
            match &held.error {
                None => Check::good("in the relay", text),
                Some(error) => Check::warn("in the relay", format!("{text}; {error}"), "see above"),
            }
        }
    })?;
    if !examined.token.is_empty() && !output.quiet {
        let good = examined.token.iter().filter(|check| check.state == State::Good).count();
        console::line(format!("the token: {good} of {} steps", examined.token.len()))?;
    }
    for check in examined.token {
        doctor.add(check)?;
    }
    doctor.end()
}
