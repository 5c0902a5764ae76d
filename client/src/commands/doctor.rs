//! `doctor`: looks at the way to the relay, and to a service, step by step, and says what to do about the first step that fails. The exit
//! code is that of the cause. JSON: what all doctors give, [`postern_base::console::checks::Report`]. `--bundle` writes the same, and what the relay lists,
//! for others to read; no token is in it.

mod found;
mod upstream;
mod way;

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use postern_base::console::bundle::Bundle;
use postern_base::console::span;
use postern_base::id::ServiceName;
use serde_json::json;

use super::Context;
use super::forward::listed;
use crate::cli;
use crate::failure::{Exit, Failure};
use crate::forward::board;
use crate::output::Output;
use crate::relay_api::problem::lock_fix;
use crate::relay_api::{Catalogue, Service};
use crate::session::now;
use found::Found;

/// Closer than this no two clocks need be: tokens are judged with a leeway of 30 s.
const CLOCK_GOOD: f64 = 5.0;
/// Beyond it tokens and proofs are refused.
const CLOCK_BAD: f64 = 30.0;

pub(super) async fn run(context: &Context, args: cli::health::Doctor, out: &Output) -> Result<u8, Failure> {
    let mut found = Found::default();
    let catalogue = look(context, args.service.as_ref(), &mut found, out).await?;
    if out.json {
        out.json(&found.report());
    } else {
        out.states(&found.text());
    }
    if let Some(path) = &args.bundle {
        bundle(context, &found, catalogue.as_ref(), path)?;
        out.done(&format!(
            "{} holds all of this, and no token; read it before you hand it on",
            path.display()
        ));
    }
    Ok(found.code())
}

/// Step by step, as far as it goes.
async fn look(
    context: &Context,
    service: Option<&ServiceName>,
    found: &mut Found,
    out: &Output,
) -> Result<Option<Catalogue>, Failure> {
    if way::walk(context, found).await?.is_none() {
        return Ok(None);
    }
    let Some(catalogue) = token(context, found).await else {
        clock(context, found).await;
        return Ok(None);
    };
    clock(context, found).await;
    if let Some(name) = service {
        one(context, name, &catalogue, found, out).await?;
    } else {
        all(&catalogue, found);
        found.skipped("upstreams", "not tried (postern doctor SERVICE)");
    }
    Ok(Some(catalogue))
}

/// Whether there is a token and the relay takes it.
async fn token(context: &Context, found: &mut Found) -> Option<Catalogue> {
    let api = &context.relay;
    let asked: Result<Catalogue, Failure> =
        context.tokens.shown(None, Duration::ZERO, |pass| async move { api.services(&pass).await }).await;
    match asked {
        Ok(catalogue) => {
            found.measured("token", span(catalogue.principal.expires.saturating_sub(now())));
            Some(catalogue)
        }
        Err(failure) => {
            found.failed("token", &failure);
            None
        }
    }
}

/// How far this machine's clock is off, by the relay's.
async fn clock(context: &Context, found: &mut Found) {
    let (begin, wall) = (Instant::now(), SystemTime::now());
    let Ok(published) = context.relay.published().await else { return };
    let Some(theirs) = published.time else {
        return found.skipped("clock", "this relay does not tell its time");
    };
    // Half-way between question and answer.
    let ours = (wall + begin.elapsed() / 2).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ahead = ours.as_secs_f64() - Duration::from_millis(theirs).as_secs_f64();
    let shown = format!("{ahead:+.1} s");
    let fix = "set this machine's clock (or tell whoever runs the relay, if this one is right)";
    if ahead.abs() <= CLOCK_GOOD {
        found.measured("clock", shown);
    } else if ahead.abs() <= CLOCK_BAD {
        found.warn("clock", &shown, fix);
    } else {
        found.bad("clock", &shown, Exit::Other, fix);
    }
}

fn all(catalogue: &Catalogue, found: &mut Found) {
    let down: Vec<_> = catalogue.services.iter().filter(|service| !service.up).collect();
    let up = catalogue.services.len() - down.len();
    match &down[..] {
        [] => found.measured("services", format!("{up} up")),
        [first, ..] => {
            let names = down.iter().map(|service| service.name.to_string()).collect::<Vec<_>>().join(", ");
            let fix = format!("try: postern doctor {}", first.name);
            found.warn("services", &format!("{up} up, down: {names}"), fix);
        }
    }
}

/// The way on from the relay: an agent, and the service behind it.
async fn one(
    context: &Context,
    name: &ServiceName,
    catalogue: &Catalogue,
    found: &mut Found,
    out: &Output,
) -> Result<(), Failure> {
    let service = match listed(context, catalogue, name).await {
        Ok(service) => service,
        Err(failure) => {
            found.failed("service", &failure);
            return Ok(());
        }
    };
    if let Some(audience) = service.resource.as_deref() {
        match context.tokens.pass(Some(audience), Duration::ZERO).await {
            Ok(_) => found.good("its own token", audience),
            Err(error) => {
                found.failed("its own token", &error.into());
                return Ok(());
            }
        }
    }
    if !service.up {
        no_agent(service, found);
        return Ok(());
    }
    found.good("agent", service.agents.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    upstream::look(context, service, found, out).await
}

fn no_agent(service: &Service, found: &mut Found) {
    if let Some(lock) = &service.locked {
        return found.bad(
            "agent",
            "locked by the relay's operator",
            Exit::UpstreamDown,
            lock_fix(lock.raw()),
        );
    }
    let since = service.down_since.map(|since| format!(" for {}", span(now().saturating_sub(since))));
    let detail = format!("none serves it{}", since.unwrap_or_default());
    let fix = format!(
        "tell whoever runs {0}: its agent is away or does not offer it (`postern-agent status` there says why)",
        service.name
    );
    found.bad("agent", &detail, Exit::UpstreamDown, fix);
}

fn bundle(
    context: &Context,
    found: &Found,
    catalogue: Option<&Catalogue>,
    path: &Path,
) -> Result<(), Failure> {
    let mut bundle = Bundle::new("postern", env!("CARGO_PKG_VERSION"));
    bundle.json("doctor.json", &found.report());
    bundle.json("services.json", &catalogue);
    bundle.json("forwards.json", &board::posted(&context.settings.dir));
    bundle.json(
        "settings.json",
        &json!({
            "relay": context.relay.url.origin(),
            "profile": context.account.profile.to_string(),
            "directory": context.settings.dir,
            "sessions_in": format!("{:?}", context.settings.keep),
            "token_given": context.settings.token.is_some(),
            "own_roots": context.settings.roots.is_some(),
            "proxy": context.settings.proxy.towards(context.relay.url.host(), context.relay.url.port()).map(ToString::to_string),
        }),
    );
    bundle.write(path).map_err(|error| {
        let named = error.to_string();
        let is_named = error.kind() == ErrorKind::AlreadyExists;
        let message = if is_named { named } else { format!("{}: {error}", path.display()) };
        Failure::new(Exit::Other, message).fix("choose another name for --bundle")
    })
}

#[cfg(test)]
#[path = "doctor/tests.rs"]
mod tests;
