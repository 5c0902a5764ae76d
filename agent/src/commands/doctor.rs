//! `doctor`: looks at everything between this agent's file and its upstreams, in the order in which things are needed, and says what to do
//! about each that is not good. With and without a running agent; what only that one can try, it tries itself.

use std::path::Path;
use std::time::SystemTime;

use postern_base::admin::{Client, ClientError, socket_path};
use postern_base::console::bundle::{Bundle, unquoted};
use postern_base::console::checks::{Check, Doctor, State};
use postern_base::console::{Done, Exit, Failure};
use serde_json::json;

use super::{Context, block_on};
use crate::admin;
use crate::admin::checks;
use crate::admin::status::Status;
use crate::config::Loaded;
use crate::settings::Settings;
use crate::upstream::health::Health;
use crate::verify::Verifier;

mod own;
mod relay;
mod running;

/// What a bundle is made of, beside the checks.
#[derive(Default)]
struct Seen {
    loaded: Option<Loaded>,
    status: Option<Status>,
}

pub(super) fn run(context: &Context, bundle: Option<&Path>) -> Done {
    if let Some(path) = bundle.filter(|path| path.symlink_metadata().is_ok()) {
        let text = format!("{} is there already: choose another name", path.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    let mut doctor = Doctor::new(context.output);
    let seen = block_on(look(context, &mut doctor))??;
    if let Some(path) = bundle {
        pack(context, &doctor, &seen).write(path)?;
        let what = format!("{} is written; look through it before you pass it on", path.display());
        context.output.note(what);
    }
    doctor.end()
}

async fn look(context: &Context, doctor: &mut Doctor) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let (found, loaded) = own::configuration(context);
    for check in found {
        doctor.add(check)?;
    }
    let Some(loaded) = loaded else {
        doctor.add(Check::skipped("everything else", "it needs a configuration that is good"))?;
        return Ok(seen);
    };
    let settings = loaded.settings.clone();
    seen.loaded = Some(loaded);
    doctor.add(own::state(&settings))?;
    let (check, identity) = own::identity(&settings);
    doctor.add(check)?;

    let client = Client::new(socket_path(&settings.state));
    let status = status(&client).await;
    for check in running::checks(&status) {
        doctor.add(check)?;
    }
    seen.status = status.ok();
    let status = seen.status.as_ref();
    if let Some(identity) = &identity {
        doctor.add(own::certificate(identity, status, SystemTime::now()))?;
    }

    let mut clock = status.and_then(|status| status.clock_offset_ms);
    for relay in &settings.relays {
        // Two handshakes are large.
        let found = Box::pin(relay::look(relay, &settings, identity.as_ref(), status)).await;
        for check in found.checks {
            doctor.add(check)?;
        }
        clock = clock.or(found.clock);
    }
    doctor.add(own::clock(clock))?;

    let tried = match status {
        Some(_) => client.post(admin::CHECKS, &json!({})).await.ok(),
        None => None,
    };
    let tried: Option<Vec<Check>> = tried.and_then(|tried| serde_json::from_value(tried).ok());
    let tried = match tried {
        Some(tried) => tried,
        None => upstreams(&settings).await,
    };
    for check in tried {
        doctor.add(check)?;
    }
    Ok(seen)
}

async fn status(client: &Client) -> Result<Status, ClientError> {
    let status = client.get(admin::STATUS).await?;
    serde_json::from_value(status).map_err(|e| ClientError::Broken(e.to_string()))
}

/// What the agent would try, tried from here.
async fn upstreams(settings: &Settings) -> Vec<Check> {
    // A secret of the service manager's is not to be had here.
    let fix = "start the agent and run this again: it may have the secret that this command does not";
    let health = match Health::new(settings) {
        Ok(health) => health,
        Err(e) => return vec![Check::warn("upstreams", e.to_string(), fix)],
    };
    let verifier = settings.verification.as_ref().map(|verify| Verifier::new(verify, SystemTime::now()));
    let (verifier, failed) = match verifier.transpose() {
        Ok(verifier) => (verifier, None),
        Err(problem) => (None, Some(Check::warn("issuers", problem.to_string(), fix))),
    };
    let mut found = checks::of(&health, verifier.as_ref()).await;
    found.extend(failed);
    found
}

/// Without secrets: of a configuration that is not good, only what is wrong with it, and that without what it quotes.
fn pack(context: &Context, doctor: &Doctor, seen: &Seen) -> Bundle {
    let mut bundle = Bundle::new("postern-agent", env!("CARGO_PKG_VERSION"));
    let mut report = doctor.report().clone();
    for check in report.checks.iter_mut().filter(|check| check.name == own::CONFIGURATION) {
        if check.state != State::Good {
            check.detail = unquoted(&check.detail);
        }
    }
    bundle.json("doctor.json", &report);
    if let Some(status) = &seen.status {
        bundle.json("status.json", status);
    }
    // Not the file again where it was not good: a secret may stand where none belongs.
    if seen.loaded.is_some()
        && let Ok(text) = std::fs::read_to_string(&context.config)
    {
        bundle.toml("agent.toml", &text);
    }
    bundle
}
