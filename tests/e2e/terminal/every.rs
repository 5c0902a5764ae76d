//! No command is left out: all that the help pages list, which are the programs' own, stand in a page of a walk with a good outcome, as text
//! and as JSON. Both are files here, which other tests hold against the programs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use super::pages::{ROOT, command_words, files};

/// What no page is for.
const NO_PAGE: [(&str, &str); 4] = [
    ("completion", "for shells to read: docs:: and packages:: run it"),
    ("man", "for man to show: packages:: does"),
    ("config schema", "the files of docs/schema, which docs:: compares"),
    ("config example", "the files example.toml, which the unit tests of configurations compare"),
];
/// What never prints a document of its own.
const NO_JSON: [(&str, &str); 2] =
    [("curl", "a service's answer, as it came"), ("connect", "a service's bytes")];
/// What has no good end within a walk.
const NO_GOOD_END: [(&str, &str); 2] = [
    ("run", "it serves; its first lines are for the journal"),
    ("connect", "bytes both ways until one side ends: tcp_service:: and forward_tcp:: do"),
];

fn excepted(command: &str, table: &[(&str, &str)]) -> bool {
    table.iter().any(|(name, _)| *name == command)
}

/// The commands that have no commands below them, and their programs.
fn commands(golden: &Path) -> Result<BTreeSet<(String, String)>> {
    let mut commands = BTreeSet::new();
    for file in files(&golden.join("help"))? {
        let page = std::fs::read_to_string(file)?;
        let typed = page.lines().next().unwrap_or_default().trim_start_matches("$ ");
        let (program, line) = typed.split_once(' ').unwrap_or_default();
        let command = command_words(line).join(" ");
        if !page.contains("\nCommands:\n") && !page.contains("Commands:␛") && !command.is_empty() {
            commands.insert((program.to_owned(), command));
        }
    }
    Ok(commands)
}

/// What was typed, and how it ended: program, words, whether as JSON, exit code.
fn typed(golden: &Path) -> Result<Vec<(String, String, bool, String)>> {
    let mut all = Vec::new();
    for file in files(golden)?.into_iter().filter(|file| !file.starts_with(golden.join("help"))) {
        let mut last = None;
        for line in std::fs::read_to_string(file)?.lines() {
            let typed = line.strip_prefix("$ ").or_else(|| line.strip_prefix("bob$ "));
            if let Some((program, line)) = typed.and_then(|typed| typed.split_once(' ')) {
                last = Some((program.to_owned(), command_words(line).join(" "), line.starts_with("--json")));
            }
            let code = line.strip_prefix("[exit ").and_then(|rest| rest.strip_suffix(']'));
            if let Some((code, (program, words, json))) = code.and_then(|code| Some((code, last.take()?))) {
                all.push((program, words, json, code.to_owned()));
            }
        }
    }
    Ok(all)
}

#[test]
fn every_command_is_seen() -> Result<()> {
    let golden = Path::new(ROOT).join("tests/golden/terminal");
    let (commands, typed) = (commands(&golden)?, typed(&golden)?);
    ensure!(commands.len() > 50 && typed.len() > 200, "{} commands, {} runs", commands.len(), typed.len());
    let mut missing = Vec::new();
    for (program, command) in &commands {
        if excepted(command, &NO_PAGE) {
            continue;
        }
        let seen = |as_json: bool, good: bool| {
            typed.iter().any(|(by, words, json, code)| {
                let is_it = words == command || words.starts_with(&format!("{command} "));
                by == program && is_it && *json == as_json && (!good || code == "0")
            })
        };
        let good = !excepted(command, &NO_GOOD_END);
        if !seen(false, good) {
            missing.push(format!("{program} {command}"));
        }
        if !excepted(command, &NO_JSON) && !seen(true, good) {
            missing.push(format!("{program} --json {command}"));
        }
    }
    ensure!(missing.is_empty(), "no page shows: {}", missing.join(", "));
    for (name, why) in NO_PAGE.iter().chain(&NO_JSON).chain(&NO_GOOD_END) {
        let is_one = commands.iter().any(|(_, command)| command == name);
        ensure!(is_one, "an exception for what is no command: {name} ({why})");
    }
    Ok(())
}
