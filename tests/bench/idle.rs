//! The mode `idle`: what a tunnel that carries nothing costs the relay in memory, all state included: the resident memory of a relay
//! with N agents enrolled and connected, less that of one with none of either, divided by N. Both are freshly started.

use std::time::Duration;

use anyhow::Result;
use postern_tests::stand::say;

use crate::Options;
use crate::figures::{Samples, Spread};
use crate::fleet::{self, Fleet, NAME};
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::config::{Extra, rule};
use crate::site::{Ground, Site};

/// Memory has no event to wait for: after so long every tunnel has had a heartbeat and a keep-alive, and the allocator has given back
/// what the handshakes needed.
const SETTLE: Duration = Duration::from_secs(12);
const MEMORY: &str = "relay RSS KiB";
const EACH: &str = "KiB per tunnel";

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    let relay = format!("[services.shared]\nagent = \"{NAME}\"\n{}\n", rule("GET /**"));
    let extra = Extra { relay, ..Extra::default() };
    let mut site = Site::start(Ground::new()?, cores, &extra).await?;
    site.stop_agent().await?;
    let mut samples = Samples::default();
    let none = "no agents";
    for round in 1..=options.rounds {
        site.restart_relay().await?;
        let memory = settled(&site).await?;
        say(&format!("round {round} of {}: {none}: {memory:.0} KiB", options.rounds));
        samples.add(none, MEMORY, memory);
    }
    let members = fleet::enrol(&site, options.agents).await?;
    let all = format!("{} agents", options.agents);
    let before = samples.median(none, MEMORY).unwrap_or_default();
    for round in 1..=options.rounds {
        site.restart_relay().await?;
        let fleet = Fleet::start(&site, &members, |_| vec!["shared".to_owned()]).await?;
        let memory = settled(&site).await?;
        // All of them must still be there, or it was not their memory.
        fleet.all_usable().await?;
        let each = (memory - before) / f64::from(options.agents);
        say(&format!("round {round} of {}: {all}: {memory:.0} KiB, {each:.1} KiB each", options.rounds));
        samples.add(&all, MEMORY, memory);
        samples.add(&all, EACH, each);
    }
    let each = Spread::of(samples.values(&all, EACH).iter().copied()).map(|spread| spread.median);
    Ok(Report {
        mode: "idle",
        about: format!(
            "resident memory of a fresh relay, {} s after the last of {} agents was usable over QUIC, each its own enrolment and connection; {} rounds",
            SETTLE.as_secs(),
            options.agents,
            options.rounds
        ),
        tables: vec![vec![(MEMORY, 0), (EACH, 1)]],
        samples,
        notes: Vec::new(),
        ratios: vec![Ratio::at_most("idle_tunnel_kib", each, 64.0, Some(45.0))],
        failures: Vec::new(),
    })
}

/// The relay's resident memory in KiB, once it has come to rest.
pub(crate) async fn settled(site: &Site) -> Result<f64> {
    tokio::time::sleep(SETTLE).await;
    Ok(crate::contest::mib(site.relay.memory()?.now) * 1024.0)
}
