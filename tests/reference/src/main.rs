//! Takes the code as it is; gives the pages under docs/reference and the schemas of what commands print under docs/schema, says which of
//! them are stale, or parses command lines as the programs would. Refuses nothing of what the code says: what has no words in it has none on
//! the page, and the tests of the book say so.

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

/// Every page and schema: its file under docs, and what is in it.
fn files(root: &Path) -> Result<Vec<(String, String)>> {
    let pages = [
        ("relay-toml", config::relay(root)?),
        ("agent-toml", config::agent(root)?),
        ("postern", commands::client()),
        ("postern-relay", commands::relay()),
        ("postern-agent", commands::agent()),
        ("metrics", metrics::page(root)?),
        ("audit-events", audit::page(root)?),
        ("problems", problems::page(root)?),
        ("exit-codes", commands::exit_codes()),
        ("environment", environment::page(root)?),
    ];
    let mut files: Vec<_> = pages.map(|(name, text)| (format!("reference/{name}.md"), text)).into();
    let common = postern_base::console::documents::documents();
    let of_programs = [postern_client::documents(), postern_relay::documents(), postern_agent::documents()];
    for (name, schema) in of_programs.into_iter().flatten().chain(common) {
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        files.push((format!("schema/{name}.schema.json"), text));
    }
    Ok(files)
}

fn run(asked: Option<&str>) -> Result<ExitCode> {
    let root = Path::new(ROOT);
    let docs = root.join("docs");
    let mut stale = Vec::new();
    match asked {
        Some("write") => {
            for (name, text) in files(root)? {
                std::fs::write(docs.join(name), text)?;
            }
        }
        Some("check") => {
            for (name, text) in files(root)? {
                if std::fs::read_to_string(docs.join(&name)).ok().as_ref() != Some(&text) {
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
    writeln!(std::io::stderr(), "stale in docs: {}; {how}", stale.join(", "))?;
    Ok(ExitCode::FAILURE)
}

fn main() -> Result<ExitCode> {
    run(std::env::args().nth(1).as_deref())
}
