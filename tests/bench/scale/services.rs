//! From ten services, each with a rule of its own, to ten thousand: a relay for each size, at work at the same time, asked in turn.
//! Requests go to all services alike, so that no cache of the processor holds what one service needs.

use std::path::PathBuf;

use anyhow::Result;
use rand::seq::SliceRandom;

use super::{EACH, IDLE};
use crate::Options;
use crate::contest::{Part, RELAY, Score, order};
use crate::fleet::{self, Fleet, NAME};
use crate::idle::settled;
use crate::load::CONNECTIONS;
use crate::load::wrk::{self, Ask};
use crate::site::config::{Extra, rule};
use crate::site::{Ground, Site};

pub(super) const SIZES: [u32; 3] = [10, 1_000, 10_000];
/// A hello names at most some thousands of services: they are shared out between so many agents.
const AGENTS: u32 = 10;
const WARM_UP: u32 = 1;

pub(super) fn name(size: u32) -> String {
    format!("{size} services")
}

fn service(index: u32) -> String {
    format!("s{index:05}")
}

/// One relay with its services.
struct Shop {
    // Dropped first: agents leave before their relay.
    _fleet: Fleet,
    site: Site,
    services: u32,
    script: PathBuf,
}

pub(super) async fn run(options: &Options, cores: usize, score: &mut Score) -> Result<()> {
    let threads = cores.min(CONNECTIONS);
    let mut shops = Vec::new();
    let mut before = 0.0;
    for size in SIZES {
        let shop = Shop::open(size, cores, threads).await?;
        let memory = settled(&shop.site).await?;
        score.samples.add(&name(size), IDLE, memory / 1024.0);
        if let Some(smaller) = shops.last().map(|shop: &Shop| shop.services) {
            score.samples.add(&name(size), EACH, (memory - before) / f64::from(size - smaller));
        }
        before = memory;
        shops.push(shop);
    }
    for shop in &shops {
        wrk::run(&shop.site.facts.url(), &shop.script, threads, WARM_UP).await?;
    }
    let indexes: Vec<usize> = (0..shops.len()).collect();
    for round in 1..=options.rounds {
        for index in order(&indexes, round) {
            let Shop { site: Site { relay, audit, facts, .. }, services, script, .. } = &mut shops[index];
            let url = facts.url();
            let load = wrk::run(&url, script, threads, options.seconds);
            score.measure(&name(*services), &[Part(RELAY, relay)], Some(audit), load).await?;
        }
    }
    Ok(())
}

impl Shop {
    async fn open(count: u32, cores: usize, threads: usize) -> Result<Self> {
        let section =
            |index| format!("[services.{}]\nagent = \"{NAME}\"\n{}\n", service(index), rule("GET /**"));
        let relay = (0..count).map(section).collect();
        let mut site = Site::start(Ground::new()?, cores, &Extra { relay, ..Extra::default() }).await?;
        site.stop_agent().await?;
        let members = fleet::enrol(&site, AGENTS).await?;
        // Its memory is to be that of its services, not what enrolments left.
        site.restart_relay().await?;
        let share = |agent: usize| {
            let agents = AGENTS as usize;
            (0..count).filter(|index| *index as usize % agents == agent).map(service).collect()
        };
        let fleet = Fleet::start(&site, &members, share).await?;
        let ask = |index| Ask { path: format!("/{}/1k", service(index)), token: site.token.clone() };
        let mut asks: Vec<Ask> = (0..count).map(ask).collect();
        asks.shuffle(&mut rand::rng());
        let script = site.path("services.lua");
        wrk::script_many(&script, &site.facts.address(), &asks, threads, true)?;
        Ok(Self { _fleet: fleet, site, services: count, script })
    }
}
