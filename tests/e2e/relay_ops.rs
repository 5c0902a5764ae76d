//! What operators ask of a relay: how it is, whether all of it works and what to mend, a backup and its way back, an orderly end; with a
//! relay that runs and without one, and each of it in the audit log with who did it.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use postern_tests::issuer::BATCH;
use postern_tests::process::{Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::terminal::fits;
use postern_tests::wait;
use serde_json::Value;

mod owner;
mod socket;
mod state;

/// Besides the usual a service whose upstream takes connections for as long as the listener lives, and of whose agents one is not there.
fn plan() -> Result<(Extra, TcpListener)> {
    let upstream = TcpListener::bind("127.0.0.1:0")?;
    let tables = "[[rules]]\nname = \"not him\"\ndeny = \"user:root@example.com\"\nto = \"* /debug/**\"\n\
         [services.dead]\nagent = [\"dc1\", \"dc9\"]\nrules = [{ allow = \"*\", to = \"GET /**\" }]\n";
    let agent_tables = format!("[services.dead]\nupstream = \"http://{}\"\n", upstream.local_addr()?);
    Ok((Extra { tables: tables.to_owned(), agent_tables, ..Extra::default() }, upstream))
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// The one check whose name begins so.
fn check<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let mut found =
        list(report, "checks").iter().filter(|c| c["name"].as_str().is_some_and(|n| n.starts_with(name)));
    found.next().with_context(|| format!("no check {name} in {report:#}"))
}

#[tokio::test]
async fn status_says_what_runs_and_what_is_missing() -> Result<()> {
    let (plan, _upstream) = plan()?;
    let mut stand = Stand::start_with(plan).await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;

    say("all of it as JSON");
    let status = json(&stand.relay_command(&["status", "--json"]).await?.expect_code(0)?)?;
    ensure!(status["url"] == stand.url.as_str() && status["ready"] == true, "{status:#}");
    let tunnels = list(&status, "tunnels");
    ensure!(tunnels.len() == 2, "{status:#}");
    for tunnel in tunnels {
        ensure!(tunnel["agent"] == "dc1" && tunnel["link"] == "quic" && tunnel["usable"] == true, "{tunnel}");
        ensure!(tunnel["round_trip_us"].is_u64() && tunnel["certificate"]["not_after"].is_u64(), "{tunnel}");
    }
    let service = |name: &str| list(&status, "services").iter().find(|s| s["name"] == name).cloned();
    ensure!(service("echo").is_some_and(|s| s["up"] == true && s["agents"][0]["missing"].is_null()));
    let dead = service("dead").context("no service dead")?;
    ensure!(dead["agents"][1]["missing"] == "not-enrolled", "{dead}");
    let issuer = &list(&status, "issuers")[0];
    ensure!(issuer["usable"] == true && issuer["keys"].as_u64() > Some(0), "{issuer}");
    ensure!(status["audit"]["healthy"] == true && status["audit"]["room"] == "enough", "{status:#}");
    ensure!(status["authority"]["root_key"].is_string(), "{status:#}");

    say("and as a person sees it");
    let shown = stand.relay_command(&["status"]).await?.expect_code(0)?.stdout;
    for needle in ["ready", "dc1", "quic", "echo", "agent dc9 is not enrolled", "agent invite dc9", "root"] {
        ensure!(shown.contains(needle), "no {needle} in\n{shown}");
    }
    ensure!(!shown.contains('\u{1b}'), "colour without a terminal:\n{shown}");
    fits(&shown)?;

    say("without its agent a service is down, and it says since when and what to do");
    stand.stop_agent(Signal::TERM).await?;
    let status = wait::until("echo is down", wait::SOON, async || {
        let status = json(&stand.relay_command(&["status", "--json"]).await.ok()?).ok()?;
        let echo = list(&status, "services").iter().find(|s| s["name"] == "echo").cloned()?;
        (echo["up"] == false).then_some(echo)
    })
    .await?;
    ensure!(status["down_since"].is_u64() && status["agents"][0]["missing"] == "no-tunnel", "{status}");
    let shown = stand.relay_command(&["status"]).await?.expect_code(0)?.stdout;
    ensure!(shown.contains("no agent has a tunnel") && shown.contains("agent dc1 has no tunnel"), "{shown}");

    say("without a relay there is nothing to show");
    stand.stop_relay(Signal::TERM).await?;
    let none = stand.relay_command(&["status"]).await?.expect_code(7)?;
    ensure!(none.stderr.contains("no relay is running here"), "{none:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn drain_finishes_what_runs_and_says_how_far_it_is() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    let url = stand.at("/echo/hold");
    let held = stand.http.get(&url, Some(&ada));
    let draining = async {
        wait::until("it is held", wait::SOON, async || (stand.echo.waiting() == 1).then_some(())).await?;
        let drain = stand.relay_command(&["drain", "--wait", "--json"]);
        let release = async {
            let begun = |line: &Value| line["event"] == "admin" && line["action"] == "drain";
            let lines = stand.wait_audit(1, begun).await?;
            let uid = rustix::process::geteuid().as_raw();
            ensure!(lines[0]["uid"] == uid, "{lines:?}");
            // As the system names that user.
            let passwd = std::fs::read_to_string("/etc/passwd")?;
            let name = passwd.lines().find(|l| l.split(':').nth(2) == Some(&uid.to_string()));
            let name = name.and_then(|l| l.split(':').next());
            ensure!(lines[0]["by"].as_str() == name, "{lines:?} instead of {name:?}");
            // It is under way, and new work is refused meanwhile.
            let seen = stand.relay_command(&["status", "--json"]).await?.expect_code(0)?;
            let seen = json(&seen)?;
            ensure!(seen["draining"] == true && seen["work"]["requests"] == 1, "{seen:#}");
            stand.echo.release();
            Ok(())
        };
        let (drained, ()) = tokio::try_join!(drain, release)?;
        Ok(drained)
    };
    let (answer, drained) = tokio::try_join!(held, draining)?;
    answer.expect_status(200)?;
    let drained = drained.expect_code(0)?;
    ensure!(json(&drained)?["ended"] == true, "{drained:?}");
    ensure!(
        drained.stderr.contains("1 request ") && drained.stderr.contains("the relay has ended"),
        "{drained:?}"
    );
    let ended = stand.relay()?.wait_exit(wait::SOON).await?;
    ensure!(ended.success(), "{ended}");
    stand.relay_command(&["drain"]).await?.expect_code(7)?;
    stand.passed();
    Ok(())
}

/// The files of an archive, by name without its directory.
fn unpacked(path: &Path) -> Result<Vec<(String, String)>> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} is {mode:o}", path.display());
    let mut files = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(std::fs::File::open(path)?)).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.file_name().context("no name")?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(files)
}

#[tokio::test]
async fn the_doctor_looks_at_all_of_it_and_hands_on_no_secret() -> Result<()> {
    let (plan, upstream) = plan()?;
    let mut stand = Stand::start_with(plan).await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    let invite = stand.invite("dc2", &[]).await?;

    say("where all works it ends well, with what an operator should know");
    let found = stand.relay_command(&["doctor", "echo", "--json"]).await?;
    let report = json(&found)?;
    for (name, state) in [
        ("configuration", "good"),
        ("relay", "good"),
        ("state directory", "good"),
        ("disk of the state directory", "good"),
        ("agents' authority", "warn"),
        ("name", "good"),
        ("callers' way (TCP)", "warn"),
        ("agents' way (UDP)", "good"),
        ("agents' way (TCP)", "good"),
        ("issuer corp", "good"),
        ("audit log", "good"),
        ("service echo", "good"),
        ("service dead", "good"),
        ("upstream of echo", "good"),
    ] {
        let check = check(&report, name)?;
        // A small disk is the test machine's own affair.
        ensure!(check["state"] == state || name.starts_with("disk"), "{check}");
        ensure!(
            check["state"] == "good" || check["state"] == "skipped" || check["fix"].is_string(),
            "{check}"
        );
    }
    ensure!(report["ok"] == true && found.code == 0, "{found:?}");

    say("an upstream that is not there fails it, by the agent's word");
    drop(upstream);
    let path = stand.path("bundle.tar.gz");
    let bundle = path.to_str().context("not UTF-8")?;
    let found = stand.relay_command(&["doctor", "dead", "--bundle", bundle]).await?.expect_code(1)?;
    let line = found.stdout.lines().find(|l| l.starts_with("✗")).context("nothing failed")?;
    ensure!(
        line.contains("upstream of dead") && found.stdout.contains("Fix: start the service"),
        "{found:?}"
    );
    fits(&found.stdout)?;

    say("the bundle has it all, and neither secrets nor people nor addresses");
    let files = unpacked(&path)?;
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        names == ["about.json", "doctor.json", "status.json", "warnings.json", "relay.toml"],
        "{names:?}"
    );
    let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
    for gone in [ada.as_str(), &invite, "PRIVATE KEY", "root@example.com", BATCH.1, "eyJ"] {
        ensure!(!all.contains(gone), "{gone:?} is in the bundle");
    }
    for kept in ["[services.dead]", "dc9", "\"tunnels\"", "upstream of dead", "postern-relay"] {
        ensure!(all.contains(kept), "no {kept:?} in the bundle:\n{all}");
    }
    let again = stand.relay_command(&["doctor", "--bundle", bundle]).await?.expect_code(2)?;
    ensure!(again.stderr.contains("there already"), "{again:?}");
    stand.relay_command(&["doctor", "nothing"]).await?.expect_code(6)?;

    say("the issuer silent, and a key that others may read");
    stand.issuer.stop().await?;
    let key = stand.path("relay/ca/issuing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let found = stand.relay_command(&["doctor", "--json"]).await?.expect_code(1)?;
    let report = json(&found)?;
    let loose = check(&report, "state directory")?;
    ensure!(
        loose["fix"].as_str().is_some_and(|f| f.contains("chmod 600") && f.contains("issuing.key")),
        "{loose}"
    );
    ensure!(check(&report, "issuer corp, discovery")?["state"] == "bad", "{report:#}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;

    say("without a relay: what can be looked at is, and the rest is named");
    stand.issuer.start_again().await?;
    stand.stop_relay(Signal::TERM).await?;
    let found = stand.relay_command(&["doctor", "echo", "--json"]).await?.expect_code(0)?;
    let report = json(&found)?;
    ensure!(check(&report, "relay")?["state"] == "warn" && check(&report, "issuer corp")?["state"] == "good");
    for skipped in ["callers' way", "agents' way (UDP)", "agents and services", "upstream of echo"] {
        ensure!(check(&report, skipped)?["state"] == "skipped", "{report:#}");
    }
    stand.edit("relay.toml", "version = 1", "version = 1\nnonsense = 2")?;
    let found = stand.relay_command(&["doctor"]).await?.expect_code(1)?;
    ensure!(found.stdout.contains("✗ configuration"), "{found:?}");
    stand.passed();
    Ok(())
}
