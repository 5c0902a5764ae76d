//! The audit log proves itself: over load, resets, a kill and rotation every line is proved by the key that `init` showed; whatever is
//! changed, removed, moved or cut off is found and named, by the key or by what the agent holds; and what only one of the two logs saw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::http::{empty, request};
use postern_tests::process::{Program, Signal, binary, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;
use tokio::task::JoinSet;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit.md");

/// The relay's files, oldest first.
fn files(stand: &Stand) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(stand.dir())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("audit.jsonl") {
            files.push(path);
        }
    }
    // The one without an ending is the newest.
    files.sort_by_key(|path| (path.extension().is_some_and(|end| end == "jsonl"), path.clone()));
    Ok(files)
}

fn lines(files: &[PathBuf]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for file in files {
        for line in std::fs::read_to_string(file)?.lines() {
            all.push(serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()))?);
        }
    }
    Ok(all)
}

/// `audit verify --json`: exit code and report.
async fn verify(stand: &Stand, files: &[PathBuf], key: bool, against: Option<&Path>) -> Result<(i32, Value)> {
    let mut args = vec!["audit".to_owned(), "verify".into(), "--json".into()];
    args.extend(files.iter().map(|file| file.display().to_string()));
    if key {
        args.extend(["--key-file".into(), stand.path("audit-key.txt").display().to_string()]);
    }
    if let Some(agent) = against {
        args.extend(["--against".into(), agent.display().to_string()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = stand.relay_command(&args).await?;
    let report = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    Ok((output.code, report))
}

/// Requests of every kind, many at once; some callers leave in the middle.
async fn load(stand: &Stand, ada: &str, bob: &str) -> Result<()> {
    let calls =
        ["/echo/a", "/billing/v1/invoices/7", "/nowhere", "/echo/status/500", "/echo/stream?bytes=30000"];
    let one = async |n: usize| -> Result<()> {
        let token = if n.is_multiple_of(3) { bob } else { ada };
        if n.is_multiple_of(7) {
            // Never answered: the caller gives up.
            let url = stand.at("/echo/hold");
            let held = stand.http.get(&url, Some(token));
            ensure!(tokio::time::timeout(Duration::from_millis(30), held).await.is_err(), "it was answered");
        } else if n.is_multiple_of(5) {
            let broken = request("GET", &stand.at("/echo/broken?bytes=30000"), Some(token)).body(empty())?;
            // Its body breaks off, and with it the answer.
            drop(stand.http.stream(broken).await?);
        } else {
            stand.http.get(&stand.at(calls[n % calls.len()]), Some(token)).await?;
        }
        Ok(())
    };
    let all: Vec<usize> = (0..200).collect();
    for some in all.chunks(20) {
        futures_util::future::try_join_all(some.iter().map(|n| one(*n))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_line_is_proved_and_every_change_is_named() -> Result<()> {
    let extra = Extra { audit: "rotate = { size = \"64KiB\" }".to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);

    say("load with resets, a kill, and load again");
    load(&stand, &ada, &bob).await?;
    let quiet = async |stand: &Stand| {
        wait::until("every request has its end", wait::SOON, async || {
            let lines = lines(&files(stand).ok()?).ok()?;
            let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
            (count("decision") > 0 && count("decision") == count("end")).then_some(())
        })
        .await
    };
    quiet(&stand).await?;
    stand.stop_relay(Signal::KILL).await?;
    stand.start_relay().await?;
    stand.wait_status("/echo/back", &ada, 200, wait::SOON).await?;
    load(&stand, &ada, &bob).await?;
    quiet(&stand).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.stop_agent(Signal::TERM).await?;

    let all = files(&stand)?;
    ensure!(all.len() > 3, "{all:?}");
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let whole = lines(&all)?;
    for line in &whole {
        let Some(id) = line["request_id"].as_str() else { continue };
        let entry = found.entry(id.to_owned()).or_default();
        match line["event"].as_str() {
            Some("decision") => entry.0 += 1,
            Some("end") => entry.1 += 1,
            other => anyhow::bail!("{other:?}: {line}"),
        }
    }
    let odd: Vec<_> = found.iter().filter(|(_, counts)| **counts != (1, 1)).collect();
    ensure!(odd.is_empty() && found.len() > 350, "{} requests, of which {odd:?}", found.len());
    let agent = stand.path("agent/audit.jsonl");
    let of_agent = lines(std::slice::from_ref(&agent))?;
    let served = of_agent.iter().filter(|line| line["event"] == "request").count();
    say(&format!(
        "{} lines in {} files; {} requests, {served} at the agent",
        whole.len(),
        all.len(),
        found.len()
    ));

    say("every event and every field is in docs/audit.md");
    let document = std::fs::read_to_string(DOCUMENT)?;
    for line in whole.iter().chain(&of_agent) {
        let event = line["event"].as_str().unwrap_or_default();
        let fields = line.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        for name in fields.chain([event]) {
            ensure!(document.contains(&format!("`{name}`")), "{name} is not in docs/audit.md: {line}");
        }
    }

    say("all of it is proved");
    let (code, report) = verify(&stand, &all, true, Some(&agent)).await?;
    ensure!(code == 0 && report["ok"] == true, "{report}");
    ensure!(report["proved"] == whole.len() && report["last"] == whole.len(), "{report}");
    ensure!(report["heads_met"].as_u64() >= Some(2) && report["requests_shared"] == served, "{report}");
    let (code, report) = verify(&stand, &all[1..], true, None).await?;
    let missing = &report["findings"][0];
    ensure!(
        code == 1 && missing["kind"] == "missing" && missing["seq"] == 1,
        "a file that is gone: {report}"
    );

    say("numbers alone prove nothing, and are not called good");
    let (code, report) = verify(&stand, &all, false, None).await?;
    ensure!(code == 1 && report["ok"].is_null() && report["findings"] == serde_json::json!([]), "{report}");
    let logs: Vec<String> = all.iter().map(|file| file.display().to_string()).collect();
    let mut args = vec!["audit", "verify", "--numbers-only"];
    args.extend(logs.iter().map(String::as_str));
    let numbers = stand.relay_command(&args).await?.expect_code(0)?;
    ensure!(numbers.stderr.contains("contents NOT proved"), "{}", numbers.stderr);
    let empty = stand.path("empty.jsonl");
    std::fs::write(&empty, "")?;
    let empty = empty.display().to_string();
    let none = stand.relay_command(&["audit", "verify", &empty, "--numbers-only"]).await?;
    ensure!(none.code == 1 && none.stderr.contains("nothing was verified"), "{}", none.stderr);

    say("and nothing can be done to it unseen");
    let copy = stand.path("copy");
    std::fs::create_dir(&copy)?;
    let copies: Vec<PathBuf> =
        all.iter().map(|file| copy.join(file.file_name().unwrap_or_default())).collect();
    let tampered = async |at: usize, change: &dyn Fn(&mut Vec<String>)| -> Result<()> {
        for (from, to) in all.iter().zip(&copies) {
            std::fs::copy(from, to)?;
        }
        let mut lines: Vec<String> =
            std::fs::read_to_string(&copies[at])?.lines().map(str::to_owned).collect();
        change(&mut lines);
        Ok(std::fs::write(&copies[at], lines.join("\n") + "\n")?)
    };
    let first = |report: &Value| {
        let finding = &report["findings"][0];
        (finding["kind"].as_str().unwrap_or_default().to_owned(), finding["line"].as_u64())
    };
    tampered(1, &|lines| lines[4] = lines[4].replacen("\"address\":\"127", "\"address\":\"192", 1)).await?;
    let (code, report) = verify(&stand, &copies, true, None).await?;
    ensure!((code, first(&report)) == (1, ("changed".into(), Some(5))), "changed: {report}");
    let shown = report["findings"][0]["file"].as_str().unwrap_or_default().to_owned();
    ensure!(shown == copies[1].display().to_string(), "{shown}");
    let (code, report) = verify(&stand, &copies, false, Some(&agent)).await?;
    ensure!(code == 1 && first(&report).0 == "rewritten", "without a key: {report}");
    tampered(1, &|lines| drop(lines.remove(4))).await?;
    let (code, report) = verify(&stand, &copies, true, None).await?;
    ensure!((code, first(&report)) == (1, ("missing".into(), Some(5))), "removed: {report}");
    tampered(1, &|lines| lines.swap(4, 5)).await?;
    let (code, report) = verify(&stand, &copies, true, None).await?;
    ensure!((code, first(&report)) == (1, ("out-of-order".into(), Some(5))), "moved: {report}");
    tampered(0, &|lines| lines.insert(4, lines[2].clone())).await?;
    let (code, report) = verify(&stand, &copies, true, None).await?;
    ensure!((code, first(&report)) == (1, ("out-of-order".into(), Some(5))), "repeated: {report}");
    tampered(0, &|_| ()).await?;
    let (code, report) = verify(&stand, &copies[..2], true, Some(&agent)).await?;
    let kinds = report["findings"].to_string();
    ensure!(code == 1 && kinds.contains("truncated"), "cut off behind a head: {report}");

    say(
        "what agents were told first stands: a log rewritten behind it is found, whatever they are told later",
    );
    let told = of_agent.iter().find(|line| line["event"] == "chain-head").context("no head")?;
    let mut again = told.clone();
    again["hash"] = "A".repeat(43).into();
    let twice = stand.path("agent-twice.jsonl");
    std::fs::write(&twice, format!("{}{again}\n", std::fs::read_to_string(&agent)?))?;
    let (code, report) = verify(&stand, &all, true, Some(&twice)).await?;
    let kinds: Vec<_> = report["findings"].as_array().into_iter().flatten().map(|f| &f["kind"]).collect();
    ensure!(code == 1 && kinds == ["two-heads"], "{report}");
    std::fs::write(&twice, format!("{again}\n{}", std::fs::read_to_string(&agent)?))?;
    let (code, report) = verify(&stand, &all, true, Some(&twice)).await?;
    ensure!(code == 1 && report["findings"].to_string().contains("rewritten"), "the first is held: {report}");

    say("requests that only one of them saw are named");
    let in_both = |line: &Value| {
        line["event"] == "request"
            && line["outcome"] == "served"
            && found.contains_key(line["request_id"].as_str().unwrap_or_default())
    };
    let middle = of_agent.iter().filter(|line| in_both(line)).nth(served / 3).context("no request")?;
    let id = middle["request_id"].as_str().context("no id")?.to_owned();
    let less = stand.path("agent-less.jsonl");
    let text = std::fs::read_to_string(&agent)?;
    let without =
        |text: &str| text.split_inclusive('\n').filter(|line| !line.contains(&id)).collect::<String>();
    std::fs::write(&less, without(&text))?;
    let (code, report) = verify(&stand, &all, true, Some(&less)).await?;
    ensure!(code == 1 && report["findings"].as_array().map(Vec::len) == Some(1), "{report}");
    ensure!(
        report["findings"][0]["kind"] == "relay-only" && report["findings"][0]["request_id"] == id.as_str(),
        "{report}"
    );
    for (from, to) in all.iter().zip(&copies) {
        std::fs::write(to, without(&std::fs::read_to_string(from)?))?;
    }
    let (code, report) = verify(&stand, &copies, true, Some(&agent)).await?;
    let is_told = report["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|f| f["kind"] == "agent-only" && f["request_id"] == id.as_str());
    ensure!(code == 1 && is_told, "{report}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_at_work_leaves_no_silent_hole() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    for round in 1..=3 {
        stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
        let mut asking = JoinSet::new();
        for _ in 0..8 {
            let (http, url, token) = (stand.http.clone(), stand.at("/echo/x"), ada.clone());
            asking.spawn(async move { while http.get(&url, Some(&token)).await.is_ok() {} });
        }
        let ends = |line: &Value| line["event"] == "end";
        stand.wait_audit(300 * round, ends).await?;
        stand.stop_relay(Signal::KILL).await?;
        drop(asking);
        stand.start_relay().await?;
    }
    stand.stop_relay(Signal::TERM).await?;
    let all = files(&stand)?;
    let (_, report) = verify(&stand, &all, true, Some(&stand.path("agent/audit.jsonl"))).await?;
    ensure!(report["proved"] == report["lines"] && report["lines"].as_u64() > Some(1800), "{report}");
    let findings = report["findings"].as_array().context("no findings")?;
    // Requests that were under way when it was killed reached the agent, and their ends never the log.
    let odd: Vec<_> = findings.iter().filter(|f| f["kind"] != "gap" && f["kind"] != "agent-only").collect();
    ensure!(odd.is_empty(), "{odd:?}");
    let starts = lines(&all)?.iter().filter(|line| line["event"] == "start").count();
    ensure!(starts == 4, "{starts} starts");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn people_are_pseudonyms_and_found_all_the_same() -> Result<()> {
    let audit = "redact = [\"subject\", \"address\", \"path\"]\nrotate = { size = \"16KiB\" }".to_owned();
    let stand = Stand::start_with(Extra { audit, ..Extra::default() }).await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    let mut args = vec!["-c".to_owned(), stand.path("relay.toml").display().to_string()];
    args.extend(["audit", "tail", "--denied"].map(str::to_owned));
    let log = stand.path("tail.log");
    let mut tail = Program::start("tail", command(binary("postern-relay")?, args), &log)?;

    stand.http.get(&stand.at("/billing/v1/invoices/7"), Some(&ada)).await?.expect_status(200)?;
    let denied = stand.http.get(&stand.at("/billing/v1/invoices/7"), Some(&bob)).await?.expect_status(403)?;
    let denied = denied.header("x-request-id").to_owned();
    tail.wait_line(&denied, wait::SOON).await?;
    for _ in 0..40 {
        stand.http.get(&stand.at("/echo/secret-name"), Some(&ada)).await?.expect_status(200)?;
    }
    let last = stand.http.get(&stand.at("/billing/v1/other"), Some(&bob)).await?.expect_status(403)?;
    let last = tail.wait_line(last.header("x-request-id"), wait::SOON).await?;
    ensure!(files(&stand)?.len() > 1, "the log was put aside meanwhile");
    ensure!(last.contains("  deny   GET billing~"), "{last}");
    ensure!(!tail.log_text().contains("allow"), "{}", tail.log_text());

    let written = lines(&files(&stand)?)?;
    let text = format!("{written:?}");
    for name in ["\"ada\"", "\"bob\"", "127.0.0.1", "secret-name", "invoices/7"] {
        let lines: Vec<_> = written
            .iter()
            .filter(|line| line["event"] != "start" && line.to_string().contains(name))
            .collect();
        ensure!(lines.is_empty(), "{name}: {lines:?}");
    }
    ensure!(text.contains("/v1/invoices/**"), "the rule's pattern stands for the path");

    let found = async |args: &[&str]| -> Result<Vec<Value>> {
        let args = [&["audit", "find", "--json"], args].concat();
        let output = stand.relay_command(&args).await?.expect_code(0)?;
        Ok(output.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    let of_bob = found(&["--user", "bob"]).await?;
    ensure!(of_bob.len() == 4, "two requests: {of_bob:?}");
    let one = found(&["--user", "bob", "--request", &denied]).await?;
    ensure!(one.len() == 2 && one[0]["outcome"] == "deny" && one[1]["status"] == 403, "{one:?}");
    ensure!(found(&["--status", "403", "--since", "1h"]).await?.len() == 4);
    ensure!(found(&["--agent", "dc1", "--service", "echo"]).await?.len() == 80);
    let token = one[0]["token"].as_str().context("no token")?;
    ensure!(found(&["--token", token]).await?.len() == 4);
    ensure!(found(&["--user", "nobody"]).await?.is_empty());
    let shown = stand.relay_command(&["audit", "find", "--request", &denied]).await?.expect_code(0)?;
    ensure!(
        shown.stdout.lines().count() == 2 && shown.stdout.contains("  end    403 billing done (denied)"),
        "{}",
        shown.stdout
    );
    tail.stop(Signal::INT).await?;
    stand.passed();
    Ok(())
}
