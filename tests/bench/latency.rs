//! The mode `latency`: 1,000 requests a second, each at its own time, to nginx directly (plain HTTP), through Postern and through Envoy;
//! what counts is what each adds to the direct answer, in the same round.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use crate::Options;
use crate::contest::{self, AGENT, BACKEND, Before, P50, P99, PROXY, RATE, RELAY, Score, order};
use crate::figures::{Samples, Spread};
use crate::load::dial::Via;
use crate::load::paced::{self, Ask};
use crate::peers::envoy::{Cache, Envoy};
use crate::peers::or_note;
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::Site;

const PER_SECOND: u32 = 1000;
/// A 99th percentile of a few thousand answers swings: each measurement takes this much longer than the others' do.
const LONGER: u32 = 2;
const WARM_UP: u32 = 1;
const PATH: &str = "/files/1k";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Direct,
    Postern,
    Envoy,
}

const TARGETS: [Target; 3] = [Target::Direct, Target::Postern, Target::Envoy];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "nginx, http",
            Self::Postern => "Postern",
            Self::Envoy => "Envoy, cache",
        }
    }
}

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    let mut site = Site::plain(cores).await?;
    contest::check(&site, PATH).await?;
    let mut score = Score::default();
    let envoy = or_note("Envoy", Envoy::start(&site, cores, Cache::On).await, &mut score.notes);
    let targets: Vec<Target> =
        TARGETS.into_iter().filter(|target| *target != Target::Envoy || envoy.is_some()).collect();
    for target in &targets {
        sample(&mut site, envoy.as_ref(), &mut score, *target, WARM_UP).await?;
    }
    score = score.cleared();
    for round in 1..=options.rounds {
        for target in order(&targets, round) {
            sample(&mut site, envoy.as_ref(), &mut score, target, options.seconds * LONGER).await?;
        }
    }
    let Score { samples, mut notes, failures } = score;
    for figure in [P50, P99] {
        let adds = |target: Target| {
            let spread = Spread::of(added(&samples, figure, target));
            spread.map_or_else(|| "-".to_owned(), |spread| spread.cell(0))
        };
        let (postern, envoy) = (adds(Target::Postern), adds(Target::Envoy));
        notes.push(format!("added to {figure}: Postern {postern}, Envoy {envoy}"));
    }
    let ratios = vec![
        Ratio::at_most("latency_added_p50_envoy", of_envoy(&samples, P50), 1.0, Some(0.75)),
        Ratio::at_most("latency_added_p99_envoy", of_envoy(&samples, P99), 1.0, Some(0.70)),
    ];
    Ok(Report {
        mode: "latency",
        about: format!(
            "{PER_SECOND} requests a second, open loop, timed from when each was due; {} rounds of {} s",
            options.rounds,
            options.seconds * LONGER
        ),
        tables: vec![vec![(P50, 0), (P99, 0), (RATE, 0), (PROXY, 1), (RELAY, 1), (AGENT, 1), (BACKEND, 1)]],
        samples,
        notes,
        ratios,
        failures,
    })
}

/// What a target adds to the direct answer, round by round.
fn added(samples: &Samples, figure: &str, target: Target) -> Vec<f64> {
    let direct = samples.values(Target::Direct.name(), figure);
    samples
        .values(target.name(), figure)
        .iter()
        .zip(direct)
        .map(|(through, direct)| through - direct)
        .collect()
}

/// What Postern adds as a share of what Envoy adds; nothing where Envoy adds nothing, for then the round measured noise.
fn of_envoy(samples: &Samples, figure: &str) -> Option<f64> {
    let (postern, envoy) = (added(samples, figure, Target::Postern), added(samples, figure, Target::Envoy));
    let rounds = postern.into_iter().zip(envoy).filter(|(_, envoy)| *envoy > 0.0);
    Spread::of(rounds.map(|(postern, envoy)| postern / envoy)).map(|spread| spread.median)
}

async fn sample(
    site: &mut Site,
    envoy: Option<&Envoy>,
    score: &mut Score,
    target: Target,
    seconds: u32,
) -> Result<()> {
    let tls = Arc::new(site.tls()?);
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let (via, path, token) = match target {
        Target::Direct => (Via::Plain(local(site.facts.plain)), "/1k", None),
        Target::Postern => {
            (Via::Tls { address: local(site.facts.relay), tls }, PATH, Some(site.token.clone()))
        }
        Target::Envoy => {
            let address = local(envoy.map_or(0, |envoy| envoy.port));
            (Via::Tls { address, tls }, PATH, Some(site.token.clone()))
        }
    };
    let ask = Ask { host: via.address().to_string(), path: path.to_owned(), token };
    let before = match target {
        Target::Direct => Before::Nothing,
        Target::Postern => Before::Postern,
        Target::Envoy => Before::envoy(envoy),
    };
    let load = paced::run(&via, &ask, PER_SECOND, seconds);
    score.through(site, target.name(), before, load).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_compared_within_each_round() {
        let mut samples = Samples::default();
        for (direct, postern, envoy) in [(100.0, 300.0, 500.0), (200.0, 350.0, 300.0), (100.0, 200.0, 90.0)] {
            samples.add(Target::Direct.name(), P50, direct);
            samples.add(Target::Postern.name(), P50, postern);
            samples.add(Target::Envoy.name(), P50, envoy);
        }
        assert_eq!(added(&samples, P50, Target::Postern), [200.0, 150.0, 100.0]);
        assert_eq!(of_envoy(&samples, P50), Some(1.0));
        assert_eq!(of_envoy(&samples, P99), None);
    }
}
