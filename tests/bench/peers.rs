//! The programs that Postern is measured against, each a room that can get it, start it and say where it listens; and where their
//! files are kept. A peer that cannot be had is said so plainly, and nothing is measured against it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use postern_tests::process;
use postern_tests::stand::say;

pub(crate) mod backend;
pub(crate) mod envoy;
pub(crate) mod floor;
pub(crate) mod quinn;
pub(crate) mod rathole;

/// Downloads and builds, on a slow machine.
const PATIENCE: Duration = Duration::from_mins(20);

/// Below the build directory: `cargo clean` takes it along.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers")
}

/// Whom one end of mutual TLS believes, and what it shows.
#[derive(Debug, Clone, Args)]
pub(crate) struct Proof {
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
}

/// Runs one step of getting a peer; its output is the error.
async fn get(what: &str, command: Command) -> Result<()> {
    say(&format!("getting a peer: {what}"));
    process::run(command, PATIENCE).await?.expect_code(0)?;
    Ok(())
}

/// A peer, or `None` and a line that says why.
pub(crate) fn or_note<T>(name: &str, peer: Result<T>, notes: &mut Vec<String>) -> Option<T> {
    match peer {
        Ok(peer) => Some(peer),
        Err(error) => {
            let note = format!("NOT MEASURED: {name} could not be had: {error:#}");
            say(&note);
            notes.push(note);
            None
        }
    }
}
