//! A reload changes everything at once or nothing at all, and says why; certificates are read again when they change.

use anyhow::{Context, Result, ensure};
use postern_tests::process::Signal;
use postern_tests::stand::{Stand, say};
use postern_tests::wait;

const ALLOWED: &str = "/echo/x";

/// The certificate that the relay shows now.
async fn shown(stand: &Stand) -> Result<Vec<u8>> {
    let stream = postern_tests::http::raw::connect(stand.port, stand.pki.roots()?, "127.0.0.1").await?;
    let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
    Ok(chain.first().context("no leaf")?.to_vec())
}

#[tokio::test]
async fn a_reload_is_all_or_nothing() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let good = std::fs::read_to_string(stand.path("relay.toml"))?;
    let url = stand.at(ALLOWED);
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;

    let bad: [(&str, &str, &str, &[&str]); 5] = [
        (
            "an unknown key",
            "agent = \"dc1\"\nrules",
            "agnet = \"dc1\"\nrules",
            &["agnet", "agent", "relay.toml:"],
        ),
        (
            "a role that is not there",
            "allow = \"role:clerk\"",
            "allow = \"role:clerc\"",
            &["clerc", "relay.toml:"],
        ),
        ("a wrong value", "to = \"* /**\" }]", "to = \"* **\" }]", &["relay.toml:"]),
        ("not TOML", "[limits]", "[limits", &["relay.toml:"]),
        (
            "a failing test",
            "[limits]",
            "[[tests]]\nname = \"bob writes\"\nas = { issuer = \"corp\", ip = \"127.0.0.1\" }\ncall = \"PUT billing/v1/invoices/7\"\nexpect = \"allow\"\n\n[limits]",
            &["bob writes", "relay.toml:"],
        ),
    ];
    let mut signals = 0;
    for (name, from, to, words) in bad {
        say(name);
        stand.edit("relay.toml", from, to)?;
        let refused = stand.relay_command(&["reload"]).await?.expect_code(3)?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        for word in words {
            ensure!(said.contains(word), "{name}: nothing of {word:?} in: {said}");
        }
        stand.relay_command(&["config", "check"]).await?.expect_code(3)?;
        stand.relay()?.signal(Signal::HUP)?;
        signals += 1;
        stand.relay()?.wait_lines("not reloaded: ", signals, wait::SOON).await?;
        stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
        stand.http.get(&stand.at("/billing/v1/invoices/7"), Some(&token)).await?.expect_status(200)?;
        std::fs::write(stand.path("relay.toml"), &good)?;
    }
    ensure!(stand.relay()?.is_running());

    say("a good file is in force at once, for connections that were already open, by command");
    stand.edit("relay.toml", "allow = \"*\", to = \"* /**\"", "allow = \"role:batch\", to = \"* /**\"")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    stand.http.get(&url, Some(&token)).await?.expect_status(403)?;
    let batch = stand.issuer.batch("invoices:read").await?;
    stand.http.get(&url, Some(&batch)).await?.expect_status(200)?;

    say("and by signal");
    std::fs::write(stand.path("relay.toml"), &good)?;
    stand.relay()?.signal(Signal::HUP)?;
    stand.wait_status(ALLOWED, &token, 200, wait::SOON).await?;

    say("a service taken away, and given back");
    stand.edit("relay.toml", "[services.echo]\nagent = \"dc1\"", "[services.echo]\nagent = \"dc2\"")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    stand.wait_status(ALLOWED, &token, 503, wait::SOON).await?;
    std::fs::write(stand.path("relay.toml"), &good)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    stand.wait_status(ALLOWED, &token, 200, wait::SOON).await?;

    say("a new certificate");
    let before = shown(&stand).await?;
    stand.pki.server("relay", &["relay.example.com", "*.example.com"])?;
    wait::until("the new certificate is shown", wait::SOON, async || {
        let now = shown(&stand).await.ok()?;
        (now != before).then_some(())
    })
    .await?;
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}
