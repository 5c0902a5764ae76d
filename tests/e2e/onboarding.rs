//! A service is on board with a few lines: written by `service add` or dropped into services.d, in force after a reload, and gone as
//! easily; what is not good changes nothing. A reload says what it changed, on the terminal and in the audit log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::mint::Mint;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};

const AGENT_TABLES: &str = r#"
[services.wiki]
upstream = "{echo}"
[services.web]
upstream = "{echo}"
"#;

const WEB: &str =
    "# dropped in\n[services.web]\nagent = \"dc1\"\nrules = [{ allow = \"role:clerk\", to = \"GET /**\" }]\n";

const ADD: [&str; 9] =
    ["service", "add", "wiki", "--agent", "dc1", "--allow", "role:clerk", "--to", "GET /**"];

#[tokio::test]
async fn a_few_lines_put_a_service_on_board() -> Result<()> {
    let extra = Extra { agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let ada = stand.issuer.token("ada").await?;
    let get = async |stand: &Stand, path: &str| stand.http.get(&stand.at(path), Some(&ada)).await;
    get(&stand, "/wiki/x").await?.expect_status(404)?;

    say("into the configuration itself, whose comments and order stay");
    stand.edit("relay.toml", "[services.echo]\n", "# says what it hears\n[services.echo] # here\n")?;
    let before = std::fs::read_to_string(stand.path("relay.toml"))?;
    let added = stand.relay_command(&ADD).await?.expect_code(0)?;
    ensure!(added.stdout == "[services.wiki]\nupstream = \"http://127.0.0.1:8080\"\n", "{added:?}");
    ensure!(added.stderr.contains("postern-relay reload"), "{added:?}");
    let after = std::fs::read_to_string(stand.path("relay.toml"))?;
    let lines = "[services.wiki]\nagent = \"dc1\"\nrules = [{ allow = \"role:clerk\", to = \"GET /**\" }]\n";
    ensure!(after.contains(lines) && after.replace(&format!("\n{lines}"), "") == before, "{after}");
    get(&stand, "/wiki/x").await?.expect_status(404)?;
    let reloaded = stand.relay_command(&["reload"]).await?.expect_code(0)?;
    ensure!(reloaded.stdout == "service wiki added\nrule \"wiki#1\" of service wiki added\n", "{reloaded:?}");
    stand.wait_status("/wiki/x", &ada, 200, wait::SOON).await?;
    let again = stand.relay_command(&ADD).await?.expect_code(1)?;
    ensure!(again.stderr.contains("already in"), "{again:?}");
    let listed = stand.relay_command(&["service", "ls"]).await?.expect_code(0)?.stdout;
    ensure!(
        ["wiki", "/wiki", "billing", "echo", "relay.toml"].iter().all(|word| listed.contains(word)),
        "{listed}"
    );
    stand.relay_command(&["service", "rm", "wiki", "--reload"]).await?.expect_code(0)?;
    get(&stand, "/wiki/x").await?.expect_status(404)?;
    ensure!(std::fs::read_to_string(stand.path("relay.toml"))? == before);

    say("into a file of its own, where include says so");
    stand.edit("relay.toml", "version = 1\n", "version = 1\ninclude = [\"services.d/*.toml\"]\n")?;
    let reloaded = stand.relay_command(&["--json", "reload"]).await?.expect_code(0)?;
    ensure!(serde_json::from_str::<Value>(&reloaded.stdout)?["changes"] == json!([]), "{reloaded:?}");
    let mut add = ADD.to_vec();
    add.extend(["--reload", "--json"]);
    stand.relay_command(&add).await?.expect_code(0)?;
    stand.wait_status("/wiki/x", &ada, 200, wait::SOON).await?;
    let file = stand.path("services.d/wiki.toml");
    ensure!(std::fs::read_to_string(&file)? == lines, "{}", file.display());

    say("dropped in by hand, in force after a signal");
    std::fs::write(stand.path("services.d/web.toml"), WEB)?;
    stand.relay()?.signal(Signal::HUP)?;
    stand.wait_status("/web/x", &ada, 200, wait::SOON).await?;
    let log = stand.relay()?.wait_line("service web added", wait::SOON).await?;
    ensure!(log.contains("reloaded"), "{log}");

    say("what is not good is not written, and changes nothing");
    for (to, allow, why) in [("GET **", "role:clerk", "must start with"), ("GET /**", "role:clerc", "clerc")]
    {
        let args = ["service", "add", "bad", "--agent", "dc1", "--allow", allow, "--to", to, "--reload"];
        let refused = stand.relay_command(&args).await?.expect_code(3)?;
        ensure!(
            refused.stderr.contains("nothing was written") && refused.stderr.contains(why),
            "{refused:?}"
        );
        ensure!(!stand.path("services.d/bad.toml").exists());
    }
    std::fs::write(stand.path("services.d/web.toml"), WEB.replace("GET /**", "GET **"))?;
    let refused = stand.relay_command(&["reload"]).await?.expect_code(3)?;
    ensure!(refused.stderr.contains("services.d/web.toml:4"), "{refused:?}");
    get(&stand, "/web/x").await?.expect_status(200)?;
    get(&stand, "/wiki/x").await?.expect_status(200)?;
    std::fs::write(stand.path("services.d/web.toml"), WEB)?;

    say("and out again, the file with it");
    stand.relay_command(&["service", "rm", "wiki", "--reload"]).await?.expect_code(0)?;
    ensure!(!file.exists());
    get(&stand, "/wiki/x").await?.expect_status(404)?;
    stand.relay_command(&["service", "rm", "wiki"]).await?.expect_code(6)?;

    say("the audit log has it all");
    let reloads = stand.wait_audit(7, |line| line["event"] == "reload").await?;
    let ok: Vec<String> = reloads
        .iter()
        .filter(|line| line["outcome"] == "ok")
        .map(|line| line["changes"].to_string())
        .collect();
    let wanted = "[\"service wiki added\",\"rule \\\"wiki#1\\\" of service wiki added\"]";
    ensure!(ok.first().is_some_and(|changes| changes == wanted), "{ok:?}");
    ensure!(ok.last().is_some_and(|changes| changes.contains("service wiki removed")), "{ok:?}");
    let refused = reloads.iter().find(|line| line["outcome"] == "refused").context("no refused reload")?;
    ensure!(refused["errors"].to_string().contains("web.toml"), "{refused}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_few_lines_more_and_the_agent_decides_again() -> Result<()> {
    let mut stand = Stand::start().await?;
    let mint = Mint::publish(&stand)?;
    mint.replace(&stand).await?;
    let audience = stand.at("/ledger");
    let add =
        |name, who| ["service", "add", name, "--agent", "dc1", "--allow", who, "--to", "GET /**", "--verify"];
    let mut command = add("ledger", "group:finance").to_vec();
    command.push("--json");
    let added = stand.relay_command(&command).await?.expect_code(0)?;
    ensure!(added.stderr.contains(&audience), "{added:?}");
    let lines = serde_json::from_str::<Value>(&added.stdout)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let lines = lines["agent_toml"].as_str().context("no lines")?;

    say("pasted as they are, but for the upstream's address");
    let (toml, upstream) = (std::fs::read_to_string(stand.path("agent.toml"))?, stand.echo.url());
    let lines = lines.replace("http://127.0.0.1:8080", &upstream);
    std::fs::write(stand.path("agent.toml"), format!("{toml}\n{lines}\n"))?;
    stand.agent_command(&["config", "check"]).await?.expect_code(0)?;
    stand.stop_agent(Signal::TERM).await?;
    stand.start_agent().await?;
    let token = |claims| mint.token("ada", Duration::from_mins(5), &claims);
    let good = token(json!({ "aud": audience }))?;
    stand.wait_status("/ledger/x", &good, 200, wait::SOON).await?;
    let relays = token(json!({}))?;
    stand.http.get(&stand.at("/ledger/x"), Some(&relays)).await?.expect_status(401)?;

    say("what the relay allows all of a sudden, the agent does not");
    let stranger = token(json!({ "aud": audience, "groups": ["staff"] }))?;
    let refusal = stand.http.get(&stand.at("/ledger/x"), Some(&stranger)).await?.expect_status(403)?;
    ensure!(!refusal.header("proxy-status").starts_with("agent"), "{:?}", refusal.headers);
    let rule = "{ allow = \"group:finance\", to = \"GET /**\" }";
    stand.edit("relay.toml", rule, "{ allow = \"*\", to = \"* /**\" }")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let refusal = stand.http.get(&stand.at("/ledger/x"), Some(&stranger)).await?.expect_status(403)?;
    ensure!(refusal.header("proxy-status").starts_with("agent"), "{:?}", refusal.headers);
    let other = stand.http.call("DELETE", &stand.at("/ledger/x"), Some(&good)).await?.expect_status(403)?;
    ensure!(other.header("proxy-status").starts_with("agent"), "{:?}", other.headers);
    stand.http.get(&stand.at("/ledger/x"), Some(&good)).await?.expect_status(200)?;

    say("roles are the relay's; an audience is what is said");
    let mut command = add("books", "role:clerk").to_vec();
    command.extend(["--audience", "books"]);
    let added = stand.relay_command(&command).await?.expect_code(0)?;
    ensure!(!added.stdout.contains("rules") && added.stderr.contains("roles are the relay's"), "{added:?}");
    ensure!(added.stdout.contains("audience = \"books\""), "{added:?}");
    // One that another service has already would let each use the other's tokens.
    let mut command = add("more", "*").to_vec();
    command.extend(["--audience", "books"]);
    let refused = stand.relay_command(&command).await?.expect_code(3)?;
    ensure!(refused.stderr.contains("nothing was written"), "{refused:?}");
    stand.passed();
    Ok(())
}
