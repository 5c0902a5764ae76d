//! The benchmarks: each mode starts all it needs on loopback, measures in interleaved rounds, prints a table on stdout and its progress
//! on stderr, and ends what it started. The last lines hold each figure against design/performance.md. Exit code 0 only if every request
//! was answered as it should be and no "must" was missed; 1 if not, or if nothing could be measured; 2 for wrong usage. A debug build
//! runs, to see that it works, and never passes.

mod bulk;
mod contest;
mod figures;
mod fleet;
mod http;
mod http2;
mod idle;
mod issuer;
mod latency;
mod load;
mod peers;
mod ratio;
mod report;
mod scale;
mod site;
mod tcp;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use postern_tests::process::binary;
use postern_tests::stand::say;
use postern_tests::wait;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use report::{Report, load_average};

/// As relay and agent have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A build from nothing on two cores takes some ten minutes.
const BUILD: Duration = Duration::from_mins(40);

/// Measures Postern against what it stands in front of, and against its like.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// HTTPS with token, policy and audit at full speed, against nginx asked directly and Envoy; with one token, with every token new, and with an opaque one.
    Http(Options),
    /// The same over HTTP/2, with one token.
    Http2(Options),
    /// TCP through a tunnel: small exchanges and large bodies, against rathole's three transports and nginx asked directly.
    Tcp(Options),
    /// Large bodies over HTTPS, down and up, against raw quinn and TLS alone.
    Bulk(Options),
    /// What is added to the latency of 1,000 requests a second, against Envoy.
    Latency(Options),
    /// The relay's memory for a tunnel that carries nothing.
    Idle(Options),
    /// The relay's CPU and memory as tunnels, services and one service's rules grow; and all agents coming back at once.
    Scale(Options),
    /// All of these; what could not be measured counts as missed.
    All(Options),
    /// One of our own peers, as a process of its own.
    #[command(subcommand, hide = true)]
    Peer(Peer),
}

#[derive(Debug, Subcommand)]
enum Peer {
    Backend {
        #[arg(long)]
        cert: PathBuf,
        #[arg(long)]
        key: PathBuf,
    },
    Quinn(peers::Proof),
    FloorOuter(peers::floor::Told),
    FloorInner(peers::floor::Told),
}

/// What all modes understand.
#[derive(Debug, Args)]
struct Options {
    /// Write every sample to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each target is measured.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one measurement takes.
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// tcp, bulk: the size of one large body.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=16384))]
    mib: u64,
    /// idle, scale: how many agents at most.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=4000))]
    agents: u32,
}

#[derive(Debug, Clone, Copy)]
enum Subject {
    Http,
    Http2,
    Tcp,
    Bulk,
    Latency,
    Idle,
    Scale,
}

use Subject::{Bulk, Http, Http2, Idle, Latency, Scale, Tcp};

fn main() -> ExitCode {
    let (subjects, options): (&[Subject], Options) = match Cli::parse().mode {
        Mode::Http(options) => (&[Http], options),
        Mode::Http2(options) => (&[Http2], options),
        Mode::Tcp(options) => (&[Tcp], options),
        Mode::Bulk(options) => (&[Bulk], options),
        Mode::Latency(options) => (&[Latency], options),
        Mode::Idle(options) => (&[Idle], options),
        Mode::Scale(options) => (&[Scale], options),
        Mode::All(options) => (&[Http, Http2, Tcp, Bulk, Latency, Idle, Scale], options),
        Mode::Peer(peer) => return ended(be(&peer).map(|()| Vec::new())),
    };
    ended(start(subjects, &options))
}

fn ended(outcome: Result<Vec<String>>) -> ExitCode {
    let complaints = outcome.unwrap_or_else(|error| vec![format!("{error:#}")]);
    for complaint in &complaints {
        say(&format!("bench: {complaint}"));
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Runs until it is killed, at the latest when the bench that started it ends.
fn be(peer: &Peer) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match peer {
        Peer::Backend { cert, key } => runtime()?.block_on(peers::backend::serve(cert, key)),
        Peer::Quinn(proof) => runtime()?.block_on(peers::quinn::serve(proof)),
        Peer::FloorOuter(told) => peers::floor::outer(told),
        Peer::FloorInner(told) => peers::floor::inner(told),
    }
}

fn start(subjects: &[Subject], options: &Options) -> Result<Vec<String>> {
    // A thousand agents and their connections want more files than a shell gives by default.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let mut complaints = runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Whichever ends first: the mode's future owns all programs and directories, and they go with it.
        tokio::select! {
            complaints = measure_all(subjects, options) => complaints,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    if cfg!(debug_assertions) {
        complaints
            .push("this is a debug build, whose figures mean nothing: use cargo run --release".to_owned());
    }
    Ok(complaints)
}

/// Gives why this is no pass.
async fn measure_all(subjects: &[Subject], options: &Options) -> Result<Vec<String>> {
    let (is_all, cores) = (subjects.len() > 1, std::thread::available_parallelism()?.get());
    programs().await?;
    let mut complaints = Vec::new();
    let mut lines = Vec::new();
    let mut json = Map::new();
    for subject in subjects {
        let name = format!("{subject:?}").to_lowercase();
        say(&format!("{name}: load average before {:.1} on {cores} cores", load_average()?));
        match measure(*subject, options, cores).await {
            Ok(report) => {
                std::io::stdout().write_all(report.text()?.as_bytes())?;
                complaints.extend(report.complaints(is_all));
                lines.extend(report.ratios.iter().map(ToString::to_string));
                json.insert(name, report.json());
            }
            Err(error) if is_all => complaints.push(format!("{name}: {error:#}")),
            Err(error) => return Err(error),
        }
    }
    if is_all {
        std::io::stdout().write_all(format!("== all\n{}\n", lines.join("\n")).as_bytes())?;
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&Value::Object(json))?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(complaints)
}

async fn measure(subject: Subject, options: &Options, cores: usize) -> Result<Report> {
    match subject {
        Http => http::run(options, cores).await,
        Http2 => http2::run(options, cores).await,
        Tcp => tcp::run(options, cores).await,
        Bulk => bulk::run(options, cores).await,
        Latency => latency::run(options, cores).await,
        Idle => idle::run(options, cores).await,
        Scale => scale::run(options, cores).await,
    }
}

/// Builds the programs where they are missing: `cargo run` builds this one alone.
async fn programs() -> Result<()> {
    if ["postern-relay", "postern-agent", "postern"].iter().all(|name| binary(name).is_ok()) {
        return Ok(());
    }
    say("building the programs, once: this takes minutes");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut build = tokio::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--workspace"]).current_dir(root).kill_on_drop(true);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = wait::within("cargo build --workspace", BUILD, build.status()).await??;
    anyhow::ensure!(status.success(), "cargo build --workspace: {status}");
    Ok(())
}
