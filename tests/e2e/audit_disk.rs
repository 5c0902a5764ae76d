//! The audit log on a full disk, a real one: the reserve carries it on while readiness fails; when that is gone too, requests are refused
//! or go on, as the configuration says; and the log itself tells exactly how many lines are missing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::disk::Disk;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

/// A stand whose audit log is on a small disk, with a reserve of 256 KiB.
async fn stand(full: &str) -> Result<(Stand, Disk)> {
    let audit = format!("reserve = \"256KiB\"\nfull = \"{full}\"");
    let mut stand = Stand::start_with(Extra { audit, ..Extra::default() }).await?;
    let disk = Disk::mount(&stand.path("disk"), "size=2m").await?;
    stand.stop_relay(Signal::TERM).await?;
    std::fs::copy(stand.path("audit.jsonl"), disk.path("audit.jsonl"))?;
    let (old, new) = (stand.path("audit.jsonl"), disk.path("audit.jsonl"));
    stand.edit("relay.toml", &old.display().to_string(), &new.display().to_string())?;
    stand.start_relay().await?;
    Ok((stand, disk))
}

/// The metric, and whether the relay says that it is ready.
async fn health(stand: &mut Stand) -> Result<(u64, bool)> {
    let base = Stand::metrics_url(stand.relay()?).await?;
    let metrics = stand.http.get(&format!("{base}/metrics"), None).await?.expect_status(200)?.text();
    let line =
        metrics.lines().find(|line| line.starts_with("postern_relay_audit_disk ")).context("no metric")?;
    let ready = stand.http.get(&format!("{base}/readyz"), None).await?.status == 200;
    Ok((line.rsplit(' ').next().unwrap_or_default().parse()?, ready))
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// What `audit verify` finds.
async fn findings(stand: &Stand, log: &Path) -> Result<Vec<Value>> {
    let (log, key) = (log.display().to_string(), stand.path("audit-key.txt").display().to_string());
    let output = stand.relay_command(&["audit", "verify", "--json", &log, "--key-file", &key]).await?;
    let report: Value = serde_json::from_str(&output.stdout)?;
    ensure!(report["proved"] == report["lines"], "{report}");
    Ok(report["findings"].as_array().cloned().unwrap_or_default())
}

/// Fills the disk and asks until `enough`; gives how often each status came.
async fn ask_until(
    stand: &Stand,
    token: &str,
    mut enough: impl FnMut(&std::collections::BTreeMap<u16, usize>) -> bool,
) -> Result<std::collections::BTreeMap<u16, usize>> {
    let mut told = std::collections::BTreeMap::new();
    for _ in 0..5000 {
        let answer = stand.http.get(&stand.at("/echo/x"), Some(token)).await?;
        *told.entry(answer.status.as_u16()).or_default() += 1;
        if enough(&told) {
            return Ok(told);
        }
    }
    anyhow::bail!("it never came to that: {told:?}")
}

#[tokio::test]
async fn a_full_disk_uses_the_reserve_and_then_refuses() -> Result<()> {
    let (mut stand, disk) = stand("block").await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    ensure!(health(&mut stand).await? == (0, true));
    disk.fill()?;

    say("on the reserve requests go on, and whoever looks is told");
    let told = ask_until(&stand, &ada, |told| told[&200] >= 30).await?;
    ensure!(told.len() == 1, "{told:?}");
    ensure!(health(&mut stand).await? == (1, false), "{:?}", health(&mut stand).await?);

    say("when it is gone too, requests are refused");
    let told = ask_until(&stand, &ada, |told| told.get(&503) == Some(&20)).await?;
    ensure!(told.get(&200) > Some(&50), "the reserve held {told:?}");
    ensure!(health(&mut stand).await? == (2, false));
    let refused = stand.http.get(&stand.at("/echo/x"), Some(&ada)).await?.expect_status(503)?.json()?;
    ensure!(refused["type"] == "urn:postern:audit-unavailable", "{refused}");

    say("with room again they go on, and the log tells what it did not take");
    disk.clear()?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    ensure!(health(&mut stand).await? == (0, true));
    stand.stop_relay(Signal::TERM).await?;
    let log = disk.path("audit.jsonl");
    let gaps: Vec<Value> = lines(&log)?.into_iter().filter(|line| line["event"] == "gap").collect();
    let lost: u64 = gaps.iter().filter_map(|gap| gap["lost"].as_u64()).sum();
    ensure!(lost >= 21 && gaps.iter().all(|gap| gap["reason"] == "dropped"), "{gaps:?}");
    let found = findings(&stand, &log).await?;
    ensure!(found.len() == gaps.len() && found.iter().all(|f| f["kind"] == "gap"), "{found:?}");
    let allowed = lines(&log)?.iter().filter(|l| l["event"] == "decision" && l["outcome"] == "allow").count();
    let ended = lines(&log)?.iter().filter(|l| l["event"] == "end" && l["status"] == 200).count();
    ensure!(allowed == ended, "{allowed} allowed, {ended} ended: what was allowed is never lost");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_full_disk_drops_lines_and_counts_them() -> Result<()> {
    let (mut stand, disk) = stand("drop").await?;
    let ada = stand.issuer.token("ada").await?;
    let log = disk.path("audit.jsonl");
    let count_in = |log: &Path, name: &str| -> Result<usize> {
        Ok(lines(log)?.iter().filter(|line| line["event"] == name).count())
    };
    let count = |name: &str| count_in(&log, name);
    // What the relay before this one wrote, all of it: it has ended.
    let old = |name: &str| count_in(&stand.path("audit.jsonl"), name);
    let (opened, closed, mut before) = (old("tunnel-open")?, old("tunnel-closed")?, old("decision")?);
    ensure!(before == old("end")?, "a request without its end");
    // Requests are counted where they are made: the log may be behind, and then as many decisions as ends say nothing.
    wait::until("a request is answered", wait::SOON, async || {
        before += 1;
        let answer = stand.http.get(&stand.at("/echo/x"), Some(&ada)).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    wait::until("all is written", wait::SOON, async || {
        let is_whole = count("decision").ok()? == before && count("end").ok()? == before;
        // Both tunnels are back and no try of another has its end to come, so that nothing but requests has lines from here on.
        let open =
            (count("tunnel-open").ok()? - opened).checked_sub(count("tunnel-closed").ok()? - closed)?;
        let status = stand.agent_command(&["status", "--json"]).await.ok()?;
        let status: Value = serde_json::from_str(&status.stdout).ok()?;
        let usable = status["tunnels"].as_array()?.iter().filter(|tunnel| tunnel["usable"] == true).count();
        (is_whole && open == 2 && usable == 2).then_some(())
    })
    .await?;
    disk.fill()?;

    say("requests go on, with or without their lines");
    let mut asked = 0;
    while health(&mut stand).await?.0 < 2 {
        let told = ask_until(&stand, &ada, |told| told.values().sum::<usize>() == 50).await?;
        ensure!(told.len() == 1 && told.contains_key(&200), "{told:?}");
        asked += 50;
        ensure!(asked < 5000, "the reserve never ends");
    }
    let told = ask_until(&stand, &ada, |told| told.values().sum::<usize>() == 100).await?;
    ensure!(told == [(200, 100)].into(), "{told:?}");
    asked += 100;
    ensure!(!health(&mut stand).await?.1, "ready on a full disk");

    say("with room again the log says how many are missing, to the line");
    disk.clear()?;
    wait::until("the gap is told", wait::SOON, async || (count("gap").ok()? > 0).then_some(())).await?;
    ask_until(&stand, &ada, |told| told.values().sum::<usize>() == 5).await?;
    asked += 5;
    stand.stop_relay(Signal::TERM).await?;
    let written = count("decision")? + count("end")?;
    let lost: u64 =
        lines(&log)?.iter().filter(|l| l["event"] == "gap").filter_map(|gap| gap["lost"].as_u64()).sum();
    ensure!(lost > 100, "{lost} lines lost");
    let missing = 2 * (before + asked) - written;
    ensure!(u64::try_from(missing)? == lost, "{missing} lines are missing, the log says {lost}");
    let found = findings(&stand, &log).await?;
    ensure!(!found.is_empty() && found.iter().all(|f| f["kind"] == "gap"), "{found:?}");
    stand.passed();
    Ok(())
}
