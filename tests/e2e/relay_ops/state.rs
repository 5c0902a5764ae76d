//! The relay's state in one file and back, and a look at an issuer with a token: with a relay that runs and without one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::issuer::Login;
use postern_tests::process::Signal;
use postern_tests::replica::Replica;
use postern_tests::stand::{Stand, say};
use postern_tests::wait;
use serde_json::Value;

use super::{json, list, unpacked};

/// An agent that was removed asks again within 61 s, unless it is started anew.
const AGAIN: Duration = Duration::from_secs(75);

/// Waits until this agent, whose process runs, is refused a tunnel once more.
async fn turned_away(stand: &Stand, agent: &str) -> Result<()> {
    let text = format!("agent {agent} is not enrolled here");
    let is_one = |line: &Value| {
        line["event"] == "tunnel-refused" && line["reason"].as_str().is_some_and(|why| why.contains(&text))
    };
    let before = stand.audit()?.iter().filter(|line| is_one(line)).count();
    let what = format!("{agent} is refused once more");
    wait::until(&what, AGAIN, async || {
        (stand.audit().ok()?.iter().filter(|line| is_one(line)).count() > before).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_backup_comes_back_whole_and_lets_nobody_in_who_was_put_out() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    // Enrolled and removed before the backup.
    let gone = Replica::new(&stand, "gone")?;
    gone.join(&stand.invite("gone", &[]).await?).await?.expect_code(0)?;
    stand.relay_command(&["agent", "remove", "gone"]).await?.expect_code(0)?;

    say("live: one private file, which replaces none");
    let path = stand.path("backup.tar.gz");
    let file = path.to_str().context("not UTF-8")?;
    let made = stand.relay_command(&["backup", file]).await?.expect_code(0)?;
    ensure!(made.stderr.contains("as you would a key"), "{made:?}");
    let names: Vec<_> = unpacked(&path)?.into_iter().map(|(name, _)| name).collect();
    for needed in ["manifest.json", "postern.redb", "issuing.pem", "issuing.key", "root.pem"] {
        ensure!(names.iter().any(|name| name == needed), "no {needed} in {names:?}");
    }
    ensure!(!names.iter().any(|name| name.starts_with("root.key") || name == "audit.key"), "{names:?}");
    stand.relay_command(&["backup", file]).await?.expect_code(1)?;

    say("live: an issuing CA that was replaced since stays away");
    stand.relay_command(&["ca", "rotate"]).await?.expect_code(0)?;
    let rotated = std::fs::read(stand.path("relay/ca/issuing.pem"))?;
    let older = json(&stand.relay_command(&["restore", file, "--json"]).await?.expect_code(0)?)?;
    ensure!(older["restored"]["older_authority"].is_u64(), "{older}");
    ensure!(std::fs::read(stand.path("relay/ca/issuing.pem"))? == rotated, "the old issuing CA is back");

    say("live: who was removed since is out, before the restore and after it");
    let lock =
        stand.relay_command(&["lock", "add", "--reason", "r", "--user", "bob"]).await?.expect_code(0)?;
    let later = stand.path("later.tar.gz");
    let later = later.to_str().context("not UTF-8")?;
    stand.relay_command(&["backup", later]).await?.expect_code(0)?;
    stand.relay_command(&["lock", "rm", lock.stdout.trim()]).await?.expect_code(0)?;
    stand.relay_command(&["agent", "remove", "dc1"]).await?.expect_code(0)?;
    let restored = stand.relay_command(&["restore", later, "--json"]).await?.expect_code(0)?;
    let restored = json(&restored)?;
    ensure!(restored["restored"]["afresh"] == false && restored["restored"]["instances"] == 0, "{restored}");
    ensure!(list(&restored["restored"], "locks").len() == 1, "{restored}");
    let locks = stand.relay_command(&["lock", "ls"]).await?.expect_code(0)?.stdout;
    ensure!(locks.contains("bob"), "{locks}");
    let bob = stand.issuer.token("bob").await?;
    let refused = stand.http.get(&stand.at("/echo/x"), Some(&bob)).await?;
    ensure!(refused.status == 401, "the lock is not in force: {}", refused.status);
    let agents = json(&stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?)?;
    ensure!(list(&agents, "agents").is_empty(), "{agents:#}");
    turned_away(&stand, "dc1").await?;
    stand.http.get(&stand.at("/echo/x"), Some(&ada)).await?.expect_status(503)?;
    let lines = stand.wait_audit(1, |line| line["event"] == "admin" && line["action"] == "restore").await?;
    ensure!(lines[0]["uid"].is_u64() && lines[0]["locks"].is_array(), "{lines:?}");

    say("a cut file is refused and changes nothing, running or not");
    let cut = stand.path("cut.tar.gz");
    let bytes = std::fs::read(&path)?;
    std::fs::write(&cut, &bytes[..bytes.len() / 2])?;
    let cut = cut.to_str().context("not UTF-8")?;
    stand.relay_command(&["restore", cut]).await?.expect_code(1)?;

    say("a machine that lost everything gets a new audit log and a warning");
    stand.stop_agent(Signal::TERM).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.relay_command(&["restore", cut]).await?.expect_code(1)?;
    std::fs::remove_dir_all(stand.path("relay"))?;
    // The chain of the log ended with the key that is gone.
    std::fs::rename(stand.path("audit.jsonl"), stand.path("audit-before.jsonl"))?;
    let back = stand.relay_command(&["restore", file]).await?.expect_code(0)?;
    ensure!(!back.stdout.trim().is_empty(), "no first key of the new chain: {back:?}");
    ensure!(back.stderr.contains("nothing knows who was removed"), "{back:?}");

    say("who was removed before the backup is out on the new machine, too");
    stand.start_relay().await?;
    let mut running = gone.run()?;
    turned_away(&stand, "gone").await?;
    running.stop(Signal::KILL).await?;

    say("a backup with a newer issuing CA is for a relay that does not run");
    let refused = stand.relay_command(&["restore", later]).await?.expect_code(1)?;
    ensure!(refused.stderr.contains("stop the relay"), "{refused:?}");
    stand.stop_relay(Signal::TERM).await?;
    stand.relay_command(&["restore", later]).await?.expect_code(0)?;
    ensure!(
        std::fs::read(stand.path("relay/ca/issuing.pem"))? == rotated,
        "the newer issuing CA is not in force"
    );

    say("its agents and its callers go on as before");
    stand.start_relay().await?;
    // The agent was removed after both backups, whose word is all there is now: the warning above is about this.
    stand.start_agent().await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    let agents = json(&stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?)?;
    ensure!(list(&agents, "agents").len() == 1 && agents["agents"][0]["name"] == "dc1", "{agents:#}");

    say("backup without a relay");
    stand.stop_relay(Signal::TERM).await?;
    let offline = stand.path("offline.tar.gz");
    stand.relay_command(&["backup", offline.to_str().context("not UTF-8")?]).await?.expect_code(0)?;
    ensure!(unpacked(&offline)?.len() == names.len() + 1 || unpacked(&offline)?.len() == names.len());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_issuer_and_a_token_are_looked_at_step_by_step() -> Result<()> {
    let mut stand = Stand::start().await?;
    let login = stand.issuer.login(&Login::of("ada")).await?;
    let file = |name: &str, token: &str| -> Result<String> {
        let path = stand.path(name);
        std::fs::write(&path, token)?;
        Ok(path.to_str().context("not UTF-8")?.to_owned())
    };
    let good = file("good", &login.access)?;
    let id = file("id", login.id.as_deref().context("no ID token")?)?;

    say("the issuer, with its endpoints, keys and clock; and every step of a good token");
    let shown =
        stand.relay_command(&["issuer", "test", "corp", "--token-file", &good]).await?.expect_code(0)?;
    for needle in [
        "✓ discovery",
        "token_endpoint: ",
        "ES256",
        "✓ clock",
        "✓ signature",
        "✓ audience is ours",
        "fetched",
    ] {
        ensure!(shown.stdout.contains(needle), "no {needle} in\n{}", shown.stdout);
    }
    for part in login.access.split('.') {
        ensure!(!shown.stdout.contains(part) && !shown.stderr.contains(part), "a part of the token is shown");
    }

    say("an ID token fails at the step that tells it, here as in a request");
    let told = stand
        .relay_command(&["issuer", "test", "corp", "--token-file", &id, "--json"])
        .await?
        .expect_code(1)?;
    let told = json(&told)?;
    let failed: Vec<_> = list(&told, "token").iter().filter(|step| step["state"] == "bad").collect();
    ensure!(failed.len() == 1 && failed[0]["fix"].is_string(), "{told:#}");
    ensure!(told["ok"] == false && told["held"]["keys"].as_u64() > Some(0), "{told:#}");
    let unknown = ["issuer", "test", "other"];
    let running = stand.relay_command(&unknown).await?.expect_code(1)?;
    ensure!(running.stderr.contains("no issuer other, but corp"), "{running:?}");

    say("without a relay the same is looked at from here");
    stand.stop_relay(Signal::TERM).await?;
    ensure!(stand.relay_command(&unknown).await?.expect_code(1)?.stderr == running.stderr);
    let told = stand
        .relay_command(&["issuer", "test", "corp", "--token-file", &good, "--json"])
        .await?
        .expect_code(0)?;
    let told = json(&told)?;
    ensure!(list(&told, "token").iter().all(|step| step["state"] == "good"), "{told:#}");
    stand.issuer.stop().await?;
    let silent = wait::within(
        "issuer test",
        Duration::from_secs(30),
        stand.relay_command(&["issuer", "test", "corp", "--token-file", &good]),
    )
    .await??
    .expect_code(1)?;
    ensure!(silent.stdout.contains("✗ discovery") && silent.stdout.contains("✗ key"), "{silent:?}");
    stand.passed();
    Ok(())
}
