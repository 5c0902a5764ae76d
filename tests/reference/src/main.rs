//! Takes the code as it is; gives the pages under docs/reference, says which of them are stale, or parses command lines as the programs
//! would. Refuses nothing of what the code says: what has no words in it has none on the page, and the tests of the book say so.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "of syntax trees and schemas only what a page has use for is looked at"
)]

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

mod audit;
mod commands;
mod config;
mod environment;
mod metrics;
mod page;
mod problems;
mod schema;
mod source;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const USAGE: &str = "usage: reference write | check | parse (argument lists as JSON, one a line)";

/// Every page: its file under docs/reference, and what makes it.
fn pages(root: &Path) -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("relay-toml.md", config::relay(root)?),
        ("agent-toml.md", config::agent(root)?),
        ("postern.md", commands::client()),
        ("postern-relay.md", commands::relay()),
        ("postern-agent.md", commands::agent()),
        ("metrics.md", metrics::page(root)?),
        ("audit-events.md", audit::page(root)?),
        ("problems.md", problems::page(root)?),
        ("exit-codes.md", commands::exit_codes()),
        ("environment.md", environment::page(root)?),
    ])
}

fn run(asked: Option<&str>) -> Result<ExitCode> {
    let root = Path::new(ROOT);
    let dir = root.join("docs/reference");
    let mut stale = Vec::new();
    match asked {
        Some("write") => {
            std::fs::create_dir_all(&dir)?;
            for (name, text) in pages(root)? {
                std::fs::write(dir.join(name), text)?;
            }
        }
        Some("check") => {
            for (name, text) in pages(root)? {
                if std::fs::read_to_string(dir.join(name)).ok().as_ref() != Some(&text) {
                    stale.push(name);
                }
            }
        }
        Some("parse") => {
            for line in std::io::stdin().lock().lines() {
                let args: Vec<String> = serde_json::from_str(&line?).context("not a list of arguments")?;
                let answer = serde_json::to_string(&commands::parse(&args).err())?;
                writeln!(std::io::stdout(), "{answer}")?;
            }
        }
        _ => {
            writeln!(std::io::stderr(), "{USAGE}")?;
            return Ok(ExitCode::from(2));
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let how = "make them anew: cargo build --workspace && target/debug/reference write";
    writeln!(std::io::stderr(), "stale in docs/reference: {}; {how}", stale.join(", "))?;
    Ok(ExitCode::FAILURE)
}

fn main() -> Result<ExitCode> {
    run(std::env::args().nth(1).as_deref())
}
