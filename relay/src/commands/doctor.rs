//! `doctor`: looks for what does not work and says how to mend it, one line per check. Looks at the files here, at the public address as callers
//! and agents do, at the issuers, and at what the running relay says; without one it says what could not be looked at.

use std::path::Path;
use std::time::SystemTime;

use postern_base::admin::ClientError;
use postern_base::console::bundle::{Bundle, unquoted};
use postern_base::console::checks::{Check, Doctor, State};
use postern_base::console::count;
use postern_base::telemetry::recent::Warning;
use postern_gate::token::examine::Examined;
use serde_json::Value;

use super::{Context, Done, Exit, Failure, answer, block_on, enrollment, issuer};
use crate::admin::api;
use crate::admin::api::status::Status;
use crate::cli;
use crate::config;
use crate::enroll::{CaReport, Standing};
use crate::settings::Settings;

mod here;
mod live;
mod reach;
mod veil;

pub(super) fn run(context: &Context, args: &cli::Doctor) -> Done {
    if let Some(path) = args.bundle.as_deref().filter(|path| path.symlink_metadata().is_ok()) {
        let text = format!("{}: it is there already; choose another name", path.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    block_on(examine(context, args))?
}

async fn examine(context: &Context, args: &cli::Doctor) -> Done {
    let mut doctor = Doctor::new(context.output);
    let loaded = config::load(&context.config);
    match &loaded {
        Ok(loaded) => {
            let services = loaded.settings.services.len();
            let text = format!("{} is good, with {}", context.config.display(), count(services, "service"));
            doctor.add(Check::good("configuration", text))?;
            for warning in &loaded.warnings {
                doctor.add(Check { fix: None, ..Check::warn("configuration", warning.clone(), "") })?;
            }
        }
        Err(errors) => {
            for error in errors {
                // The first line names file and place; what is quoted below may be anything.
                let text = error.to_string();
                let text = text.lines().next().unwrap_or_default();
                let fix = format!("postern-relay config check -c {}", context.config.display());
                doctor.add(Check::bad("configuration", unquoted(text), fix))?;
            }
        }
    }
    let status = asked(context, &mut doctor).await?;
    if let Ok(loaded) = &loaded {
        let settings = &loaded.settings;
        for check in here::state(settings) {
            doctor.add(check)?;
        }
        let authority = match &status {
            Some(status) => Some(status.authority.clone()),
            None => enrollment(settings).ok().map(|enrollment| enrollment.ca_report(SystemTime::now())),
        };
        for check in authority_checks(authority.as_ref()) {
            doctor.add(check)?;
        }
        outside(&mut doctor, settings, authority.as_ref(), status.is_some()).await?;
        for one in &settings.issuers {
            for check in issuer_checks(&issuer::examine(settings, one.name.as_str(), None).await?) {
                doctor.add(check)?;
            }
        }
    } else {
        let why = "the configuration must be good first";
        for name in ["state directory", "public address", "issuers"] {
            doctor.add(Check::skipped(name, why))?;
        }
    }
    match &status {
        None => doctor.add(Check::skipped("agents and services", "no relay runs here"))?,
        Some(status) => {
            let ttl = loaded.as_ref().ok().map(|loaded| loaded.settings.agents.cert_ttl);
            for check in live::checks(context, status, ttl).await? {
                doctor.add(check)?;
            }
        }
    }
    if let Some(service) = &args.service {
        for check in live::upstreams(context, service, status.is_some()).await? {
            doctor.add(check)?;
        }
    } else {
        doctor.add(Check::skipped("upstreams", "not tried (postern-relay doctor SERVICE)"))?;
    }
    if let Some(path) = &args.bundle {
        let warnings = if status.is_some() {
            answer(context.relay()?.get(api::WARNINGS).await)?.unwrap_or_default()
        } else {
            Vec::new()
        };
        write_bundle(path, context, &doctor, status.as_ref(), &warnings)?;
        context.output.note(format!("wrote {}: look through it before you hand it on", path.display()));
    }
    doctor.end()
}

/// What the running relay says of itself.
async fn asked(context: &Context, doctor: &mut Doctor) -> Result<Option<Status>, Failure> {
    let Ok(relay) = context.relay() else {
        let why = "the configuration does not say where its state directory is";
        doctor.add(Check::skipped("relay", why))?;
        return Ok(None);
    };
    let check = match relay.get(api::STATUS).await {
        Ok(value) => {
            let status: Status = serde_json::from_value(value)?;
            let text = format!("version {} runs here for {}", status.version, status.url);
            let check = if status.draining {
                Check::warn("relay", format!("{text}, and is draining"), "start it again once it has ended")
            } else if status.ready {
                Check::good("relay", text)
            } else {
                Check::bad(
                    "relay",
                    format!("{text}, and is not ready"),
                    "see the audit log's line below, and its log",
                )
            };
            doctor.add(check)?;
            return Ok(Some(status));
        }
        Err(ClientError::NotRunning) => {
            Check::warn("relay", "none runs here", "start it: postern-relay run, or its service")
        }
        Err(e @ ClientError::NotAllowed { .. }) => {
            Check::bad("relay", e.to_string(), "sudo postern-relay doctor, or as the relay's user")
        }
        Err(e) => Check::bad("relay", e.to_string(), "see its log, and restart it if it hangs"),
    };
    doctor.add(check)?;
    Ok(None)
}

async fn outside(
    doctor: &mut Doctor,
    settings: &Settings,
    authority: Option<&CaReport>,
    is_running: bool,
) -> Result<(), Failure> {
    let (checks, addresses) = reach::name(settings).await;
    for check in checks {
        doctor.add(check)?;
    }
    if !is_running {
        let why = "no relay runs here that could answer";
        for name in ["callers' way (TCP)", "agents' way (UDP)", "agents' way (TCP)"] {
            doctor.add(Check::skipped(name, why))?;
        }
        return Ok(());
    }
    for check in reach::callers(settings, &addresses).await {
        doctor.add(check)?;
    }
    let issues = authority.is_some_and(|authority| authority.source != Standing::Elsewhere);
    let pins = authority.filter(|_| issues).map(live::pins).unwrap_or_default();
    for check in reach::agents(settings, &addresses, &pins).await {
        doctor.add(check)?;
    }
    Ok(())
}

fn authority_checks(authority: Option<&CaReport>) -> Vec<Check> {
    let Some(authority) = authority else {
        let fix = "postern-relay ca show says more";
        return vec![Check::bad("agents' authority", "it cannot be looked at", fix)];
    };
    if authority.warnings.is_empty() {
        let text = format!("epoch {}, nothing to do", authority.epoch);
        return vec![Check::good("agents' authority", text)];
    }
    let fix = |warning: &String| {
        let key = authority.root_key.as_ref().map(|path| path.display().to_string());
        match key.filter(|key| warning.contains(key)) {
            Some(key) => {
                format!("move {key} to a safe place; later: postern-relay ca rotate --root-key FILE")
            }
            None => "postern-relay ca show".to_owned(),
        }
    };
    let warned = authority.warnings.iter();
    warned.map(|text| Check::warn("agents' authority", text.clone(), fix(text))).collect()
}

/// One line where all is well, else those that are not.
fn issuer_checks(examined: &Examined) -> Vec<Check> {
    let name = format!("issuer {}", examined.name);
    let mut checks: Vec<_> = examined
        .checks
        .iter()
        .filter(|check| matches!(check.state, State::Bad | State::Warn))
        .map(|check| Check { name: format!("{name}, {}", check.name), ..check.clone() })
        .collect();
    if checks.is_empty() {
        let keys = examined.keys.iter().filter(|key| key.algorithm.is_some()).count();
        let clock = examined.clock_ahead_ms.map_or_else(String::new, |ms| {
            format!(
                ", clock {}{}.{} s",
                if ms < 0 { "-" } else { "+" },
                ms.abs() / 1000,
                ms.abs() % 1000 / 100
            )
        });
        checks.push(Check::good(name, format!("{}{clock}", count(keys, "key"))));
    }
    checks
}

fn write_bundle(
    path: &Path,
    context: &Context,
    doctor: &Doctor,
    status: Option<&Status>,
    warnings: &[Warning],
) -> Done {
    let mut bundle = Bundle::new("postern-relay", env!("CARGO_PKG_VERSION"));
    bundle.json("doctor.json", &veil::json(serde_json::to_value(doctor.report())?));
    bundle.json("status.json", &veil::json(serde_json::to_value(status)?));
    bundle.json("warnings.json", &veil::json(serde_json::to_value(warnings)?));
    // Of a file that does not pass its checks nobody can say what is a secret in it.
    if config::load(&context.config).is_ok() {
        for (name, text) in veil::configuration(&context.config) {
            bundle.toml(&name, &text);
        }
    } else {
        bundle.json("configuration.json", &Value::from("left out: it does not pass its checks"));
    }
    Ok(bundle.write(path)?)
}
