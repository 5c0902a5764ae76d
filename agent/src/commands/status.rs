//! `status`: how the running agent stands, in 80 columns or as JSON.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use postern_base::console::checks::{print, span, wrapped};
use postern_base::console::{self, Done, time};

use super::{Context, answer, block_on};
use crate::admin;
use crate::admin::status::{CertificateStatus, Happened, Status};

/// A clock that is off by more is worth a mark; certificates and tokens forgive five minutes.
const CLOCK: u64 = 30_000;
const WARN: &str = "\x1b[33m!\x1b[0m";
const BAD: &str = "\x1b[31m✗\x1b[0m";

pub(super) fn run(context: &Context) -> Done {
    let agent = context.agent()?;
    let status: Status = answer(block_on(agent.get(admin::STATUS))?)?;
    if context.output.json {
        return Ok(console::json(&status)?);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(print(text(&status, now.as_secs()).trim_end())?)
}

/// As a terminal shows it; `now` in seconds since the epoch.
fn text(status: &Status, now: u64) -> String {
    let mut text = String::new();
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let ago = |at: u64| span(Duration::from_secs(now.saturating_sub(at)));
    let usable = status.tunnels.iter().filter(|tunnel| tunnel.usable).count();
    say(&wrapped(&format!("agent {}, instance {}", status.agent, status.instance)));
    say(&format!(
        "  version {}, up for {}, {} of {} tunnels usable, {} request(s) under way",
        status.version,
        ago(status.started),
        usable,
        status.tunnels_wanted,
        status.requests_in_flight
    ));
    if status.draining {
        say(&format!("{WARN} draining: it ends when it has finished"));
    }
    if let Some(since) = status.suspended {
        let what = format!(
            "suspended for {}; at the relay: postern-relay agent resume {}",
            ago(since),
            status.agent
        );
        say(&format!("{BAD} {}", wrapped(&what)));
    }

    say("\nRELAY                             LINK  RTT        AGE      STATE");
    for tunnel in &status.tunnels {
        let trip = tunnel.round_trip_ms.map_or_else(|| "-".to_owned(), |trip| format!("{trip:.1} ms"));
        let state = if tunnel.usable { "usable" } else { "not usable" };
        let row = [fit(&tunnel.relay, 32), fit(&tunnel.link, 4), fit(&trip, 9), fit(&ago(tunnel.since), 7)];
        say(&format!("{}  {state}", row.join("  ")));
    }
    for relay in &status.relays {
        if !status.tunnels.iter().any(|tunnel| tunnel.relay == *relay) {
            say(&format!("{BAD} {}", wrapped(&format!("no tunnel to {relay}: run: postern-agent doctor"))));
        }
    }

    say("");
    for line in certificate(&status.certificate, now) {
        say(&line);
    }
    say(&clock(status.clock_offset_ms));

    say("\nSERVICE                   KIND  UPSTREAM                         HEALTH");
    for service in &status.services {
        let mut upstream = service.upstreams.first().cloned().unwrap_or_default();
        if service.upstreams.len() > 1 {
            upstream = format!("{} +{}", cut(&upstream, 27), service.upstreams.len() - 1);
        }
        let health = match (service.checked, service.healthy) {
            (true, true) => "healthy",
            (true, false) => "down",
            (false, _) => "not checked",
        };
        let row = [fit(service.name.as_str(), 24), fit(&service.kind, 4), fit(&upstream, 31)];
        say(&format!("{}  {health}", row.join("  ")));
        for refused in &service.refused {
            say(&format!(
                "{BAD} {}",
                wrapped(&plain(&format!("{} refuses it: {}", refused.relay, refused.reason)))
            ));
        }
        if let Some(what) = &service.last_error {
            say(&error(what, now));
        }
    }
    if status.services.is_empty() {
        say("none: add one with: postern-agent service add NAME UPSTREAM");
    }
    for issuer in status.issuers.iter().filter(|issuer| !issuer.usable) {
        let why = issuer.error.as_deref().unwrap_or("its keys were never fetched");
        say(&format!("{BAD} {}", wrapped(&plain(&format!("issuer {}: {why}", issuer.name)))));
    }
    if let Some(what) = &status.last_error {
        say(&format!("\n{}", error(what, now)));
    }
    text
}

fn certificate(certificate: &CertificateStatus, now: u64) -> Vec<String> {
    let end = certificate.not_after;
    let left = Duration::from_secs(end.saturating_sub(now));
    let mut lines = Vec::new();
    if end <= now {
        lines.push(format!("{BAD} certificate ended {}", time(end)));
    } else {
        lines.push(format!("certificate  until {}, for {}", time(end), span(left)));
    }
    lines.push(match certificate.next_renewal {
        Some(next) => format!(
            "  renewed next {}, in {}",
            time(next),
            span(Duration::from_secs(next.saturating_sub(now)))
        ),
        None => "  made elsewhere: not renewed by the relay".to_owned(),
    });
    if certificate.failures > 0 {
        lines.push(format!("{WARN} {} failed renewal(s)", certificate.failures));
        lines.extend(certificate.last_error.iter().map(|what| error(what, now)));
    }
    lines
}

fn clock(offset: Option<i64>) -> String {
    let Some(offset) = offset else { return "clock        not compared with the relay's yet".to_owned() };
    let which = if offset < 0 { "behind" } else { "ahead of" };
    let mark = if offset.unsigned_abs() > CLOCK {
        format!("  {WARN} let it keep time (NTP)")
    } else {
        String::new()
    };
    let by = Duration::from_millis(offset.unsigned_abs()).as_secs_f64();
    format!("clock        {by:.1} s {which} the relay's{mark}")
}

fn error(what: &Happened, now: u64) -> String {
    let ago = span(Duration::from_secs(now.saturating_sub(what.at)));
    format!("{WARN} {}", wrapped(&plain(&format!("last error, {ago} ago: {}", what.error))))
}

/// What came from elsewhere does not steer the terminal.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// At most so many columns; what is cut off ends in an ellipsis.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Exactly so many columns.
fn fit(text: &str, width: usize) -> String {
    let mut cell = cut(&plain(text), width);
    // Writing to a String does not fail.
    let _ = write!(cell, "{:1$}", "", width - cell.chars().count());
    cell
}

#[cfg(test)]
mod tests;
