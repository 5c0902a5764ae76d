//! Issuers of an agent that verifies are asked through the proxy of agent.toml (Debian's tinyproxy), and by no other way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::issuer::{Login, Rotation};
use postern_tests::process::{Program, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::{tinyproxy, wait};
use serde_json::Value;

const PATH: &str = "/vault/x";
/// Of the service that is verified; the issuer knows it.
const AUDIENCE: &str = "https://other.example.com";

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
audience = ["https://other.example.com"]
caller_token = "agent"
rules = [{ allow = "*", to = "GET /**" }]
"#;

/// What the agent's own look says of its issuer.
async fn issuer_check(stand: &Stand) -> Result<Value> {
    let report = stand.agent_command(&["doctor", "--json"]).await?;
    let report: Value = serde_json::from_str(&report.stdout).with_context(|| format!("{report:?}"))?;
    let checks = report["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == "issuer corp");
    found.cloned().with_context(|| format!("no check of the issuer: {report:#}"))
}

#[tokio::test]
async fn an_agents_issuers_are_asked_through_its_proxy() -> Result<()> {
    let extra = Extra {
        tables: TABLES.to_owned(),
        agent_tables: "[services.vault]\nupstream = \"{echo}\"\nverify = {}\n".to_owned(),
        ..Extra::default()
    };
    let mut stand = Stand::relay_only(extra).await?;
    let port = wait::free_port()?;
    let (iss, ca) = (stand.issuer.iss().to_owned(), stand.pki.ca_file());
    let issuer_port: u16 = iss.rsplit(':').next().context("no port")?.parse()?;
    let issuer = format!(
        "[[issuers]]\nname = \"corp\"\nissuer = \"{iss}\"\naudience = \"{AUDIENCE}\"\nca = \"{}\"\n\n[telemetry]",
        ca.display()
    );
    stand.edit("agent.toml", "[telemetry]", &issuer)?;
    let key = format!("version = 1\nproxy = \"http://127.0.0.1:{port}\"\n");
    stand.edit("agent.toml", "version = 1\n", &key)?;
    // The tunnel is QUIC's, which no proxy carries: what goes through this one is for issuers.
    let invite = stand.invite("dc1", &[]).await?;
    stand.join(&invite).await?.expect_code(0)?;
    let for_relay = stand.issuer.token("ada").await?;
    let login = Login::of("ada").resource(AUDIENCE);
    let token = stand.issuer.login(&login).await?.access;

    say("without the proxy nobody is let in, for the agent goes no other way");
    stand.start_agent().await?;
    wait::until("the agent has a tunnel", wait::SOON, async || {
        let answer = stand.http.get(&stand.at("/echo/x"), Some(&for_relay)).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let refused = stand.http.get(&stand.at(PATH), Some(&token)).await?;
    ensure!(refused.status != 200, "it was let in");
    ensure!(refused.text().contains("the keys of issuer corp cannot be had"), "{}", refused.text());
    let check = issuer_check(&stand).await?;
    let said = check.to_string();
    ensure!(check["state"] == "bad" && said.contains(&format!("127.0.0.1:{port}")), "{check}");
    ensure!(said.contains("`proxy`"), "no word of what to do: {check}");

    say("without a password neither, and that is what the agent says");
    let proxy = tinyproxy::start(&stand, port, issuer_port).await?;
    let check = wait::until("the agent has asked again", wait::SOON * 3, async || {
        issuer_check(&stand).await.ok().filter(|check| check.to_string().contains("USER:PASSWORD"))
    })
    .await?;
    ensure!(check["state"] == "bad", "{check}");

    say("with one the issuer's keys come through it");
    stand.edit("agent.toml", "proxy = \"http://", "proxy = \"http://ada:secret@")?;
    stand.stop_agent(Signal::TERM).await?;
    stand.start_agent().await?;
    stand.wait_status(PATH, &token, 200, wait::SOON * 2).await?;
    let connects = |proxy: &Program| proxy.log_text().matches(&format!("127.0.0.1:{issuer_port}")).count();
    ensure!(connects(&proxy) > 0, "{}", proxy.tail());
    let check = issuer_check(&stand).await?;
    ensure!(check["state"] == "good", "{check}");

    say("new ones, too, and not past it while it is away");
    let mut proxy = proxy;
    proxy.stop(Signal::KILL).await?;
    stand.issuer.rotate(Rotation::Overlap).await?;
    let for_relay = stand.issuer.token("ada").await?;
    let fresh = stand.issuer.login(&login).await?.access;
    // The relay, which needs no proxy, has the new keys.
    stand.wait_status("/echo/x", &for_relay, 200, wait::SOON).await?;
    let refused = stand.http.get(&stand.at(PATH), Some(&fresh)).await?;
    ensure!(refused.status != 200, "the agent knows the new keys");
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(200)?;
    let _proxy = tinyproxy::start(&stand, port, issuer_port).await?;
    stand.wait_status(PATH, &fresh, 200, Duration::from_secs(40)).await?;
    let log = stand.agent()?.log_text();
    ensure!(!log.contains("secret"), "the password is in the log: {log}");
    stand.passed();
    Ok(())
}
