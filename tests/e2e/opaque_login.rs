//! People log in where the issuer's access tokens are opaque: nothing of `postern` looks into a token, and the relay asks the issuer.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::client::Cli;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

const ASKED: &str = "/token/introspection";

async fn stand(check: &str) -> Result<Stand> {
    let how = "client_id = \"relay\", client_secret = { file = \"relay.secret\" }, cache = \"2s\", negative = \"2s\"";
    let issuer = format!("check = \"{check}\"\nintrospect = {{ {how} }}");
    let stand = Stand::start_with(Extra { issuer, ..Extra::default() }).await?;
    stand.issuer.opaque(true).await?;
    Ok(stand)
}

/// The session's access token, which nobody can read.
async fn token(cli: &Cli) -> Result<String> {
    let token = cli.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned();
    ensure!(!token.is_empty() && !token.contains('.'), "this is no opaque token: {token}");
    Ok(token)
}

#[tokio::test]
async fn a_session_of_opaque_tokens_is_like_any_other() -> Result<()> {
    let stand = stand("auto").await?;
    for (user, by_browser) in [("ada", false), ("bob", true)] {
        say(&format!("{user} logs in, by {}", if by_browser { "browser" } else { "device code" }));
        let cli = stand.cli(user)?;
        let login = if by_browser {
            cli.login_browser(user, false).await?
        } else {
            cli.login_device(&stand.issuer, user, &[]).await?
        };
        let login = login.expect_code(0)?;
        ensure!(login.stderr.contains(&format!("Logged in as {user}")), "{login:?}");
        token(&cli).await?;
        let header = cli.run(&["token", "--header"]).await?.expect_code(0)?.stdout;
        ensure!(header.starts_with("Authorization: DPoP "), "{header}");
        let whoami = cli.run(&["whoami", "--json"]).await?.expect_code(0)?.stdout;
        let whoami: Value = serde_json::from_str(&whoami)?;
        ensure!(whoami.to_string().contains(user), "{whoami}");
        let listed = cli.run(&["ls"]).await?.expect_code(0)?.stdout;
        ensure!(listed.contains("echo") && listed.contains("billing"), "{listed}");
        cli.run(&["curl", "-sSf", &format!("echo/{user}")]).await?.expect_code(0)?;
        let seen = stand.echo.seen_with(&format!("/{user}"));
        ensure!(seen.len() == 1 && seen[0].header("x-postern-subject") == user, "{seen:?}");
        let clerk = if by_browser { 5 } else { 0 };
        cli.run(&["curl", "-sS", "billing/v1/invoices/7"]).await?.expect_code(clerk)?;
        cli.run(&["can", "GET", "billing/v1/invoices/7"]).await?.expect_code(clerk)?;
        cli.run(&["doctor", "echo"]).await?.expect_code(0)?;
    }
    ensure!(stand.issuer.path_hits(ASKED).await? > 0, "the relay did not ask the issuer");

    say("it renews itself, and a forward lives on");
    let ada = stand.cli("ada")?;
    let before = token(&ada).await?;
    stand.issuer.access_ttl(Duration::from_secs(4)).await?;
    ada.login_device(&stand.issuer, "ada", &["--force"]).await?.expect_code(0)?;
    let (_forward, url) = ada.forward("echo", &[]).await?;
    let first = token(&ada).await?;
    ensure!(first != before);
    wait::until("another token", wait::SOON, async || {
        stand.http.get(&format!("{url}/forwarded"), None).await.ok().filter(|answer| answer.status == 200)?;
        token(&ada).await.ok().filter(|now| *now != first).map(drop)
    })
    .await?;
    stand.http.get(&format!("{url}/forwarded"), None).await?.expect_status(200)?;

    say("a logout takes the token back, and the relay hears of it from the issuer");
    stand.issuer.access_ttl(Duration::from_mins(5)).await?;
    ada.login_device(&stand.issuer, "ada", &["--force"]).await?.expect_code(0)?;
    let last = token(&ada).await?;
    ada.run(&["curl", "-sSf", "echo/last"]).await?.expect_code(0)?;
    ada.run(&["logout"]).await?.expect_code(0)?;
    ada.run(&["ls"]).await?.expect_code(4)?;
    wait::until("the token is refused", wait::SOON, async || {
        let answer = stand.http.get(&stand.at("/echo/after"), Some(&last)).await.ok()?;
        (answer.status == 401 && answer.text().contains("not active")).then_some(())
    })
    .await?;
    let log = std::fs::read_to_string(stand.path("audit.jsonl"))?;
    ensure!(!log.contains(&last) && !log.contains(&first), "a token is in the audit log");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_relay_that_asks_about_nothing_says_why_an_opaque_login_is_of_no_use() -> Result<()> {
    let stand = Stand::start().await?;
    stand.issuer.opaque(true).await?;
    let ada = stand.cli("ada")?;
    let login = ada.login_device(&stand.issuer, "ada", &[]).await?;
    say(&login.stderr);
    ensure!(login.code != 0 && login.stderr.contains("token"), "{login:?}");
    // Nothing is kept that would be of no use.
    ada.run(&["ls"]).await?.expect_code(4)?;
    stand.passed();
    Ok(())
}
