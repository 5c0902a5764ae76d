//! A second provider, of another author and in another language: Debian's glewlwyd. People log in by its device flow, the relay takes its
//! JWTs by their signature and, asked to, by its word.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::client::Cli;
use postern_tests::glewlwyd::{Glewlwyd, iss};
use postern_tests::issuer::forge;
use postern_tests::site::{Plan, Site};
use postern_tests::stand::say;
use postern_tests::upstream::Echo;
use postern_tests::wait;
use serde_json::json;

/// Stands for the relay's address, which is known only once it runs.
const HERE: &str = "https://relay.invalid";
const BY_SIGNATURE: &str = "check = \"jwt\"";

fn plan(port: u16) -> Plan {
    // The certificate's authority is in the site's directory, where relay.toml is.
    Plan::on_loopback(&format!(
        r#"
[services.echo]
agent = "dc1"
issuers = ["glewlwyd"]
rules = [
    {{ name = "auditors read", allow = "glewlwyd/token-role:auditor", to = "GET /audit/**", with = {{ scope = "invoices" }} }},
    {{ name = "finance reads", allow = "glewlwyd/group:finance", to = "GET /finance/**" }},
    {{ name = "ada reads", allow = "glewlwyd/user:ada", to = "GET /ada/**" }},
    {{ name = "no role has a comma", allow = "glewlwyd/token-role:clerk,auditor", to = "GET /both/**" }},
]

[[issuers]]
name = "glewlwyd"
issuer = "{}"
audience = ["{HERE}"]
ca = "ca.pem"
user_from = "username"
login = {{ client_id = "postern-cli", flows = ["device"], scopes = ["openid", "invoices", "offline_access"] }}
{BY_SIGNATURE}
"#,
        iss(port)
    ))
}

/// The relay, an agent with an echo behind it, and glewlwyd.
async fn start(echo: &Echo, interval: u64) -> Result<(Site, Glewlwyd)> {
    let port = wait::free_port()?;
    let mut site = Site::start(&plan(port)).await?;
    let relay = format!("127.0.0.1:{}", site.port);
    site.enrol("dc1", &relay, &format!("[services.echo]\nupstream = \"{}\"\n", echo.url()), None).await?;
    site.start_agent("dc1").await?;
    let directory = site.path("");
    let glewlwyd = Glewlwyd::start(&directory, &site.pki, port, &site.url, interval).await?;
    let url = site.url.clone();
    reload(&site, HERE, &url).await?;
    Ok((site, glewlwyd))
}

async fn reload(site: &Site, from: &str, to: &str) -> Result<()> {
    let path = site.path("relay.toml");
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "relay.toml does not contain {from:?}");
    std::fs::write(path, text.replace(from, to))?;
    site.relay_command(&["reload"]).await?.expect_code(0).map(drop)
}

/// An access token for the relay, or for whatever it is for without a resource.
async fn token(glewlwyd: &Glewlwyd, resource: Option<&str>) -> Result<String> {
    let device = glewlwyd.device_start(resource).await?;
    let text = |name: &str| device[name].as_str().unwrap_or_default();
    glewlwyd.approve(text("user_code")).await?;
    let tokens = glewlwyd.device_finish(text("device_code")).await?.expect_status(200)?.json()?;
    ensure!(tokens["token_type"] == "bearer", "{tokens}");
    Ok(tokens["access_token"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_person_logs_in_and_is_told_to_slow_down() -> Result<()> {
    let echo = Echo::start()?;
    let (site, mut glewlwyd) = start(&echo, 1).await?;

    say("what it says to those who ask too often is its own");
    let device = glewlwyd.device_start(None).await?;
    let code = device["device_code"].as_str().unwrap_or_default();
    for expected in ["authorization_pending", "slow_down"] {
        let answer = glewlwyd.device_finish(code).await?.expect_status(400)?;
        ensure!(answer.text().contains(expected), "{}", answer.text());
    }

    say("`postern login`, which is told one interval and held to another");
    let ada = Cli::new(&site.path("home-ada"), &format!("127.0.0.1:{}", site.port), &site.pki.ca_file())?;
    let mut login = ada.start(&["login", &format!("127.0.0.1:{}", site.port), "--device"])?;
    let code = login.wait_value("Code: ").await?;
    glewlwyd.interval(4).await?;
    // From here on each of its questions, a second apart, comes too soon.
    let began = Instant::now();
    wait::until("the client has asked twice", Duration::from_secs(10), async || {
        (began.elapsed() > Duration::from_secs(3)).then_some(())
    })
    .await?;
    glewlwyd.approve(&code).await?;
    let status = login.wait_exit(Duration::from_secs(40)).await?;
    let took = began.elapsed();
    ensure!(status.success(), "{}", login.log_text());
    say(&format!("logged in after {took:?}"));
    ensure!(took > Duration::from_secs(6), "it asked as often as before: {took:?}");

    say("its token opens what policy allows it");
    let answer = ada.run(&["curl", "-sS", "echo/audit/x"]).await?.expect_code(0)?;
    ensure!(answer.stdout.contains("/audit/x"), "{}", answer.stdout);
    ada.run(&["curl", "-sS", "echo/both/x"]).await?.expect_code(5)?;
    let shown = ada.run(&["token"]).await?.expect_code(0)?.stdout;
    let (_, claims) = forge::decode(shown.trim())?;
    ensure!(claims["aud"] == json!(site.url) && claims["roles"] == "clerk,auditor", "{claims}");
    site.passed();
    Ok(())
}

#[tokio::test]
async fn its_tokens_are_taken_by_signature_and_by_its_word() -> Result<()> {
    let echo = Echo::start()?;
    let (site, glewlwyd) = start(&echo, 1).await?;
    let at = |path: &str| format!("{}/echo{path}", site.url);
    let good = token(&glewlwyd, Some(&site.url)).await?;

    say("by signature: roles and groups are lists with commas");
    site.wait_status(&at("/audit/x"), &good, 200, wait::SOON).await?;
    for (path, status) in [("/finance/x", 200), ("/both/x", 403), ("/ada/x", 403)] {
        site.http.get(&at(path), Some(&good)).await?.expect_status(status)?;
    }
    say("without a resource its audience is the list of scopes: not meant for the relay");
    let unmeant = token(&glewlwyd, None).await?;
    let (_, claims) = forge::decode(&unmeant)?;
    ensure!(claims["aud"].as_str().is_some_and(|aud| aud.contains("invoices")), "{claims}");
    let refused = site.http.get(&at("/audit/x"), Some(&unmeant)).await?.expect_status(401)?;
    ensure!(refused.text().contains("not meant for this audience"), "{}", refused.text());
    say("a signature says nothing of revocation");
    glewlwyd.revoke(&good).await?;
    site.http.get(&at("/audit/x"), Some(&good)).await?.expect_status(200)?;

    say("by its word, as a client with a secret");
    std::fs::write(site.path("relay.secret"), "relay-secret")?;
    let by_word = "check = \"introspect\"\nintrospect = { client_id = \"relay\", client_secret = { file = \"relay.secret\" }, cache = \"1s\" }";
    reload(&site, BY_SIGNATURE, by_word).await?;
    let refused = site.http.get(&at("/ada/x"), Some(&good)).await?.expect_status(401)?;
    ensure!(refused.text().contains("not active"), "{}", refused.text());
    let fresh = token(&glewlwyd, Some(&site.url)).await?;
    // Its answers name people, and neither their roles nor their groups.
    for (path, status) in [("/ada/x", 200), ("/audit/x", 403), ("/finance/x", 403)] {
        site.http.get(&at(path), Some(&fresh)).await?.expect_status(status)?;
    }
    let refused = site.http.get(&at("/ada/x"), Some(&unmeant)).await?.expect_status(401)?;
    ensure!(refused.text().contains("not meant for this audience"), "{}", refused.text());
    glewlwyd.revoke(&fresh).await?;
    site.wait_status(&at("/ada/x"), &fresh, 401, Duration::from_secs(5)).await?;

    say("by its word, with a token of the relay's own; refused with an empty body it says nothing");
    std::fs::write(site.path("relay.token"), glewlwyd.relay_token().await?)?;
    std::fs::write(site.path("wrong.token"), "wrong")?;
    let bearer = |file: &str| {
        format!(
            "check = \"introspect\"\nintrospect = {{ auth = \"bearer\", token = {{ file = \"{file}\" }} }}"
        )
    };
    reload(&site, by_word, &bearer("relay.token")).await?;
    let fresh = token(&glewlwyd, Some(&site.url)).await?;
    site.http.get(&at("/ada/x"), Some(&fresh)).await?.expect_status(200)?;
    reload(&site, &bearer("relay.token"), &bearer("wrong.token")).await?;
    let other = token(&glewlwyd, Some(&site.url)).await?;
    let refused = site.http.get(&at("/ada/x"), Some(&other)).await?.expect_status(503)?;
    ensure!(refused.text().contains("cannot be asked"), "{}", refused.text());
    site.passed();
    Ok(())
}
