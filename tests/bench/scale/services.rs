//! From ten services, each with a rule of its own, to ten thousand; and one service with ten rules and with ten thousand. A relay for each
//! size, at work at the same time, asked in turn. Requests go to all services and rules alike, so that no cache of the processor holds
//! what one of them needs.

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
use crate::site::config::{Extra, entries, rule};
use crate::site::{Ground, Site};

pub(super) const SIZES: [u32; 3] = [10, 1_000, 10_000];
pub(super) const TABLES: [u32; 2] = [10, 10_000];
/// A hello names at most some thousands of services: they are shared out between so many agents.
const AGENTS: u32 = 10;
const WARM_UP: u32 = 1;

/// What there is much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Services,
    /// All in the table of one service.
    Rules,
}

impl Of {
    pub(super) fn name(self, size: u32) -> String {
        match self {
            Self::Services => format!("{size} services"),
            Self::Rules => format!("{size} rules of one"),
        }
    }

    /// relay.toml, the services that agents share out between them, and what is asked for.
    fn plan(self, count: u32) -> (String, Vec<String>, Vec<String>) {
        let numbered = (0..count).map(|index| format!("s{index:05}"));
        match self {
            Self::Services => {
                let section = |name| format!("[services.{name}]\nagent = \"{NAME}\"\n{}\n", rule("GET /**"));
                let paths = numbered.clone().map(|name| format!("/{name}/1k")).collect();
                (numbered.clone().map(section).collect(), numbered.collect(), paths)
            }
            Self::Rules => {
                let row =
                    |name| format!("[[services.{ONE}.rules]]\n{}\n", entries(&format!("GET /{name}/**")));
                let head = format!("[services.{ONE}]\nagent = \"{NAME}\"\n");
                let paths = numbered.clone().map(|name| format!("/{ONE}/{name}/1k")).collect();
                (head + &numbered.map(row).collect::<String>(), vec![ONE.to_owned()], paths)
            }
        }
    }
}

/// The service that has all rules.
const ONE: &str = "one";

/// One relay with its services.
struct Shop {
    // Dropped first: agents leave before their relay.
    _fleet: Fleet,
    site: Site,
    size: u32,
    script: PathBuf,
}

pub(super) async fn run(of: Of, options: &Options, cores: usize, score: &mut Score) -> Result<()> {
    let sizes: &[u32] = if of == Of::Services { &SIZES } else { &TABLES };
    let threads = cores.min(CONNECTIONS);
    let mut shops = Vec::new();
    let mut before = 0.0;
    for &size in sizes {
        let shop = Shop::open(of, size, cores, threads).await?;
        let memory = settled(&shop.site).await?;
        score.samples.add(&of.name(size), IDLE, memory / 1024.0);
        if let Some(smaller) = shops.last().map(|shop: &Shop| shop.size) {
            score.samples.add(&of.name(size), EACH, (memory - before) / f64::from(size - smaller));
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
            let Shop { site: Site { relay, audit, facts, .. }, size, script, .. } = &mut shops[index];
            let url = facts.url();
            let load = wrk::run(&url, script, threads, options.seconds);
            score.measure(&of.name(*size), &[Part(RELAY, relay)], Some(audit), load).await?;
        }
    }
    Ok(())
}

impl Shop {
    async fn open(of: Of, count: u32, cores: usize, threads: usize) -> Result<Self> {
        let (relay, services, paths) = of.plan(count);
        let mut site = Site::start(Ground::new()?, cores, &Extra { relay, ..Extra::default() }).await?;
        site.stop_agent().await?;
        let members = fleet::enrol(&site, AGENTS).await?;
        // Its memory is to be that of its services and rules, not what enrolments left.
        site.restart_relay().await?;
        let share = |agent: usize| {
            let agents = AGENTS as usize;
            // One service is every agent's; many are shared out.
            let is_mine = |at: usize| services.len() == 1 || at % agents == agent;
            services.iter().enumerate().filter(|(at, _)| is_mine(*at)).map(|(_, name)| name.clone()).collect()
        };
        let fleet = Fleet::start(&site, &members, share).await?;
        let ask = |path| Ask { path, token: site.token.clone() };
        let mut asks: Vec<Ask> = paths.into_iter().map(ask).collect();
        asks.shuffle(&mut rand::rng());
        let script = site.path("services.lua");
        wrk::script_many(&script, &site.facts.address(), &asks, threads, true)?;
        Ok(Self { _fleet: fleet, site, size: count, script })
    }
}
