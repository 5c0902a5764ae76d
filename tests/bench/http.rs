//! The mode `http`: 32 keep-alive connections over TLS 1.3 ask for 1 KiB with an ES256 token: through Postern (token, policy, audit,
//! tunnel), through Envoy (token, RBAC), and from nginx directly; with one token that both may keep, with every token new, and with an opaque
//! one, about which Postern asks its issuer and keeps the answer; and through a road like Postern's with no gate on it.

use std::path::PathBuf;

use anyhow::Result;

use crate::Options;
use crate::contest::{self, AGENT, BACKEND, Before, MEMORY, P50, P99, PROXY, RATE, RELAY, Score, order};
use crate::issuer::OPAQUE;
use crate::load::wrk::{self, Ask};
use crate::load::{CONNECTIONS, Load};
use crate::peers::envoy::{Cache, Envoy};
use crate::peers::floor::Floor;
use crate::peers::or_note;
use crate::ratio::Bound::{AtLeast, AtMost};
use crate::ratio::Ratio;
use crate::report::Report;
use crate::site::config::{Extra, SCOPE};
use crate::site::{BODY, Ground, Site};

/// Connections are made, tokens verified and memory taken before anything counts.
const WARM_UP: u32 = 1;
/// New tokens for each second of a measurement, unless the warm-up shows that more are needed.
const TOKENS: u32 = 20_000;
/// However much faster than the warm-up a measurement may be.
const MARGIN: f64 = 2.0;
const PATH: &str = "/files/1k";

/// What is measured against what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Plain,
    Tls,
    Postern,
    Envoy,
    PosternNew,
    EnvoyNew,
    PosternAsks,
    Floor,
}

const TARGETS: [Target; 8] = [
    Target::Plain,
    Target::Tls,
    Target::Postern,
    Target::Envoy,
    Target::PosternNew,
    Target::EnvoyNew,
    Target::PosternAsks,
    Target::Floor,
];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "nginx, http",
            Self::Tls => "nginx, https",
            Self::Postern => "Postern",
            Self::Envoy => "Envoy, cache",
            Self::PosternNew => "Postern, new tokens",
            Self::EnvoyNew => "Envoy, new tokens",
            Self::PosternAsks => "Postern, introspection",
            Self::Floor => "floor, no gate",
        }
    }
}

struct Bench {
    site: Site,
    cached: Option<Envoy>,
    uncached: Option<Envoy>,
    floor: Floor,
    threads: usize,
    /// Unused tokens for one measurement of a target that is asked with new ones.
    supply: u32,
    score: Score,
}

pub(crate) async fn run(options: &Options, cores: usize) -> Result<Report> {
    wrk::check()?;
    let ground = Ground::new()?;
    let extra = Extra { issuer: ground.facts.asked(), ..Extra::default() };
    let site = Site::start(ground, cores, &extra).await?;
    contest::check(&site, PATH).await?;
    let mut score = Score::default();
    let cached = or_note("Envoy", Envoy::start(&site, cores, Cache::On).await, &mut score.notes);
    let uncached = match cached {
        Some(_) => {
            or_note("Envoy without cache", Envoy::start(&site, cores, Cache::Off).await, &mut score.notes)
        }
        None => None,
    };
    let floor = Floor::start(&site).await?;
    // wrk gives each of its threads an equal share of the connections.
    let threads = cores.min(CONNECTIONS);
    let supply = TOKENS * (options.seconds + WARM_UP);
    let mut bench = Bench { site, cached, uncached, floor, threads, supply, score };
    let targets: Vec<Target> = TARGETS.into_iter().filter(|target| bench.has(*target)).collect();
    for target in &targets {
        let load = bench.sample(*target, WARM_UP).await?;
        if matches!(target, Target::PosternNew | Target::EnvoyNew) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of requests")]
            let needed = (load.per_second * f64::from(options.seconds + WARM_UP) * MARGIN) as u32;
            bench.supply = bench.supply.max(needed);
        }
    }
    bench.score = bench.score.cleared();
    for round in 1..=options.rounds {
        for target in order(&targets, round) {
            bench.sample(target, options.seconds).await?;
        }
    }
    if let Err(error) = contest::check(&bench.site, PATH).await {
        bench.score.fail(format!("after the rounds: {error:#}"));
    }
    Ok(bench.report(options))
}

impl Bench {
    fn has(&self, target: Target) -> bool {
        match target {
            Target::Plain
            | Target::Tls
            | Target::Postern
            | Target::PosternNew
            | Target::PosternAsks
            | Target::Floor => true,
            Target::Envoy => self.cached.is_some(),
            Target::EnvoyNew => self.uncached.is_some(),
        }
    }

    fn envoy(&self, target: Target) -> Option<&Envoy> {
        if target == Target::Envoy { self.cached.as_ref() } else { self.uncached.as_ref() }
    }

    fn url(&self, target: Target) -> String {
        match target {
            Target::Plain => format!("{}/1k", self.site.facts.backend()),
            Target::Tls => format!("https://127.0.0.1:{}/1k", self.site.facts.tls),
            Target::Postern | Target::PosternNew | Target::PosternAsks => self.site.at(PATH),
            Target::Floor => self.floor.at("/1k"),
            Target::Envoy | Target::EnvoyNew => {
                self.envoy(target).map(|envoy| envoy.at(PATH)).unwrap_or_default()
            }
        }
    }

    /// What wrk is to ask: one token again and again, or tokens that nobody has seen.
    fn script(&self, target: Target, url: &str) -> Result<PathBuf> {
        let file = self.site.path(&format!("{target:?}.lua"));
        match target {
            Target::Plain | Target::Tls => wrk::script(&file, None)?,
            Target::Postern | Target::Envoy | Target::Floor => wrk::script(&file, Some(&self.site.token))?,
            Target::PosternAsks => wrk::script(&file, Some(OPAQUE))?,
            Target::PosternNew | Target::EnvoyNew => {
                let tokens = self.site.issuer.tokens(&format!("openid profile {SCOPE}"), self.supply)?;
                let asks: Vec<Ask> =
                    tokens.into_iter().map(|token| Ask { path: PATH.to_owned(), token }).collect();
                let host = url.trim_start_matches("https://").trim_end_matches(PATH);
                wrk::script_many(&file, host, &asks, self.threads, false)?;
            }
        }
        Ok(file)
    }

    async fn sample(&mut self, target: Target, seconds: u32) -> Result<Load> {
        let url = self.url(target);
        let script = self.script(target, &url)?;
        let load = wrk::run(&url, &script, self.threads, seconds);
        let Self { site, cached, uncached, floor, score, .. } = self;
        let before = match target {
            Target::Plain | Target::Tls => Before::Nothing,
            Target::Postern | Target::PosternNew | Target::PosternAsks => Before::Postern,
            Target::Envoy => Before::envoy(cached.as_ref()),
            Target::EnvoyNew => Before::envoy(uncached.as_ref()),
            Target::Floor => Before::Floor(floor),
        };
        score.through(site, target.name(), before, load).await
    }

    fn report(self, options: &Options) -> Report {
        let Score { samples, notes, failures } = self.score;
        let [plain, _, postern, envoy, postern_new, envoy_new, asks, floor] = TARGETS.map(Target::name);
        let ratios = vec![
            Ratio::at_least("http_rps_direct", samples.ratio(RATE, postern, plain), 0.28, Some(0.38)),
            Ratio::at_least("http_rps_envoy", samples.ratio(RATE, postern, envoy), 1.4, Some(1.8)),
            Ratio::at_least(
                "http_new_token_envoy",
                samples.ratio(RATE, postern_new, envoy_new),
                1.0,
                Some(1.2),
            ),
            // An answer that is kept is to cost no more than a token that is: the same Envoy, and our own figure.
            Ratio::wish("http_introspected_envoy", samples.ratio(RATE, asks, envoy), AtLeast(1.4)),
            Ratio::wish("http_introspected_jwt", samples.ratio(RATE, asks, postern), AtLeast(0.95)),
            // What the simplest road of this kind costs, in the same run: the rest is the gate's.
            Ratio::wish("http_rps_floor", samples.ratio(RATE, postern, floor), AtLeast(0.9)),
            Ratio::wish("http_cpu_floor_envoy", samples.ratio(PROXY, floor, envoy), AtMost(0.60)),
            Ratio::at_most("http_cpu_envoy", samples.ratio(PROXY, postern, envoy), 0.60, Some(0.40)),
        ];
        Report {
            mode: "http",
            about: format!(
                "GET of {BODY} bytes over {CONNECTIONS} keep-alive connections, {} rounds of {} s; Postern and Envoy: TLS 1.3, ES256, role, scope; Postern also audits to a file and tunnels to its agent; direct is plain HTTP",
                options.rounds, options.seconds
            ),
            tables: vec![vec![
                (RATE, 0),
                (PROXY, 1),
                (RELAY, 1),
                (AGENT, 1),
                (BACKEND, 1),
                (P50, 0),
                (P99, 0),
                (MEMORY, 0),
            ]],
            samples,
            notes,
            ratios,
            failures,
        }
    }
}
