//! From one tunnel to as many as were asked for: each a double with an enrolment of its own. Memory is taken while they come, before any
//! request; then the relay is restarted under all of them; then requests go to the first one alone, and to all.

use std::sync::Arc;

use anyhow::Result;

use super::{EACH, IDLE, comeback};
use crate::Options;
use crate::contest::{Part, RELAY, Score};
use crate::figures::Samples;
use crate::fleet::{self, Enrolled, Fleet, NAME};
use crate::idle::settled;
use crate::load::{CONNECTIONS, wrk};
use crate::site::config::{Extra, rule};
use crate::site::{Ground, Site};

pub(super) const SIZES: [u32; 3] = [1, 10, 100];
const WARM_UP: u32 = 1;

/// Those of [`SIZES`] below the number of agents asked for, and that number.
pub(super) fn sizes(options: &Options) -> Vec<u32> {
    SIZES.into_iter().filter(|size| *size < options.agents).chain([options.agents]).collect()
}

/// All requests to one of so many tunnels.
pub(super) fn one_of(size: u32) -> String {
    format!("one of {size} tunnels")
}

pub(super) fn all_of(size: u32) -> String {
    format!("all {size} tunnels")
}

/// Memory for each tunnel at the largest size, as a share of what it is at the size before.
pub(super) fn growth(samples: &Samples, many: u32) -> Option<f64> {
    let before = SIZES.into_iter().rfind(|size| *size < many)?;
    samples.ratio(EACH, &one_of(many), &one_of(before))
}

/// The agents at work, in steps: the first has those of the first size, each further one those that the next size has more.
struct Steps {
    sizes: Vec<u32>,
    members: Vec<Arc<Enrolled>>,
    fleets: Vec<Fleet>,
}

pub(super) async fn run(options: &Options, cores: usize, score: &mut Score) -> Result<()> {
    let relay = ["shared", "first"]
        .map(|service| format!("[services.{service}]\nagent = \"{NAME}\"\n{}\n", rule("GET /**")))
        .concat();
    let mut site = Site::start(Ground::new()?, cores, &Extra { relay, ..Extra::default() }).await?;
    site.stop_agent().await?;
    let members = fleet::enrol(&site, options.agents).await?;
    let mut steps = Steps { sizes: sizes(options), members, fleets: Vec::new() };
    // A fresh relay: what the joins left in the allocator is not what tunnels cost.
    site.restart_relay().await?;
    let empty = settled(&site).await?;
    for (step, count) in steps.sizes.clone().into_iter().enumerate() {
        steps.go(&site, step).await?;
        let memory = settled(&site).await?;
        score.samples.add(&one_of(count), IDLE, memory / 1024.0);
        score.samples.add(&one_of(count), EACH, (memory - empty) / f64::from(count));
    }
    comeback::measure(&mut site, &steps.fleets, score).await?;

    let script = site.path("scale.lua");
    wrk::script(&script, Some(&site.token))?;
    let threads = cores.min(CONNECTIONS);
    for service in ["first", "shared"] {
        wrk::run(&site.at(&format!("/{service}/1k")), &script, threads, WARM_UP).await?;
    }
    for round in 1..=options.rounds {
        // Down, up, down: each size has its turn early and late.
        let mut order: Vec<usize> = (0..steps.sizes.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for step in order {
            steps.go(&site, step).await?;
            let count = steps.sizes[step];
            for (name, service) in [(one_of(count), "first"), (all_of(count), "shared")] {
                let url = site.at(&format!("/{service}/1k"));
                let Site { relay, audit, .. } = &mut site;
                let load = wrk::run(&url, &script, threads, options.seconds);
                score.measure(&name, &[Part(RELAY, relay)], Some(audit), load).await?;
            }
        }
    }
    Ok(())
}

impl Steps {
    /// Sets agents to work, or sends them home, until there are as many as the size of `step` says.
    async fn go(&mut self, site: &Site, step: usize) -> Result<()> {
        self.fleets.truncate(step + 1);
        while let next = self.fleets.len()
            && next <= step
        {
            let first = next.checked_sub(1).map_or(0, |before| self.sizes[before]);
            let members = &self.members[first as usize..self.sizes[next] as usize];
            let services = |index| match (next, index) {
                (0, 0) => vec!["shared".to_owned(), "first".to_owned()],
                _ => vec!["shared".to_owned()],
            };
            self.fleets.push(Fleet::start(site, members, services).await?);
        }
        for fleet in &self.fleets {
            fleet.all_usable().await?;
        }
        Ok(())
    }
}
