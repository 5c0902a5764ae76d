//! An agent's operator sees how it stands, ends it without a loss, brings services on board, and is told what is wrong: `status`, `drain`,
//! `service` and `doctor`.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::terminal::fits;
use postern_tests::wait;
use serde_json::Value;

mod doctor;

/// A TCP service that can be taken away: connections wait in its backlog, which is all that a check without a path looks for.
const DOOR: &str = r#"
[services.door]
agent = "dc1"
kind = "tcp"
rules = [{ allow = "*", to = "CONNECT" }]
"#;

/// The relay's usual services and `door`; at the agent, one more that the relay knows nothing of.
fn with_door(door: &TcpListener) -> Result<Extra> {
    let agent = format!(
        "[services.door]\nupstream = \"tcp://{}\"\nhealth = {{ every = \"100ms\", unhealthy_after = 1 }}\n\n[services.stray]\nupstream = \"{{echo}}\"\n",
        door.local_addr()?
    );
    Ok(Extra { tables: DOOR.to_owned(), agent_tables: agent, ..Extra::default() })
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

async fn status(stand: &Stand) -> Result<Value> {
    json(&stand.agent_command(&["status", "--json"]).await?.expect_code(0)?)
}

/// Waits until `status --json` is as wanted, and gives it.
async fn status_where(stand: &Stand, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(what, wait::SOON, async || status(stand).await.ok().filter(|status| is_so(status))).await
}

fn usable(status: &Value) -> usize {
    status["tunnels"].as_array().map_or(0, |all| all.iter().filter(|tunnel| tunnel["usable"] == true).count())
}

#[tokio::test]
async fn status_says_how_the_agent_stands() -> Result<()> {
    let door = TcpListener::bind("127.0.0.1:0")?;
    let mut stand = Stand::start_with(with_door(&door)?).await?;

    say("tunnels, certificate, clock, services, and what the relay refuses");
    let seen = status_where(&stand, "both tunnels and the relay's clock", |status| {
        usable(status) == 2 && !status["clock_offset_ms"].is_null()
    })
    .await?;
    let relay = format!("127.0.0.1:{}", stand.port);
    ensure!(seen["agent"] == "dc1" && seen["relays"][0] == relay.as_str(), "{seen}");
    for tunnel in seen["tunnels"].as_array().context("tunnels")? {
        ensure!(tunnel["relay"] == relay.as_str() && tunnel["link"] == "quic", "{tunnel}");
        ensure!(
            tunnel["round_trip_us"].as_u64().is_some_and(|trip| (1..1_000_000).contains(&trip)),
            "{tunnel}"
        );
    }
    ensure!(seen["clock_offset_ms"].as_i64().is_some_and(|offset| offset.abs() < 2000), "{seen}");
    let (started, end) = (seen["started"].as_u64(), seen["certificate"]["not_after"].as_u64());
    let half = seen["certificate"]["next_renewal"].as_u64();
    ensure!(started < half && half < end && seen["certificate"]["failures"] == 0, "{seen}");
    let service = |status: &Value, name: &str| {
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services.into_iter().find(|service| service["name"] == name).unwrap_or_default()
    };
    let stray = service(&seen, "stray");
    ensure!(stray["refused"][0]["relay"] == relay.as_str(), "{stray}");
    ensure!(stray["refused"][0]["reason"].as_str().is_some_and(|why| !why.is_empty()), "{stray}");
    ensure!(service(&seen, "billing")["refused"] == serde_json::json!([]), "{seen}");

    say("an upstream that went away");
    ensure!(service(&seen, "door")["healthy"] == true);
    drop(door);
    let seen = status_where(&stand, "the door is down", |status| service(status, "door")["healthy"] == false)
        .await?;
    let last = service(&seen, "door")["last_error"]["error"].as_str().unwrap_or_default().to_owned();
    ensure!(last.starts_with("connection refused"), "{last}");
    let shown = stand.agent_command(&["status"]).await?.expect_code(0)?.stdout;
    fits(&shown)?;
    for part in [
        "agent dc1, instance ",
        "2 of 2 tunnels usable",
        "certificate  until ",
        "the relay's",
        "door",
        "down",
        "connection refused",
        "refuses it",
    ] {
        ensure!(shown.contains(part), "{part}:\n{shown}");
    }
    ensure!(!shown.contains('\x1b'), "colours without a terminal");

    say("the socket is its owner's, and metrics tell the same");
    let mode = std::fs::metadata(stand.path("agent/admin.sock"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let metrics = Stand::metrics_url(stand.agent()?).await?;
    let text = stand.http.get(&format!("{metrics}/metrics"), None).await?.text();
    let figure = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("postern_agent_{name} ")))?;
        line.trim().parse().ok()
    };
    ensure!(figure("certificate_seconds_left").is_some_and(|left| left > 3600.0), "{text}");
    ensure!(figure("clock_offset_seconds").is_some_and(|offset| offset.abs() < 2.0), "{text}");
    ensure!(figure("renewal_failures_total") == Some(0.0), "{text}");

    say("without a tunnel, and without an agent");
    stand.stop_relay(Signal::TERM).await?;
    status_where(&stand, "no tunnel is usable", |status| usable(status) == 0).await?;
    let seen = status_where(&stand, "the last error", |status| !status["last_error"].is_null()).await?;
    ensure!(seen["last_error"]["error"].as_str().is_some_and(|error| !error.is_empty()), "{seen}");
    stand.start_relay().await?;
    let is_well = |status: &Value| usable(status) == 2 && status["last_error"].is_null();
    status_where(&stand, "tunnels again, and no error of before", is_well).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.stop_agent(Signal::TERM).await?;
    let gone = stand.agent_command(&["status"]).await?.expect_code(8)?;
    ensure!(gone.stdout.is_empty() && gone.stderr.contains("postern-agent run"), "{gone:?}");
    ensure!(!stand.path("agent/admin.sock").exists(), "the socket went with the agent");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_says_who_asked() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let slow = stand.at("/echo/delay?ms=2500");
    let request = stand.http.get(&slow, Some(&token));
    let drain = async {
        status_where(&stand, "the request runs", |status| status["requests_in_flight"] == 1).await?;
        stand.agent_command(&["drain"]).await?.expect_code(0)
    };
    let (answer, drained) = tokio::join!(request, drain);
    let (answer, drained) = (answer?, drained?);
    answer.expect_status(200)?;
    for part in ["draining: 1 request runs, at most 20 s", "drained in "] {
        ensure!(drained.stderr.contains(part), "{part}: {drained:?}");
    }
    let ended = stand.agent()?.wait_exit(wait::SOON).await?;
    ensure!(ended.success(), "{ended}");
    let audit = std::fs::read_to_string(stand.path("agent/audit.jsonl"))?;
    let lines: Vec<Value> = audit.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let line = lines.iter().find(|line| line["event"] == "admin").context("no admin line")?;
    let uid = rustix::process::geteuid().as_raw();
    ensure!(line["action"] == "drain" && line["uid"] == uid, "{line}");
    stand.agent_command(&["drain"]).await?.expect_code(8)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_service_comes_on_board_from_the_agents_side_too() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let before = std::fs::read_to_string(stand.path("agent.toml"))?;
    let echo = stand.echo.url();
    let bad = stand.agent_command(&["service", "add", "files", "ftp://127.0.0.1"]).await?.expect_code(3)?;
    ensure!(bad.stderr.contains("nothing was written"), "{bad:?}");
    let added = stand.agent_command(&["service", "add", "files", &echo]).await?.expect_code(0)?;
    ensure!(
        added.stdout == "postern-relay service add files --agent dc1 --allow WHO --to \"GET /**\"\n",
        "{added:?}"
    );
    ensure!(added.stderr.contains("restart"), "{added:?}");
    let listed = stand.agent_command(&["service", "ls"]).await?.expect_code(0)?.stdout;
    ensure!(listed.contains("files") && listed.contains("billing"), "{listed}");

    say("what it says, done");
    let line = ["service", "add", "files", "--agent", "dc1", "--allow", "*", "--to", "GET /**", "--reload"];
    stand.relay_command(&line).await?.expect_code(0)?;
    stand.stop_agent(Signal::TERM).await?;
    stand.start_agent().await?;
    stand.wait_status("/files/x", &token, 200, Duration::from_secs(20)).await?;

    stand.agent_command(&["service", "rm", "files"]).await?.expect_code(0)?;
    ensure!(std::fs::read_to_string(stand.path("agent.toml"))? == before, "comments and order stay");
    stand.agent_command(&["service", "rm", "files"]).await?.expect_code(6)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn renewals_that_fail_are_told_and_so_is_a_certificate_that_ended() -> Result<()> {
    let extra = Extra { agents: "cert_ttl = \"8s\"".to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let failures = |status: &Value| status["certificate"]["failures"].as_u64().unwrap_or(0);

    say("the next key cannot be written where a directory is");
    let key = stand.path("agent/next.key");
    // Where the key of a renewal under way lies, it goes first.
    wait::until("the directory", wait::SOON, async || {
        let _ = std::fs::remove_file(&key);
        std::fs::create_dir_all(key.join("full")).ok()
    })
    .await?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o700))?;
    let seen = status_where(&stand, "a failed renewal", |status| failures(status) > 0).await?;
    let last = &seen["certificate"]["last_error"];
    ensure!(last["error"].as_str().is_some_and(|error| error.contains("next.key")), "{seen}");
    let shown = stand.agent_command(&["status"]).await?.expect_code(0)?.stdout;
    ensure!(shown.contains(" failed renewal"), "{shown}");
    fits(&shown)?;
    let metrics = Stand::metrics_url(stand.agent()?).await?;
    let text = stand.http.get(&format!("{metrics}/metrics"), None).await?.text();
    let failed = text.lines().find_map(|line| line.strip_prefix("postern_agent_renewal_failures_total "));
    ensure!(failed.and_then(|failed| failed.parse::<u64>().ok()) >= Some(1), "{text}");
    let said = stand.agent_command(&["doctor"]).await?.stdout;
    ensure!(
        said.contains("! certificate: until ")
            && said.contains(" failed renewal")
            && said.contains(", the last:"),
        "{said}"
    );

    say("off until the certificate has ended: the relay is still there, and the agent comes back by itself");
    stand.stop_agent(Signal::TERM).await?;
    std::fs::remove_dir_all(&key)?;
    let said = wait::until("the end of the certificate", wait::SOON, async || {
        let said = stand.agent_command(&["doctor"]).await.ok()?.stdout;
        said.contains("✗ certificate: it ended ").then_some(said)
    })
    .await?;
    ensure!(said.matches("its root is good").count() == 2 && said.contains("recovers by itself"), "{said}");
    stand.start_agent().await?;
    status_where(&stand, "a certificate again", |status| failures(status) == 0 && usable(status) == 2)
        .await?;
    stand.passed();
    Ok(())
}
