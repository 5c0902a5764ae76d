//! Chromium beside the client: a web page, served from another port, cannot use a running forward, and the person who typed its address
//! can; and a login goes through it and comes back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, command};
use postern_tests::stand::{Stand, say};
use postern_tests::wait;
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

/// One of the scripts that drive Chromium.
fn script(name: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser").join(name);
    ensure!(
        script.with_file_name("node_modules").exists(),
        "{} has no node_modules: run tests/run, or npm ci there",
        script.display()
    );
    Ok(script)
}

/// Lets the page try `target`; gives what it saw.
async fn visit(stand: &Stand, target: &str) -> Result<Value> {
    let script = script("page.mjs")?;
    let profile = tempfile::tempdir_in(stand.dir())?;
    let args = [script.as_os_str(), target.as_ref(), profile.path().as_os_str()];
    let run = process::run(command("node", args), Duration::from_mins(1)).await?.expect_code(0)?;
    serde_json::from_str(run.stdout.lines().last().context("no result")?).context(run.stderr)
}

/// What is there as long as the browser of [`ada_waits`] runs.
pub(crate) const RUNS: &str = "browser-runs";

/// A browser for `$BROWSER`: Chromium, in which ada logs in where it is led to. It writes what it came to into `shown.json`.
pub(crate) fn ada_waits(dir: &Path) -> Result<PathBuf> {
    let (run, browser) = (script("login.mjs")?, dir.join("browser"));
    let text = format!(
        "#!/bin/sh\n: >'{dir}/{RUNS}'\nnode '{}' '{dir}/chromium' ada \"$1\" >'{dir}/shown.json'\nrm '{dir}/{RUNS}'\n",
        run.display(),
        dir = dir.display()
    );
    process::script(&browser, &text)?;
    Ok(browser)
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

#[tokio::test]
async fn a_login_goes_through_the_persons_browser() -> Result<()> {
    let stand = Stand::start().await?;
    let (browser, shown) = (ada_waits(stand.dir())?, stand.path("shown.json"));
    let ada = stand.cli("ada")?;
    let mut command = ada.command(&["login", stand.url.as_str()])?;
    command.env("BROWSER", &browser).env("DISPLAY", ":99");
    let mut login = ada.start_command(command, "login")?;
    let code = login.wait_exit(Duration::from_mins(1)).await?;
    ensure!(code.success() && login.log_text().contains("Logged in as ada"), "{}", login.log_text());
    ensure!(ada.run(&["whoami", "--json"]).await?.expect_code(0)?.stdout.contains("finance"));

    say("the page that is left says where to go on");
    wait::until("the browser has ended", wait::SOON, async || (!stand.path(RUNS).exists()).then_some(()))
        .await?;
    let shown: Value = serde_json::from_str(&std::fs::read_to_string(&shown)?)?;
    ensure!(shown["text"].as_str().is_some_and(|text| text.contains("Return to the terminal")), "{shown}");
    ensure!(shown["host"].as_str().is_some_and(|host| host.starts_with("127.0.0.1:")), "{shown}");
    stand.passed();
    Ok(())
}
