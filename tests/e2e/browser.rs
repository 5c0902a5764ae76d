//! A web page in Chromium, served from another port, cannot use a running forward; the person who typed its address can.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, command};
use postern_tests::stand::{Stand, say};
use serde_json::Value;

/// What the page tries, by the last part of the path: `/page-cors` and so on.
const ATTEMPTS: &[&str] = &[
    "cors",
    "no-cors",
    "credentials",
    "post",
    "put",
    "beacon",
    "image",
    "script",
    "frame",
    "socket",
    "form",
    "link",
];

/// Lets the page try `target`; gives what it saw.
async fn visit(stand: &Stand, target: &str) -> Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/page.mjs");
    ensure!(
        script.with_file_name("node_modules").exists(),
        "{} has no node_modules: run tests/run, or npm ci there",
        script.display()
    );
    let profile = tempfile::tempdir_in(stand.dir())?;
    let args = [script.as_os_str(), target.as_ref(), profile.path().as_os_str()];
    let run = process::run(command("node", args), Duration::from_mins(1)).await?.expect_code(0)?;
    serde_json::from_str(run.stdout.lines().last().context("no result")?).context(run.stderr)
}

fn arrived(stand: &Stand) -> BTreeSet<String> {
    let targets = stand.echo.seen().into_iter().map(|seen| seen.target);
    targets.filter_map(|target| target.strip_prefix("/page-").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_page_from_elsewhere_cannot_use_a_forward() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (_forward, base) = ada.forward("echo", &[]).await?;

    let results = visit(&stand, &base).await?;
    say(&format!("{results:#}"));
    ensure!(results["typed"]["status"] == 200 && results["sameOrigin"] == 200, "{results}");
    ensure!(
        results["typed"]["text"].as_str().is_some_and(|text| text.contains("\"from\":\"echo\"")),
        "{results}"
    );
    let reached = arrived(&stand);
    ensure!(reached.is_empty(), "a page's requests arrived: {reached:?}");

    say("the same page reaches an unprotected port with everything it tries");
    visit(&stand, &stand.echo.url()).await?;
    let all: BTreeSet<String> = ATTEMPTS.iter().map(|name| (*name).to_owned()).collect();
    ensure!(arrived(&stand) == all, "{:?}", arrived(&stand));
    stand.passed();
    Ok(())
}
