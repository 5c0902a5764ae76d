//! The mode `http`: 32 keep-alive connections over TLS 1.3 ask for 1 KiB, through Postern (token, policy, audit, tunnel) and from nginx
//! directly, in rounds of which each has every target in another order. Gives rates, their ratio within each round, CPU and memory.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use postern_tests::process::Program;
use postern_tests::stand::say;
use serde_json::{Value, json};

use crate::Report;
use crate::figures::{Spread, table};
use crate::site::{BODY, Site};
use crate::wrk::{self, CONNECTIONS, Load};

/// Postern's rate as a share of nginx's in plain text: what it must reach, and what would be fine.
const MUST: f64 = 0.28;
const STRETCH: f64 = 0.38;
/// Connections are made, tokens verified and memory taken before anything counts.
const WARM_UP: u32 = 1;
/// A decision and an end for each request.
const LINES_PER_REQUEST: usize = 2;
const MIB: u64 = 1024 * 1024;

/// What is measured against what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Plain,
    Tls,
    Postern,
}

const TARGETS: [Target; 3] = [Target::Plain, Target::Tls, Target::Postern];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "nginx, http",
            Self::Tls => "nginx, https",
            Self::Postern => "Postern, https",
        }
    }

    fn url(self, site: &Site) -> &str {
        match self {
            Self::Plain => &site.plain,
            Self::Tls => &site.tls,
            Self::Postern => &site.postern,
        }
    }

    /// Only Postern is shown the token: a caller of nginx would send none.
    fn token(self, site: &Site) -> Option<&str> {
        (self == Self::Postern).then_some(site.token.as_str())
    }

    fn script(self, site: &Site) -> PathBuf {
        site.path(&format!("{self:?}.lua"))
    }
}

struct Sample {
    round: u32,
    target: Target,
    load: Load,
    /// Microseconds per request of relay and agent; zero where neither had a part.
    relay_us: f64,
    agent_us: f64,
}

struct Bench {
    site: Site,
    cores: usize,
    /// Programs that wanted a core on average in the minute before: on a machine with other work the figures are unsteady.
    load_before: f64,
    threads: usize,
    samples: Vec<Sample>,
}

pub(crate) async fn run(rounds: u32, seconds: u32) -> Result<Report> {
    let cores = std::thread::available_parallelism()?.get();
    // wrk gives each of its threads an equal share of the connections.
    let threads = cores.min(CONNECTIONS as usize);
    let load_before = load_average()?;
    say(&format!("starting nginx, relay and agent; load average before: {load_before:.1} on {cores} cores"));
    let site = Site::start(cores).await?;
    check(&site).await?;
    let mut bench = Bench { site, cores, load_before, threads, samples: Vec::new() };
    for target in TARGETS {
        wrk::script(&target.script(&bench.site), target.token(&bench.site))?;
        bench.sample(0, target, WARM_UP).await?;
    }
    bench.samples.clear();
    for round in 1..=rounds {
        let mut order = TARGETS;
        order.rotate_left(round as usize % TARGETS.len());
        for target in order {
            let sample = bench.sample(round, target, seconds).await?;
            say(&format!(
                "round {round} of {rounds}: {:<14} {:>9.0} /s",
                target.name(),
                sample.load.per_second
            ));
        }
    }
    let mut failures = bench.failures();
    if let Err(error) = check(&bench.site).await {
        failures.push(format!("after the rounds: {error:#}"));
    }
    bench.report(rounds, seconds, failures)
}

/// All targets give the same answer, and Postern to nobody but the holder of a good token with the scope.
async fn check(site: &Site) -> Result<()> {
    for target in TARGETS {
        let answer = site.http.get(target.url(site), target.token(site)).await?;
        let body = answer.expect_status(200).with_context(|| target.name())?.body;
        anyhow::ensure!(body == "x".repeat(BODY), "{}: not the body", target.name());
    }
    site.http.get(&site.postern, None).await?.expect_status(401)?;
    site.http.get(&site.postern, Some(&site.narrow)).await?.expect_status(403)?;
    Ok(())
}

fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("/proc/loadavg is empty")?.parse()?)
}

impl Bench {
    async fn sample(&mut self, round: u32, target: Target, seconds: u32) -> Result<&Sample> {
        let site = &mut self.site;
        site.audit.clear()?;
        let (relay, agent) = (site.relay.cpu()?, site.agent.cpu()?);
        let load = wrk::run(target.url(site), &target.script(site), self.threads, seconds).await?;
        let (mut relay_us, mut agent_us) = (0.0, 0.0);
        if target == Target::Postern {
            // Before CPU is read: these requests are done only when their audit lines are written. A refusal may come with fewer.
            let lines = if load.errors() == 0 { load.requests as usize * LINES_PER_REQUEST } else { 0 };
            site.audit.wait(lines).await?;
            let requests = f64::from(load.requests);
            let each = |program: &Program, before| -> Result<f64> {
                Ok(program.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / requests)
            };
            (relay_us, agent_us) = (each(&site.relay, relay)?, each(&site.agent, agent)?);
        }
        self.samples.push(Sample { round, target, load, relay_us, agent_us });
        self.samples.last().context("no sample")
    }

    fn of(&self, target: Target) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.target == target)
    }

    fn spread(&self, target: Target, figure: impl Fn(&Sample) -> f64) -> Result<Spread> {
        Spread::of(self.of(target).map(figure)).context("no samples")
    }

    /// Postern's rate as a share of another's, round by round.
    fn ratio(&self, to: Target) -> Result<Spread> {
        // Each target has one sample per round, in the order of the rounds.
        let pairs = self.of(Target::Postern).zip(self.of(to));
        Spread::of(pairs.map(|(postern, other)| postern.load.per_second / other.load.per_second))
            .context("no rounds")
    }

    fn rows(&self) -> Result<Vec<Vec<String>>> {
        let row = |target: Target| -> Result<Vec<String>> {
            let mut row = vec![target.name().to_owned()];
            row.extend(self.spread(target, |s| s.load.per_second)?.cells(0));
            row.push(format!("{:.0}", self.spread(target, |s| s.load.p50_us)?.median));
            row.push(format!("{:.0}", self.spread(target, |s| s.load.p99_us)?.median));
            row.push(self.of(target).map(|s| u64::from(s.load.requests)).sum::<u64>().to_string());
            row.push(self.of(target).map(|s| u64::from(s.load.errors())).sum::<u64>().to_string());
            Ok(row)
        };
        TARGETS.into_iter().map(row).collect()
    }

    /// One line for each sample that is worth nothing.
    fn failures(&self) -> Vec<String> {
        let bad = |sample: &Sample| {
            let (load, name) = (&sample.load, sample.target.name());
            let short = load.bytes_each < u32::try_from(BODY).unwrap_or(u32::MAX);
            (load.errors() > 0 || short).then(|| {
                format!(
                    "round {}, {name}: of {} answers {} had a status of 400 or more; {} connections, reads, writes or waits failed; {} bytes per answer",
                    sample.round, load.requests, load.refused, load.broken, load.bytes_each
                )
            })
        };
        self.samples.iter().filter_map(bad).collect()
    }

    fn report(&self, rounds: u32, seconds: u32, failures: Vec<String>) -> Result<Report> {
        let (ratio, to_tls) = (self.ratio(Target::Plain)?, self.ratio(Target::Tls)?);
        let relay = self.spread(Target::Postern, |s| s.relay_us)?;
        let agent = self.spread(Target::Postern, |s| s.agent_us)?;
        let both = self.spread(Target::Postern, |s| s.relay_us + s.agent_us)?;
        let peak = |program: &Program| {
            Ok::<_, anyhow::Error>(program.memory().with_context(|| program.tail())?.peak)
        };
        let peak = [peak(&self.site.relay)?, peak(&self.site.agent)?];

        let mut text = format!(
            "GET of {BODY} bytes over {CONNECTIONS} keep-alive connections; {rounds} rounds, {seconds} s per target, on {} cores\n\
             Postern: TLS 1.3, ES256 token, one rule, audit to a file, one agent over QUIC; load average before: {:.1}\n\n",
            self.cores, self.load_before
        );
        let head = ["requests per second", "median", "min", "max", "p50 µs", "p99 µs", "requests", "errors"];
        text += &table(&head, &self.rows()?);
        let line = |name: &str, spread: Spread, decimals: usize| {
            let mut row = vec![name.to_owned()];
            row.extend(spread.cells(decimals));
            row
        };
        text.push('\n');
        text += &table(
            &["per round", "median", "min", "max"],
            &[
                line("Postern / nginx, http", ratio, 3),
                line("Postern / nginx, https", to_tls, 3),
                line("relay CPU, µs per request", relay, 1),
                line("agent CPU, µs per request", agent, 1),
                line("relay and agent", both, 1),
            ],
        );
        writeln!(text, "\npeak memory: relay {} MiB, agent {} MiB", peak[0] / MIB, peak[1] / MIB)?;
        if failures.is_empty() {
            writeln!(text, "RATIO http_rps value {:.3} must {MUST} stretch {STRETCH}", ratio.median)?;
            writeln!(text, "CPU_US relay {:.1} agent {:.1}", relay.median, agent.median)?;
        } else {
            writeln!(text, "\nFAILED, so these figures are worth nothing:\n{}", failures.join("\n"))?;
        }

        let samples: Vec<Value> = self.samples.iter().map(Sample::json).collect();
        let samples = json!({
            "mode": "http",
            "cores": self.cores, "load_before": self.load_before, "connections": CONNECTIONS, "threads": self.threads,
            "rounds": rounds, "seconds": seconds,
            "http_rps": { "ratio": ratio.json(), "ratio_to_tls": to_tls.json(), "must": MUST, "stretch": STRETCH },
            "cpu_us": { "relay": relay.json(), "agent": agent.json(), "both": both.json() },
            "peak_rss_bytes": { "relay": peak[0], "agent": peak[1] },
            "failures": failures,
            "samples": samples,
        });
        Ok(Report { text, samples, failures })
    }
}

impl Sample {
    fn json(&self) -> Value {
        let mut json = json!({ "round": self.round, "target": self.target.name(), "load": self.load.json() });
        if self.target == Target::Postern {
            json["cpu_us"] = json!({ "relay": self.relay_us, "agent": self.agent_us });
        }
        json
    }
}
