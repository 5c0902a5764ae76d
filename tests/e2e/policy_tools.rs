//! Before a change is in force: `config diff` tells which calls it would turn round, `policy replay` which of those that were made.

use anyhow::{Context, Result, ensure};
use postern_tests::http::Answer;
use postern_tests::stand::{Stand, say};
use serde_json::Value;

async fn get(stand: &Stand, path: &str, token: &str) -> Result<Answer> {
    stand.http.get(&stand.at(path), Some(token)).await
}

fn calls(flips: &Value) -> Vec<String> {
    let list = flips["flips"].as_array().into_iter().flatten();
    list.map(|flip| {
        format!("{}: {} {}", flip["who"], flip["call"], flip["after"]["allowed"]).replace('"', "")
    })
    .collect()
}

#[tokio::test]
async fn what_a_new_file_would_change_is_told_before() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    let good = std::fs::read_to_string(stand.path("relay.toml"))?;
    let new = stand.path("new.toml");
    let file = new.display().to_string();
    let diff = ["config", "diff", file.as_str()];

    say("nothing, where nothing is different");
    std::fs::write(&new, &good)?;
    let told = stand.relay_command(&diff).await?.expect_code(0)?;
    ensure!(told.stdout.is_empty() && told.stderr.contains("nothing changed"), "{told:?}");

    say("against what the relay has in force");
    let test = "[[tests]]\nname = \"ada reports\"\nas = { user = \"ada\", groups = [\"finance\"], ip = \"192.0.2.7\" }\ncall = \"GET billing/reports\"\nexpect = \"allow\"\n\n[limits]";
    let loosened = good
        .replace("to = \"GET /reports\"\nfrom = [\"10.0.0.0/8\"]", "to = \"GET /reports\"")
        .replace(
            "clerk = { any = [\"group:finance\"] }",
            "clerk = { any = [\"group:finance\", \"group:staff\"] }",
        )
        .replace("[limits]", test);
    std::fs::write(&new, &loosened)?;
    let told = stand.relay_command(&["--json", "config", "diff", file.as_str()]).await?.expect_code(0)?;
    let found: Value = serde_json::from_str(&told.stdout)?;
    let changes = found["changes"].to_string();
    ensure!(
        changes
            == "[\"role clerk changed\",\"rule \\\"the office sees reports\\\" of service billing changed\"]",
        "{changes}"
    );
    let flips = calls(&found);
    for wanted in [
        "test \\ada reports\\: GET billing/reports true",
        "role clerk: GET billing/reports true",
        "group staff with what rule \\clerks read invoices\\ asks for: GET billing/v1/invoices/x true",
    ] {
        ensure!(flips.iter().any(|flip| flip == wanted), "{wanted} is not among {flips:#?}");
    }
    ensure!(!flips.iter().any(|flip| flip.contains("echo")), "{flips:#?}");
    get(&stand, "/billing/reports", &ada).await?.expect_status(403)?;
    let told = stand.relay_command(&diff).await?.expect_code(0)?;
    ensure!(told.stdout.contains("role clerk: GET billing/reports: denied -> allowed"), "{told:?}");

    say("the configuration itself, before its reload");
    std::fs::write(
        stand.path("relay.toml"),
        good.replace("allow = \"*\", to = \"* /**\"", "allow = \"role:batch\", to = \"* /**\""),
    )?;
    let told = stand.relay_command(&["config", "diff"]).await?.expect_code(0)?;
    ensure!(told.stdout.contains("rule \"anyone echoes\" of service echo changed"), "{told:?}");
    ensure!(told.stdout.contains("any token: GET echo/x: allowed -> denied"), "{told:?}");
    std::fs::write(stand.path("relay.toml"), &good)?;

    say("a file that is not good, and no relay to ask");
    std::fs::write(&new, good.replace("role:clerk", "role:clerc"))?;
    stand.relay_command(&diff).await?.expect_code(3)?;
    std::fs::write(&new, &loosened)?;
    stand.stop_relay(postern_tests::process::Signal::TERM).await?;
    let told = stand.relay_command(&diff).await?.expect_code(0)?;
    ensure!(told.stdout.contains("role clerk: GET billing/reports: denied -> allowed"), "{told:?}");
    stand.relay_command(&["config", "diff"]).await?.expect_code(2)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn calls_that_were_made_are_decided_anew() -> Result<()> {
    let stand = Stand::start().await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    for (path, token, status) in [
        ("/billing/v1/invoices/7", &ada, 200),
        ("/billing/v1/invoices/7", &bob, 403),
        ("/billing/status", &bob, 200),
        ("/billing/reports", &ada, 403),
        ("/echo/x", &bob, 200),
        ("/nowhere", &ada, 404),
    ] {
        get(&stand, path, token).await?.expect_status(status)?;
    }
    get(&stand, "/echo/x", "not.a.token").await?.expect_status(401)?;
    let decided = |line: &Value| line["event"] == "decision" && line["service"].is_string();
    stand.wait_audit(6, decided).await?;
    let log = stand.path("audit.jsonl").display().to_string();
    let replay = ["--json", "policy", "replay", "--audit", log.as_str()];

    say("the same rules say the same");
    let told = stand.relay_command(&replay).await?.expect_code(0)?;
    let found: Value = serde_json::from_str(&told.stdout)?;
    ensure!(found["changed"] == serde_json::json!([]) && found["same"] == 5, "{found}");
    ensure!(found["uncertain"] == 0 && found["not_policy"].as_u64().is_some_and(|n| n >= 2), "{found}");

    say("other rules are held against every call");
    stand.edit("relay.toml", "from = [\"127.0.0.0/8\"]", "from = [\"192.0.2.0/24\"]")?;
    stand.edit(
        "relay.toml",
        "batch = { any = [\"client:nightly-batch\"] }",
        "batch = { any = [\"user:bob\"] }",
    )?;
    let told = stand.relay_command(&replay).await?.expect_code(1)?;
    let found: Value = serde_json::from_str(&told.stdout)?;
    let changed: Vec<String> = found["changed"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|call| {
            format!("{} {} {} {}", call["user"], call["call"], call["before"], call["after"]).replace('"', "")
        })
        .collect();
    ensure!(
        changed
            == [
                "bob GET billing/v1/invoices/7 deny allow",
                "bob GET billing/status allow by \\loopback sees the status page\\ deny",
            ],
        "{found}"
    );
    ensure!(found["same"] == 3, "{found}");
    let told = stand.relay_command(&["policy", "replay", "--audit", &log]).await?.expect_code(1)?;
    ensure!(
        told.stdout.contains("bob: GET billing/status: allow by \"loopback sees the status page\" -> deny"),
        "{told:?}"
    );

    say("what hangs on claims is not guessed");
    stand.edit("relay.toml", "rules = [{ name = \"anyone echoes\", allow = \"*\", to = \"* /**\" }]",
        "rules = [{ name = \"anyone echoes\", allow = \"*\", to = \"* /**\", with = { \"claims.department\" = \"it\" } }]")?;
    let told = stand.relay_command(&replay).await?.expect_code(1)?;
    let found: Value = serde_json::from_str(&told.stdout)?;
    ensure!(found["uncertain"] == 1 && found["same"] == 2, "{found}");

    stand.relay_command(&["policy", "replay", "--audit", "/nowhere"]).await?.expect_code(1)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn tests_that_fail_are_told_and_hide_nothing() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    get(&stand, "/billing/v1/invoices/7", &ada).await?.expect_status(200)?;
    stand.wait_audit(1, |line| line["event"] == "decision").await?;
    let good = std::fs::read_to_string(stand.path("relay.toml"))?;
    let with = |expect: &str| {
        let caller = "as = { user = \"ada\", groups = [\"finance\"], scope = [\"invoices:read\"] }";
        let call = "call = \"GET billing/v1/invoices/7\"";
        good.replace(
            "[limits]",
            &format!("[[tests]]\nname = \"ada reads\"\n{caller}\n{call}\nexpect = \"{expect}\"\n\n[limits]"),
        )
    };
    let own = stand.path("relay.toml");

    say("policy test: 0 where all pass, 1 where one fails, 3 where there is nothing to test");
    std::fs::write(&own, with("allow"))?;
    let told = stand.relay_command(&["policy", "test"]).await?.expect_code(0)?;
    ensure!(told.stdout.starts_with("ok  ada reads: "), "{told:?}");
    std::fs::write(&own, with("deny"))?;
    let told = stand.relay_command(&["policy", "test"]).await?.expect_code(1)?;
    ensure!(told.stderr.contains("1 of 1 test(s) fail") && told.stdout.is_empty(), "{told:?}");
    let line = with("deny").lines().position(|line| line == "[[tests]]").context("no test")? + 1;
    ensure!(told.stderr.contains(&format!("relay.toml:{line}:")), "no place: {told:?}");
    let told = stand.relay_command(&["--json", "policy", "test"]).await?.expect_code(1)?;
    let found: Value = serde_json::from_str(&told.stdout)?;
    ensure!(found[0]["name"] == "ada reads" && found[0]["passed"] == false, "{found}");
    std::fs::write(&own, good.replace("role:clerk", "role:clerc"))?;
    let told = stand.relay_command(&["policy", "test"]).await?.expect_code(3)?;
    ensure!(told.stderr.contains("clerc"), "{told:?}");

    say("such a file is not taken");
    std::fs::write(&own, with("deny"))?;
    for refused in [&["config", "check"][..], &["reload"]] {
        let told = stand.relay_command(refused).await?.expect_code(3)?;
        ensure!(told.stderr.contains("test \"ada reads\" fails"), "{told:?}");
    }

    say("but it can be looked at: with a relay and without one, and the failing test is told");
    let looser = with("deny").replace("allow = [\"role:clerk\", \"role:batch\"]", "allow = \"*\"");
    let new = stand.path("new.toml");
    std::fs::write(&new, &looser)?;
    let file = new.display().to_string();
    let log = stand.path("audit.jsonl").display().to_string();
    for is_running in [true, false] {
        if !is_running {
            stand.stop_relay(postern_tests::process::Signal::TERM).await?;
        }
        let told = stand.relay_command(&["config", "diff", &file]).await?.expect_code(0)?;
        ensure!(told.stderr.contains("! ") && told.stderr.contains("test \"ada reads\" fails"), "{told:?}");
        ensure!(told.stdout.contains("rule \"clerks read invoices\" of service billing changed"), "{told:?}");
        ensure!(told.stdout.contains("denied -> allowed"), "{told:?}");
        let told = stand.relay_command(&["--json", "config", "diff", &file]).await?.expect_code(0)?;
        let found: Value = serde_json::from_str(&told.stdout)?;
        ensure!(found["failing"].as_array().is_some_and(|failing| failing.len() == 1), "{found}");
        ensure!(!calls(&found).is_empty(), "{found}");
        let told = stand.relay_command(&["policy", "replay", "--audit", &log]).await?.expect_code(0)?;
        ensure!(told.stderr.contains("test \"ada reads\" fails"), "{told:?}");
        ensure!(told.stderr.contains("0 changed, 1 the same"), "{told:?}");
    }
    let who = stand.path("ada.toml");
    std::fs::write(&who, "user = \"ada\"\ngroups = [\"finance\"]\nscope = [\"invoices:read\"]\n")?;
    let who = who.display().to_string();
    let why = ["policy", "why", "--as", &who, "GET", "billing/v1/invoices/7"];
    let told = stand.relay_command(&why).await?.expect_code(0)?;
    ensure!(told.stdout.contains("clerks read invoices") && told.stderr.contains("fails"), "{told:?}");
    stand.passed();
    Ok(())
}
