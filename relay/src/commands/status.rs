//! `status`: what the running relay holds, and what is missing.

use std::time::SystemTime;

use postern_base::console::checks::{Check, print};
use postern_base::console::{self, count, milliseconds, span, time};

use super::{Context, Done, answer, block_on, not_running};
use crate::admin::api;
use crate::admin::api::status::{ServiceView, Status, TunnelView};

/// Before the public certificate's end a line says so from here on; whatever renews it has had its chances by then.
const NAG: u64 = 14 * 86_400;

pub(super) fn run(context: &Context) -> Done {
    let relay = context.relay()?;
    let status: Status = answer(block_on(relay.get(api::STATUS))?)?.ok_or_else(not_running)?;
    if context.output.json {
        return Ok(console::json(&status)?);
    }
    let now = postern_base::clock::seconds(SystemTime::now());
    Ok(shown(&status, now).iter().try_for_each(|line| print(line))?)
}

/// As a terminal shows it, in colour.
fn shown(status: &Status, now: u64) -> Vec<String> {
    let state = match (status.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let (up, work) = (span(now.saturating_sub(status.started)), &status.work);
    let mut lines = vec![
        format!("{}  {}", status.url, coloured(state)),
        format!("  version {}, up {up} (since {})", status.version, time(status.started)),
        format!("  {}", status.config.display()),
        format!(
            "  {} ({}), {}, {}, {}",
            count(work.requests, "request"),
            count(work.streams, "live stream"),
            count(work.connections, "connection"),
            count(work.tunnels, "tunnel"),
            count(status.locks, "lock")
        ),
        String::new(),
    ];
    for part in [tunnels(&status.tunnels, now), services(&status.services, now), issuers(status, now)] {
        lines.extend(part);
        lines.push(String::new());
    }
    let audit = &status.audit;
    let written = audit.lines.map_or_else(String::new, |lines| format!(", {}", count(lines, "line")));
    lines.push(format!("audit log: {}{written}", if audit.healthy { "healthy" } else { "failing" }));
    lines.extend(nags(status, now).iter().map(Check::text));
    lines
}

fn coloured(state: &str) -> String {
    let colour = match state {
        "ready" => 32,
        "draining" => 33,
        _ => 31,
    };
    format!("\x1b[{colour}m{state}\x1b[0m")
}

fn tunnels(tunnels: &[TunnelView], now: u64) -> Vec<String> {
    if tunnels.is_empty() {
        return vec!["no agent has a tunnel; see: postern-relay agent ls".to_owned()];
    }
    let rows: Vec<Vec<String>> = tunnels
        .iter()
        .map(|tunnel| {
            let state = match (tunnel.usable, tunnel.late) {
                (true, false) => "up",
                (true, true) => "late",
                (false, _) => "closed",
            };
            // The end tells instances of one agent apart; `agent ls` has the whole.
            let skipped = tunnel.instance.chars().count().saturating_sub(6);
            let instance: String = tunnel.instance.chars().skip(skipped).collect();
            vec![
                tunnel.agent.to_string(),
                instance,
                tunnel.link.clone(),
                tunnel.round_trip_us.map_or_else(|| "-".to_owned(), milliseconds),
                span(now.saturating_sub(tunnel.since)),
                tunnel.certificate.as_ref().map_or_else(|| "-".to_owned(), |one| left(one.not_after, now)),
                tunnel.load.to_string(),
                state.to_owned(),
                tunnel.address.ip().to_canonical().to_string(),
            ]
        })
        .collect();
    let heading = ["AGENT", "INST", "LINK", "RTT", "AGE", "CERT", "LOAD", "STATE", "FROM"];
    console::fitted(&heading, &rows, &[0, 8])
}

fn services(services: &[ServiceView], now: u64) -> Vec<String> {
    if services.is_empty() {
        return vec!["no services yet: postern-relay service add, or relay.toml".to_owned()];
    }
    let rows: Vec<Vec<String>> = services
        .iter()
        .map(|service| {
            let state = match service.down_since {
                _ if service.up => "up".to_owned(),
                Some(since) => format!("down for {}", span(now.saturating_sub(since))),
                None => "down".to_owned(),
            };
            let agents: Vec<_> = service
                .agents
                .iter()
                .map(|one| format!("{}{}", if one.missing.is_some() { "-" } else { "+" }, one.agent))
                .collect();
            vec![service.name.to_string(), service.kind.clone(), state, agents.join(" ")]
        })
        .collect();
    let heading = ["SERVICE", "KIND", "STATE", "AGENTS (+ serves, - does not)"];
    let mut lines = console::fitted(&heading, &rows, &[0, 3]);
    for service in services {
        for one in &service.agents {
            if let Some(missing) = one.missing {
                let (what, fix) = missing.told(&one.agent, &service.name);
                let name = service.name.to_string();
                let check =
                    if service.up { Check::warn(name, what, fix) } else { Check::bad(name, what, fix) };
                lines.push(check.text());
            }
        }
    }
    lines
}

fn issuers(status: &Status, now: u64) -> Vec<String> {
    let rows: Vec<Vec<String>> = status
        .issuers
        .iter()
        .map(|issuer| {
            vec![
                issuer.name.to_string(),
                if issuer.usable { "usable" } else { "unusable" }.to_owned(),
                issuer.keys.map_or_else(|| "asked".to_owned(), |keys| keys.to_string()),
                issuer.fetched.map_or_else(|| "-".to_owned(), |at| span(now.saturating_sub(at))),
                issuer.usable_until.map_or_else(|| "-".to_owned(), |until| left(until, now)),
            ]
        })
        .collect();
    console::fitted(&["ISSUER", "STATE", "KEYS", "FETCHED", "GOOD FOR"], &rows, &[0])
}

/// What somebody has to do something about.
fn nags(status: &Status, now: u64) -> Vec<Check> {
    let mut nags = Vec::new();
    for issuer in &status.issuers {
        if let Some(error) = &issuer.error {
            let fix = format!("postern-relay issuer test {}", issuer.name);
            let check = if issuer.usable { Check::warn } else { Check::bad };
            nags.push(check(format!("issuer {}", issuer.name), error.clone(), fix));
        }
    }
    let audit = &status.audit;
    if audit.room != "enough" {
        let text = if audit.room == "gone" {
            "nothing more fits"
        } else {
            "its disk is full, the reserve is being used"
        };
        nags.push(Check::bad("audit log", text, "make room on its disk"));
    }
    if audit.lost > 0 {
        let text = format!("{} lines were lost for want of room since the start", audit.lost);
        nags.push(Check::warn("audit log", text, "see the gap it tells of: postern-relay audit verify"));
    }
    for warning in &status.authority.warnings {
        // They say themselves what to do.
        nags.push(Check { fix: None, ..Check::warn("agents' authority", warning.clone(), "") });
    }
    let ends = status.certificate.as_ref().map(|certificate| certificate.not_after);
    if let Some(ends) = ends.filter(|ends| ends.saturating_sub(now) < NAG) {
        let fix = "renew it; the relay takes up the new file by itself";
        nags.push(Check::warn("public certificate", format!("it ends in {}", left(ends, now)), fix));
    }
    if let Some(last) = &status.last_error {
        let text = format!("{} ago: {}", span(now.saturating_sub(last.time)), last.text);
        let check = Check::warn(if last.is_error { "last error" } else { "last warning" }, text, "");
        nags.push(Check { fix: None, ..check });
    }
    nags
}

/// How long something still lasts.
fn left(until: u64, now: u64) -> String {
    if until <= now { "over".to_owned() } else { span(until - now) }
}

#[cfg(test)]
mod tests;
