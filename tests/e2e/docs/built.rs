//! What pages show of cargo: everywhere packages, programs and profiles that there are; in the long run the real builds, and what they are
//! to leave. In between a stand-in builds nothing, so that all that follows is tried within seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, Mark, ROOT, Run};
use postern_tests::process::{self, command};
use postern_tests::stand::say;
use serde_json::Value;

/// For all of them: a quarter of an hour for each profile on a small machine if nothing was built there before, and as much for the bench
/// and its peers. Shorter than what nextest.toml grants, so that it is said what took so long.
const LIMIT: Duration = Duration::from_mins(110);

/// What `bench all` measures.
const MODES: [&str; 7] = ["http", "http2", "tcp", "bulk", "latency", "idle", "scale"];

/// The lines of all pages that begin with `cargo`, each once, with where they stand first.
fn lines() -> Result<Vec<(String, Run, Vec<String>)>> {
    let mut found: Vec<(String, Run, Vec<String>)> = Vec::new();
    for page in book::pages()? {
        for block in book::blocks(&page)? {
            let Mark::Commands { run, .. } = block.mark else { continue };
            for line in block.text.lines().map(|line| line.trim_start_matches("$ ")) {
                let words = shlex::split(line).unwrap_or_default();
                if words.first().is_some_and(|word| word == "cargo") && !found.iter().any(|it| it.2 == words)
                {
                    found.push((block.place.clone(), run, words));
                }
            }
        }
    }
    ensure!(found.len() >= 4, "{found:?}");
    Ok(found)
}

/// What follows a flag, as often as it is there.
fn values<'a>(words: &'a [String], flag: &str) -> Vec<&'a str> {
    words.windows(2).filter(|two| two[0] == flag).map(|two| two[1].as_str()).collect()
}

#[tokio::test]
async fn what_is_to_be_built_can_be_built() -> Result<()> {
    let mut asked =
        command("cargo", ["metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"]);
    asked.current_dir(ROOT);
    let told = process::run(asked, Duration::from_mins(1)).await?.expect_code(0)?;
    let told: Value = serde_json::from_str(&told.stdout)?;
    let packages = told["packages"].as_array().context("no packages")?;
    let manifest: toml::Table = std::fs::read_to_string(Path::new(ROOT).join("Cargo.toml"))?.parse()?;
    let profiles = manifest.get("profile").and_then(toml::Value::as_table).context("no profiles")?;
    for (place, _, words) in lines()? {
        let named = values(&words, "-p");
        ensure!(!named.is_empty(), "{place}: of which package?");
        let mut bins = Vec::new();
        for name in named {
            let package = packages.iter().find(|package| package["name"] == name);
            let package = package.with_context(|| format!("{place}: there is no package {name}"))?;
            let targets = package["targets"].as_array().into_iter().flatten();
            bins.extend(
                targets.filter(|target| target["kind"][0] == "bin").filter_map(|bin| bin["name"].as_str()),
            );
        }
        ensure!(!bins.is_empty(), "{place}: no programs");
        for bin in values(&words, "--bin") {
            ensure!(bins.contains(&bin), "{place}: there is no program {bin}");
        }
        for profile in values(&words, "--profile") {
            ensure!(profiles.contains_key(profile), "{place}: there is no profile {profile}");
        }
    }
    Ok(())
}

/// The real cargo, where it builds.
#[tokio::test]
async fn long_the_builds_that_pages_show_leave_what_pages_use() -> Result<()> {
    let end = Instant::now() + LIMIT;
    for (place, run, words) in lines()? {
        say(&format!("$ {}", words.join(" ")));
        let mut line = command(&words[0], &words[1..]);
        line.current_dir(ROOT).env_remove("CARGO_TARGET_DIR");
        if run == Run::Long {
            let kept = values(&words, "--json").first().copied().context("nothing is kept")?;
            let kept = Path::new(ROOT).join(kept);
            if kept.exists() {
                std::fs::remove_file(&kept)?;
            }
            // A bench, which judges what it measures: on a machine like this it may well miss.
            line.args(["--rounds", "1", "--seconds", "1", "--mib", "16", "--agents", "10"]);
            let measured = process::run(line, end.saturating_duration_since(Instant::now())).await?;
            ensure!(matches!(measured.code, 0 | 1), "{place}: {measured:?}");
            measured_all(&kept).with_context(|| format!("{place}: {measured:?}"))?;
            continue;
        }
        process::run(line, end.saturating_duration_since(Instant::now()))
            .await?
            .expect_code(0)
            .context(place)?;
        let profile = values(&words, "--profile").first().copied().unwrap_or("release").to_owned();
        if words.get(1).is_some_and(|word| word == "build") {
            for package in values(&words, "-p") {
                let program = if package == "postern-client" { "postern" } else { package };
                let path = Path::new(ROOT).join("target").join(&profile).join(program);
                let told = process::run(command(&path, ["--help"]), Duration::from_secs(30)).await;
                told.with_context(|| path.display().to_string())?.expect_code(0)?;
            }
        }
    }
    Ok(())
}

/// Each mode ran to its end and nothing went wrong in it, whether or not its figures are good.
fn measured_all(kept: &Path) -> Result<()> {
    let all: Value = serde_json::from_str(&std::fs::read_to_string(kept)?)?;
    for mode in MODES {
        let report = all.get(mode).with_context(|| format!("{mode} did not come to its end"))?;
        let failures = report["failures"].as_array().context("no word on failures")?;
        ensure!(failures.is_empty(), "{mode}: {failures:?}");
        ensure!(report["targets"].as_object().is_some_and(|all| !all.is_empty()), "{mode} measured nothing");
    }
    let ratios = all["http"]["ratios"].as_array().context("no ratios")?;
    let direct =
        ratios.iter().find(|ratio| ratio["name"] == "http_rps_direct").context("no http_rps_direct")?;
    ensure!(direct["value"].is_number(), "{direct}");
    Ok(())
}
