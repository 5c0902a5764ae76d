//! `status`: how the running agent stands, for people or as JSON.

use std::time::{Duration, SystemTime};

use postern_base::clock::seconds;
use postern_base::console::checks::{State, clean, marked, print};
use postern_base::console::{self, Done, count, milliseconds, span, time};

use super::{Context, answer, block_on};
use crate::admin;
use crate::admin::status::{CertificateStatus, Happened, ServiceStatus, Status};
use crate::tunnel::clock::{Off, off};

pub(super) fn run(context: &Context) -> Done {
    let agent = context.agent()?;
    let status: Status = answer(block_on(agent.get(admin::STATUS))?)?;
    if context.output.json {
        return Ok(console::json(&status)?);
    }
    Ok(shown(&status, seconds(SystemTime::now())).iter().try_for_each(|line| print(line))?)
}

/// As a terminal shows it, in colour; `now` in seconds since the epoch.
fn shown(status: &Status, now: u64) -> Vec<String> {
    let mut lines = agent(status, now);
    for part in [tunnels(status, now), certificate(&status.certificate, now)] {
        lines.push(String::new());
        lines.extend(part);
    }
    lines.push(clock(status.clock_offset_ms));
    lines.push(String::new());
    lines.extend(services(&status.services, now));
    for issuer in status.issuers.iter().filter(|issuer| !issuer.usable) {
        let why = issuer.error.as_deref().unwrap_or("its keys were never fetched");
        lines.push(marked(State::Bad, &format!("issuer {}: {why}", issuer.name)));
    }
    lines.extend(status.last_error.iter().map(|what| error(what, now)));
    lines
}

fn agent(status: &Status, now: u64) -> Vec<String> {
    let usable = status.tunnels.iter().filter(|tunnel| tunnel.usable).count();
    let mut lines = vec![
        clean(&format!("agent {}, instance {}", status.agent, status.instance)),
        format!(
            "  version {}, up {}, {usable} of {} tunnels usable, {} under way",
            status.version,
            span(now.saturating_sub(status.started)),
            status.tunnels_wanted,
            count(status.requests_in_flight, "request")
        ),
    ];
    if status.draining {
        lines.push(marked(State::Warn, "draining: it ends when it has finished"));
    }
    if let Some(since) = status.suspended {
        let (ago, name) = (span(now.saturating_sub(since)), &status.agent);
        let text = format!("suspended for {ago}; at the relay: postern-relay agent resume {name}");
        lines.push(marked(State::Bad, &text));
    }
    lines
}

fn tunnels(status: &Status, now: u64) -> Vec<String> {
    let rows: Vec<Vec<String>> = status
        .tunnels
        .iter()
        .map(|tunnel| {
            vec![
                tunnel.relay.clone(),
                tunnel.link.clone(),
                tunnel.round_trip_us.map_or_else(|| "-".to_owned(), milliseconds),
                span(now.saturating_sub(tunnel.since)),
                if tunnel.usable { "usable" } else { "not usable" }.to_owned(),
            ]
        })
        .collect();
    let mut lines = console::fitted(&["RELAY", "LINK", "RTT", "AGE", "STATE"], &rows, &[0]);
    let without = |relay: &&String| !status.tunnels.iter().any(|tunnel| tunnel.relay == **relay);
    lines.extend(
        status
            .relays
            .iter()
            .filter(without)
            .map(|relay| marked(State::Bad, &format!("no tunnel to {relay}: run: postern-agent doctor"))),
    );
    lines
}

fn certificate(certificate: &CertificateStatus, now: u64) -> Vec<String> {
    let end = certificate.not_after;
    let mut lines = vec![if end <= now {
        marked(State::Bad, &format!("certificate ended {}", time(end)))
    } else {
        format!("certificate  until {}, for {}", time(end), span(end - now))
    }];
    lines.push(match certificate.next_renewal {
        Some(next) => format!("  renewed next {}, in {}", time(next), span(next.saturating_sub(now))),
        None => "  made elsewhere: not renewed by the relay".to_owned(),
    });
    if certificate.failures > 0 {
        lines.push(marked(State::Warn, &count(certificate.failures, "failed renewal")));
        lines.extend(certificate.last_error.iter().map(|what| error(what, now)));
    }
    lines
}

fn clock(offset: Option<i64>) -> String {
    let Some(offset) = offset else { return "clock        not compared with the relay's yet".to_owned() };
    let which = if offset < 0 { "behind" } else { "ahead of" };
    let by = Duration::from_millis(offset.unsigned_abs()).as_secs_f64();
    let text = format!("{by:.1} s {which} the relay's");
    match off(offset) {
        Off::Little => format!("clock        {text}"),
        Off::Noticed => marked(State::Warn, &format!("clock {text}: let it keep time (NTP)")),
        Off::TooFar => marked(State::Bad, &format!("clock {text}: let it keep time (NTP)")),
    }
}

fn services(services: &[ServiceStatus], now: u64) -> Vec<String> {
    if services.is_empty() {
        return vec!["no services yet: postern-agent service add NAME UPSTREAM".to_owned()];
    }
    let rows: Vec<Vec<String>> = services
        .iter()
        .map(|service| {
            let health = match (service.checked, service.healthy) {
                (true, true) => "healthy",
                (true, false) => "down",
                (false, _) => "not checked",
            };
            vec![
                service.name.to_string(),
                service.kind.clone(),
                health.to_owned(),
                service.upstreams.join(" "),
            ]
        })
        .collect();
    let mut lines = console::fitted(&["SERVICE", "KIND", "HEALTH", "UPSTREAM"], &rows, &[0, 3]);
    for service in services {
        for refused in &service.refused {
            let text = format!("{}: {} refuses it: {}", service.name, refused.relay, refused.reason);
            lines.push(marked(State::Bad, &text));
        }
        if let Some(what) = &service.last_error {
            lines.push(marked(State::Warn, &format!("{}: {}", service.name, told(what, now))));
        }
    }
    lines
}

fn error(what: &Happened, now: u64) -> String {
    marked(State::Warn, &told(what, now))
}

fn told(what: &Happened, now: u64) -> String {
    format!("last error, {} ago: {}", span(now.saturating_sub(what.at)), what.error)
}

#[cfg(test)]
mod tests;
