//! The benchmarks: each mode starts all it needs on loopback, measures in interleaved rounds, prints a table on stdout and its progress
//! on stderr, and ends what it started. Refuses to measure debug builds. Exit code 0 only if every request was answered as it should be;
//! 1 if not, or if nothing could be measured; 2 for wrong usage. What the figures must reach is printed beside them, not enforced.

mod figures;
mod http;
mod issuer;
mod site;
mod wrk;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use postern_tests::process::binary;
use postern_tests::stand::say;
use postern_tests::wait;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// A build from nothing on two cores takes some ten minutes.
const BUILD: Duration = Duration::from_mins(40);

/// Measures Postern against what it stands in front of.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Requests per second over HTTPS with token, policy and audit, against nginx asked directly; CPU per request; memory.
    Http(Options),
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
}

/// What a mode has found.
struct Report {
    /// For stdout.
    text: String,
    /// For `--json`.
    samples: Value,
    /// Requests that went wrong, by target; the figures are then worth nothing.
    failures: Vec<String>,
}

fn main() -> ExitCode {
    let Mode::Http(options) = Cli::parse().mode;
    match start(&options) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for failure in failures {
                say(&format!("bench: {failure}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Result<Vec<String>> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build; use cargo run --release -p postern-tests --bin bench -- http");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Whichever ends first: the mode's future owns all programs and the directory, and they go with it.
        tokio::select! {
            report = measure(options) => report,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    std::io::stdout().write_all(report.text.as_bytes())?;
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report.samples)?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(report.failures)
}

async fn measure(options: &Options) -> Result<Report> {
    wrk::check()?;
    programs().await?;
    http::run(options.rounds, options.seconds).await
}

/// Builds relay and agent where they are missing: `cargo run` builds this program alone.
async fn programs() -> Result<()> {
    if ["postern-relay", "postern-agent"].iter().all(|name| binary(name).is_ok()) {
        return Ok(());
    }
    say("building the release programs, once: this takes minutes");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut build = tokio::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--release", "--workspace"]).current_dir(root).kill_on_drop(true);
    let status = wait::within("cargo build --release --workspace", BUILD, build.status()).await??;
    anyhow::ensure!(status.success(), "cargo build --release --workspace: {status}");
    Ok(())
}
