//! The mode `http2`: as `http` with one token, over HTTP/2: as many requests in flight, on fewer connections. nginx directly is spoken to
//! in plain HTTP/2 with prior knowledge, and over TLS.

use anyhow::Result;

use crate::Options;
use crate::contest::{self, AGENT, BACKEND, Before, MEMORY, PROXY, RATE, RELAY, Score, order};
use crate::load::CONNECTIONS;
use crate::load::h2load::{self, STREAMS};
use crate::peers::envoy::{Cache, Envoy};
use crate::peers::or_note;
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::{BODY, Site};

const WARM_UP: u32 = 1;
const PATH: &str = "/files/1k";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Plain,
    Tls,
    Postern,
    Envoy,
}

const TARGETS: [Target; 4] = [Target::Plain, Target::Tls, Target::Postern, Target::Envoy];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "nginx, h2c",
            Self::Tls => "nginx, h2",
            Self::Postern => "Postern",
            Self::Envoy => "Envoy, cache",
        }
    }
}

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    h2load::check()?;
    let mut site = Site::plain(cores).await?;
    contest::check(&site, PATH).await?;
    let mut score = Score::default();
    let envoy = or_note("Envoy", Envoy::start(&site, cores, Cache::On).await, &mut score.notes);
    let targets: Vec<Target> =
        TARGETS.into_iter().filter(|target| *target != Target::Envoy || envoy.is_some()).collect();
    let threads = cores.min(CONNECTIONS / STREAMS);
    for target in &targets {
        sample(&mut site, envoy.as_ref(), &mut score, *target, threads, WARM_UP).await?;
    }
    score = score.cleared();
    for round in 1..=options.rounds {
        for target in order(&targets, round) {
            sample(&mut site, envoy.as_ref(), &mut score, target, threads, options.seconds).await?;
        }
    }
    if let Err(error) = contest::check(&site, PATH).await {
        score.fail(format!("after the rounds: {error:#}"));
    }
    let Score { samples, notes, failures } = score;
    let [plain, _, postern, envoy] = TARGETS.map(Target::name);
    let ratios = vec![
        Ratio::at_least("http2_rps_direct", samples.ratio(RATE, postern, plain), 0.28, Some(0.38)),
        Ratio::at_least("http2_rps_envoy", samples.ratio(RATE, postern, envoy), 1.4, Some(1.8)),
        Ratio::at_most("http2_cpu_envoy", samples.ratio(PROXY, postern, envoy), 0.60, Some(0.40)),
    ];
    Ok(Report {
        mode: "http2",
        about: format!(
            "GET of {BODY} bytes over {} HTTP/2 connections with {STREAMS} requests in flight on each, {} rounds of {} s; otherwise as http",
            CONNECTIONS / STREAMS,
            options.rounds,
            options.seconds
        ),
        tables: vec![vec![(RATE, 0), (PROXY, 1), (RELAY, 1), (AGENT, 1), (BACKEND, 1), (MEMORY, 0)]],
        samples,
        notes,
        ratios,
        failures,
    })
}

async fn sample(
    site: &mut Site,
    envoy: Option<&Envoy>,
    score: &mut Score,
    target: Target,
    threads: usize,
    seconds: u32,
) -> Result<()> {
    let url = match target {
        Target::Plain => format!("http://127.0.0.1:{}/1k", site.facts.h2c),
        Target::Tls => format!("https://127.0.0.1:{}/1k", site.facts.tls),
        Target::Postern => site.at(PATH),
        Target::Envoy => envoy.map(|envoy| envoy.at(PATH)).unwrap_or_default(),
    };
    let token = matches!(target, Target::Postern | Target::Envoy).then(|| site.token.clone());
    let before = match target {
        Target::Plain | Target::Tls => Before::Nothing,
        Target::Postern => Before::Postern,
        Target::Envoy => Before::envoy(envoy),
    };
    let load = h2load::run(&url, token.as_deref(), threads, seconds);
    score.through(site, target.name(), before, load).await?;
    Ok(())
}
