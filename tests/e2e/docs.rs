//! What the book and the README show is true: every block says how it is proved, configurations pass the real programs and the
//! published schemas, commands are understood by the real definitions, sequences run against real processes, and generated pages are
//! those of the code.

mod beside;
mod built;
mod frame;
mod links;
mod machine;
mod reader;
mod schemas;
mod sequences;
mod taken;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, Block, Mark};
use postern_tests::pki::Pki;
use postern_tests::process::{self, binary};
use postern_tests::stand::{Stand, say};

use frame::Frame;

/// What pages show beside our own programs. Others are a slip, or belong here; what no page shows does not.
const OTHERS: [&str; 16] = [
    "cargo",
    "cat",
    "cd",
    "curl",
    "echo",
    "export",
    "mkdir",
    "postern-demo",
    "printf",
    "psql",
    "python3",
    "ssh",
    "sudo",
    "sudoedit",
    "umask",
    "deploy/packages/build",
];

fn all_blocks() -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for page in book::pages()? {
        blocks.extend(book::blocks(&page)?);
    }
    Ok(blocks)
}

#[test]
fn every_block_says_how_it_is_proved() -> Result<()> {
    let blocks = all_blocks()?;
    for block in &blocks {
        let is_typed = |line: &str| line.starts_with("$ ") || line.starts_with("postern");
        ensure!(
            block.mark != Mark::Other || !block.text.lines().any(is_typed),
            "{}: a command, so ```console or ```sh",
            block.place
        );
    }
    let configurations =
        blocks.iter().filter(|b| matches!(b.mark, Mark::Relay | Mark::Agent | Mark::Services));
    ensure!(configurations.count() > 30, "configurations went missing");
    Ok(())
}

#[tokio::test]
async fn every_configuration_is_good() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let frame = Frame::new(dir.path(), &Pki::create(dir.path())?)?;
    let mut wrong = Vec::new();
    for block in all_blocks()? {
        let checked = match block.mark {
            Mark::Relay => frame.check_relay(&block).await,
            Mark::Agent => frame.check_agent(&block).await,
            Mark::Services => frame.check_services(&block).await,
            Mark::Caller => frame.check_caller(&block).await,
            Mark::Action => runs_an_action(&block).await,
            Mark::Commands { .. } | Mark::Other => continue,
        };
        wrong.extend(checked.err().map(|error| format!("{}: {error:#}", block.place)));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// What a provider would run puts the person's roles where the page's own relay.toml looks for them.
async fn runs_an_action(block: &Block) -> Result<()> {
    let login = "const api = { accessToken: { setCustomClaim: (name, value) => console.log(JSON.stringify({ name, value })) } };
exports.onExecutePostLogin({ authorization: { roles: ['clerk'] } }, api);";
    let run = process::command("node", ["-e", &format!("{}{login}", block.text)]);
    let claim = process::run(run, Duration::from_secs(30)).await?.expect_code(0)?.stdout;
    let claim: serde_json::Value = serde_json::from_str(&claim)?;
    ensure!(claim["value"] == serde_json::json!(["clerk"]), "{claim}");
    let (page, _) = block.place.split_once(':').context("no page")?;
    let name = claim["name"].as_str().context("no name")?;
    let blocks = book::blocks(Path::new(page))?;
    let is_read = |relay: &Block| {
        let mut lines = relay.text.lines().filter(|line| line.starts_with("roles_from"));
        relay.mark == Mark::Relay && lines.any(|line| line.contains(&format!("\"{name}\"")))
    };
    ensure!(blocks.iter().any(is_read), "the page's relay.toml does not read {name}");
    Ok(())
}

#[test]
fn every_rule_of_the_cookbook_is_proved_both_ways() -> Result<()> {
    let blocks = book::blocks(Path::new("docs/guides/policy.md"))?;
    let mut rules = 0;
    for block in blocks.iter().filter(|block| matches!(block.mark, Mark::Relay | Mark::Services)) {
        let file: toml::Table = block.text.parse().with_context(|| block.place.clone())?;
        let tests = file.get("tests").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        let expects: Vec<&str> = tests.iter().filter_map(|test| test.get("expect")?.as_str()).collect();
        for word in ["allow", "deny"] {
            ensure!(
                expects.iter().any(|expect| expect.starts_with(word)),
                "{}: no test expects {word}",
                block.place
            );
        }
        for name in block.text.lines().filter_map(|line| {
            let rule = line.split_once("name").filter(|_| !line.contains("expect"))?.1.split('"').nth(1)?;
            let is_rule = |list: &toml::Value| {
                list.as_array().is_some_and(|list| {
                    list.iter().any(|one| one.get("name").and_then(toml::Value::as_str) == Some(rule))
                })
            };
            let services = file.get("services").and_then(toml::Value::as_table);
            let in_services =
                services.is_some_and(|all| all.values().any(|s| s.get("rules").is_some_and(is_rule)));
            (in_services || file.get("rules").is_some_and(is_rule)).then_some(rule)
        }) {
            let named = |expect: &&str| expect.split_once(": ").is_some_and(|(_, rule)| rule == name);
            ensure!(expects.iter().any(named), "{}: no test names rule {name:?}", block.place);
            rules += 1;
        }
    }
    ensure!(rules >= 15, "{rules} rules");
    Ok(())
}

#[tokio::test]
async fn every_command_is_understood() -> Result<()> {
    let (mut ours, mut places, mut all_others) = (Vec::new(), Vec::new(), BTreeSet::new());
    for block in all_blocks()? {
        let Mark::Commands { prompts, .. } = block.mark else { continue };
        for step in book::steps(&block, prompts)? {
            let (lists, others) = book::programs(&step.command).with_context(|| block.place.clone())?;
            places.extend(lists.iter().map(|_| format!("{}: {}", block.place, step.command)));
            ours.extend(lists);
            all_others.extend(others);
        }
    }
    let known = BTreeSet::from(OTHERS.map(str::to_owned));
    let (unknown, unused): (Vec<_>, Vec<_>) =
        (all_others.difference(&known).collect(), known.difference(&all_others).collect());
    ensure!(unknown.is_empty(), "not among the programs that pages may show (OTHERS): {unknown:?}");
    ensure!(unused.is_empty(), "no page shows these any more (OTHERS): {unused:?}");
    ensure!(ours.len() > 100, "only {} commands", ours.len());
    let dir = tempfile::tempdir()?;
    let lines: Vec<String> = ours.iter().map(|args| serde_json::json!(args).to_string()).collect();
    let file = dir.path().join("lines");
    std::fs::write(&file, lines.join("\n"))?;
    let script = format!("'{}' parse < '{}'", binary("reference")?.display(), file.display());
    let parsed = process::run(process::command("bash", ["-c", &script]), Duration::from_secs(30)).await?;
    let answers = parsed.expect_code(0)?.stdout;
    let wrong: Vec<String> = answers
        .lines()
        .zip(&places)
        .filter(|(answer, _)| *answer != "null")
        .map(|(a, place)| format!("{place}\n{a}"))
        .collect();
    ensure!(answers.lines().count() == ours.len() && wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn generated_pages_are_those_of_the_code() -> Result<()> {
    let check = process::command(binary("reference")?, ["check"]);
    process::run(check, Duration::from_mins(1)).await?.expect_code(0)?;
    for page in ["relay-toml", "agent-toml"] {
        let text = book::read(Path::new(&format!("docs/reference/{page}.md")))?;
        let silent: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| `") && line.ends_with("| |")).collect();
        ensure!(
            silent.is_empty(),
            "{page}: keys without a word about them (their doc comments): {silent:#?}"
        );
    }
    Ok(())
}

/// The names of a page's tables: what stands between the first backquotes of a row.
fn names(page: &str, heading: &str) -> Result<BTreeSet<String>> {
    let text = book::read(Path::new(page))?;
    let (_, rest) =
        text.split_once(&format!("\n## {heading}\n")).with_context(|| format!("no {heading} in {page}"))?;
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    Ok(rows.map(str::to_owned).collect())
}

#[tokio::test]
async fn metrics_and_audit_events_are_those_that_run() -> Result<()> {
    let mut stand = Stand::start().await?;
    let url = Stand::metrics_url(stand.relay()?).await?;
    let relay = stand.http.get(&format!("{url}/metrics"), None).await?.text();
    let url = Stand::metrics_url(stand.agent()?).await?;
    let agent = stand.http.get(&format!("{url}/metrics"), None).await?.text();
    for (heading, text) in [("Relay", relay), ("Agent", agent)] {
        let told = names("docs/reference/metrics.md", heading)?;
        let runs: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| format!("{name}{}", if kind == "counter" { "_total" } else { "" }))
            .collect();
        let untold: Vec<&String> = runs.difference(&told).collect();
        ensure!(untold.is_empty(), "{heading}: the page does not tell {untold:?}");
        // Those with labels come with their first value.
        let page = book::read(Path::new("docs/reference/metrics.md"))?;
        let labelled = |name: &str| {
            page.lines().any(|line| line.starts_with(&format!("| `{name}`")) && !line.contains("| |"))
        };
        let gone: Vec<&String> = told.difference(&runs).filter(|name| !labelled(name)).collect();
        ensure!(gone.is_empty(), "{heading}: the program has no {gone:?}");
    }
    let prose = book::read(Path::new("docs/audit.md"))?;
    for heading in ["Relay", "Agent"] {
        let events = names("docs/reference/audit-events.md", heading)?;
        let untold: Vec<&String> =
            events.iter().filter(|name| !prose.contains(&format!("`{name}`"))).collect();
        ensure!(untold.is_empty(), "docs/audit.md does not say: {untold:?}");
    }
    stand.passed();
    Ok(())
}

#[test]
fn metrics_that_pages_name_are_there() -> Result<()> {
    let mut known = names("docs/reference/metrics.md", "Relay")?;
    known.extend(names("docs/reference/metrics.md", "Agent")?);
    for page in book::pages()? {
        let text = book::read(&page)?;
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        for word in words.filter(|w| w.starts_with("postern_relay_") || w.starts_with("postern_agent_")) {
            let whole = known.iter().any(|name| word == name);
            ensure!(whole || word.ends_with('_'), "{}: there is no metric {word}", page.display());
        }
    }
    Ok(())
}

#[test]
fn the_readme_is_short() -> Result<()> {
    let lines = book::read(Path::new("README.md"))?.lines().count();
    ensure!(lines <= 150, "README.md has {lines} lines");
    say(&format!("README.md: {lines} lines"));
    Ok(())
}

/// A program of ours with a configuration, to its end.
async fn run(program: &str, config: &Path, args: &[&str]) -> Result<process::Output> {
    let mut command = Command::new(binary(program)?);
    command.arg("-c").arg(config).args(args).env("NO_COLOR", "1").env_remove("POSTERN_LOG");
    process::run(command, Duration::from_secs(30)).await
}
