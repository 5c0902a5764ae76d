//! Agents, relay and upstreams go away and come back; what can work, works, and what cannot says why.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Echo;
use postern_tests::wait;

const TABLES: &str = r#"
[services.dead]
agent = "dc1"
rules = [{ allow = "*", to = "* /**" }]

[services.slow]
agent = "dc1"
limit = { first_byte = "1s" }
rules = [{ allow = "*", to = "* /**" }]

[services.absent]
agent = "dc2"
rules = [{ allow = "*", to = "* /**" }]
"#;

/// How long a restarted relay's agents may take: full jitter below a quarter of a second to begin with, doubling.
const BACK: Duration = Duration::from_secs(10);

#[tokio::test]
async fn restarts_pass_and_outages_say_what_failed() -> Result<()> {
    let doomed = Echo::start()?;
    let upstreams = format!(
        "[services.dead]\nupstream = \"{}\"\n[services.slow]\nupstream = \"{{echo}}\"\n",
        doomed.url()
    );
    let extra = Extra { tables: TABLES.to_owned(), agent_tables: upstreams, ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let path = "/billing/v1/invoices/7";
    let url = stand.at(path);

    say("an upstream that is slow, an agent that never came");
    let slow = stand.http.get(&stand.at("/slow/hold"), Some(&token)).await?.expect_status(504)?;
    ensure!(!slow.header("proxy-status").is_empty(), "{:?}", slow.headers);
    let absent = stand.http.get(&stand.at("/absent/x"), Some(&token)).await?.expect_status(503)?;
    ensure!(!absent.header("retry-after").is_empty(), "{:?}", absent.headers);
    for answer in [&slow, &absent] {
        ensure!(answer.header("content-type") == "application/problem+json", "{:?}", answer.headers);
        let text = answer.text();
        ensure!(!text.contains(&stand.echo.url()), "names an upstream: {text}");
    }
    wait::until("the slow request was given up", wait::SOON, async || {
        (stand.echo.abandoned() >= 1).then_some(())
    })
    .await?;

    for signal in [Signal::TERM, Signal::KILL] {
        say(&format!("the agent ends by {signal:?}"));
        stand.stop_agent(signal).await?;
        stand.wait_status(path, &token, 503, BACK + Duration::from_secs(15)).await?;
        stand.start_agent().await?;
        stand.http.get(&url, Some(&token)).await?.expect_status(200)?;

        say(&format!("the relay ends by {signal:?}; its agent comes back by itself"));
        let health = Stand::metrics_url(stand.agent()?).await?;
        stand.stop_relay(signal).await?;
        let readyz = format!("{health}/readyz");
        let what = "the agent says that no request would succeed";
        wait::until(what, Duration::from_secs(30), async || {
            let answer = stand.http.get(&readyz, None).await.ok()?;
            (answer.status == 503).then_some(())
        })
        .await?;
        stand.start_relay().await?;
        let start = Instant::now();
        stand.wait_status(path, &token, 200, BACK + Duration::from_secs(20)).await?;
        say(&format!("back {:?} after the relay was ready", start.elapsed()));
        stand.http.get(&readyz, None).await?.expect_status(200)?;
    }

    say("an upstream goes away: the others go on, and the agent says which");
    let readyz = format!("{}/readyz", Stand::metrics_url(stand.agent()?).await?);
    stand.http.get(&stand.at("/dead/x"), Some(&token)).await?.expect_status(200)?;
    let address = doomed.url();
    drop(doomed);
    let dead = stand.http.get(&stand.at("/dead/y"), Some(&token)).await?.expect_status(502)?;
    ensure!(dead.header("proxy-status").contains("connection_refused"), "{:?}", dead.headers);
    let text = dead.text();
    ensure!(!text.contains(address.trim_start_matches("http://")), "names an upstream: {text}");
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    let unready = stand.http.get(&readyz, None).await?.expect_status(503)?;
    ensure!(unready.text().contains("dead"), "{}", unready.text());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_state_directory_has_one_agent_that_says_what_a_hangup_does() -> Result<()> {
    let mut stand = Stand::start().await?;
    let second = stand.agent_command(&["run"]).await?;
    let said = "error: an agent already runs with this state directory: stop it first";
    ensure!(second.code == 1 && second.stderr.contains(said), "{}: {}", second.code, second.stderr);

    stand.agent()?.signal(Signal::HUP)?;
    stand.agent()?.wait_line("restart to read agent.toml again", wait::SOON).await?;

    stand.stop_agent(Signal::KILL).await?;
    stand.start_agent().await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_paused_agent_is_noticed() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let path = "/billing/v1/invoices/7";

    say("a stopped agent (SIGSTOP) is not \"connected\" for ever");
    stand.agent()?.signal(Signal::STOP)?;
    let start = Instant::now();
    stand.wait_status(path, &token, 503, Duration::from_mins(1)).await?;
    say(&format!("503 after {:?}", start.elapsed()));
    stand.agent()?.signal(Signal::CONT)?;
    stand.wait_status(path, &token, 200, Duration::from_mins(1)).await?;
    stand.passed();
    Ok(())
}
