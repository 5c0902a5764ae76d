//! A session renews itself: once, however many programs ask at the same time, with each rotated refresh token kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use postern_tests::issuer::forge;
use postern_tests::stand::{Stand, say};
use postern_tests::wait;

/// Waits until a token has expired.
async fn expired(token: &str) -> Result<()> {
    let exp = forge::decode(token)?.1["exp"].as_u64().unwrap_or_default();
    wait::until("the token expires", Duration::from_secs(20), async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        (now > exp).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_session_is_refreshed_once_for_all() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    let token = async || -> Result<String> {
        Ok(ada.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned())
    };

    say("eight programs at once find the token expired");
    stand.issuer.access_ttl(Duration::from_secs(2)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let first = token().await?;
    expired(&first).await?;
    stand.issuer.access_ttl(Duration::from_mins(10)).await?;
    let before = stand.issuer.grant_hits("refresh_token").await?;
    let all = futures_util::future::join_all((0..8).map(|_| ada.run(&["token"]))).await;
    let mut tokens = Vec::new();
    for output in all {
        tokens.push(output?.expect_code(0)?.stdout);
    }
    tokens.dedup();
    ensure!(tokens.len() == 1 && tokens[0].trim() != first, "{tokens:?}");
    let refreshed = stand.issuer.grant_hits("refresh_token").await? - before;
    ensure!(refreshed == 1, "{refreshed} refreshes");
    let second = token().await?;
    ensure!(second == tokens[0].trim(), "a good token was refreshed");
    ada.run(&["curl", "-sSf", "billing/v1/invoices/7"]).await?.expect_code(0)?;

    say("the rotated refresh token was kept: it works again");
    stand.issuer.access_ttl(Duration::from_hours(1)).await?;
    let third = ada.run(&["token", "--min-ttl", "20m"]).await?.expect_code(0)?;
    ensure!(third.stdout.trim() != second, "{third:?}");
    let refreshed = stand.issuer.grant_hits("refresh_token").await? - before;
    ensure!(refreshed == 2, "{refreshed} refreshes");

    say("an issuer that is away for a moment costs nobody the session");
    stand.issuer.access_ttl(Duration::from_hours(2)).await?;
    stand.issuer.fault("/token", 503, Duration::ZERO, 1000).await?;
    let away = ada.run(&["token", "--min-ttl", "90m"]).await?;
    ensure!(away.code != 4, "told to log in although the issuer is only away: {away:?}");
    stand.issuer.fault("/token", 0, Duration::ZERO, 0).await?;
    let back = ada.run(&["token", "--min-ttl", "90m"]).await?.expect_code(0)?;
    ensure!(back.stdout != third.stdout, "{back:?}");

    say("an issuer that forgot the session: exit code 4 and what to do");
    stand.issuer.access_ttl(Duration::from_secs(1)).await?;
    let last = ada.run(&["token", "--min-ttl", "3h"]).await?.expect_code(0)?.stdout;
    stand.issuer.stop().await?;
    stand.issuer.start_again().await?;
    expired(last.trim()).await?;
    let gone = ada.run(&["token"]).await?.expect_code(4)?;
    ensure!(gone.stderr.contains("postern login"), "{}", gone.stderr);
    stand.passed();
    Ok(())
}
