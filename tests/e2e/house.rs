//! The test house itself: the issuer's flows and the upstreams work as the other tests rely on, without any program of ours.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::http::{Http, empty, pattern_body, read_pattern, request};
use postern_tests::issuer::forge;
use postern_tests::issuer::{Issuer, Login, OPAQUE_RESOURCE, OTHER_RESOURCE, Rotation};
use postern_tests::pki::Pki;
use postern_tests::upstream::{Echo, Nginx};
use postern_tests::wait;

#[tokio::test]
async fn the_issuer_gives_what_the_tests_rely_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let mut issuer = Issuer::start(dir.path(), &pki, "https://relay.example.com").await?;

    // Authorization code with PKCE: what an access token says.
    let ada = issuer
        .login(&Login::of("ada").scope("openid offline_access invoices:read invoices:write").acr("mfa"))
        .await?;
    let (header, claims) = forge::decode(&ada.access)?;
    ensure!(header["typ"] == "at+jwt" && header["alg"] == "ES256", "{header}");
    ensure!(claims["iss"] == issuer.iss() && claims["aud"] == "https://relay.example.com", "{claims}");
    ensure!(claims["sub"] == "ada" && claims["groups"] == serde_json::json!(["finance"]), "{claims}");
    ensure!(claims["scope"] == "invoices:read invoices:write" && claims["acr"] == "mfa", "{claims}");
    ensure!(claims["auth_time"].is_u64() && claims["client_id"] == "postern-cli", "{claims}");
    ensure!(forge::decode(ada.id.as_deref().unwrap_or_default())?.1["aud"] == "postern-cli");

    // The other resources.
    let (_, claims) = forge::decode(&issuer.login(&Login::of("bob").resource(OTHER_RESOURCE)).await?.access)?;
    ensure!(claims["aud"] == OTHER_RESOURCE && claims["groups"] == serde_json::json!([]), "{claims}");
    let opaque = issuer.login(&Login::of("ada").resource(OPAQUE_RESOURCE)).await?.access;
    ensure!(!opaque.contains('.'), "{opaque}");
    for (path, algorithm) in [("rs256", "RS256"), ("eddsa", "EdDSA")] {
        let resource = format!("https://relay.example.com/{path}");
        let (header, claims) =
            forge::decode(&issuer.login(&Login::of("ada").resource(&resource)).await?.access)?;
        ensure!(
            header["alg"] == algorithm && claims["aud"] == "https://relay.example.com",
            "{header} {claims}"
        );
    }
    let (_, claims) = forge::decode(&issuer.batch("invoices:read").await?)?;
    ensure!(claims["client_id"] == "nightly-batch" && claims["sub"] == "nightly-batch", "{claims}");

    // The device grant: pending, slow_down, approved.
    let device = issuer.device_start("openid invoices:read").await?;
    let code = device["device_code"].as_str().unwrap_or_default();
    issuer.slow_down(1).await?;
    for expected in ["slow_down", "authorization_pending"] {
        let refused = issuer.device_finish(code).await.unwrap_err();
        ensure!(refused.to_string().contains(expected), "{refused}");
    }
    issuer.approve_device("bob", device["user_code"].as_str().unwrap_or_default()).await?;
    ensure!(forge::decode(&issuer.device_finish(code).await?.access)?.1["sub"] == "bob");

    // Refresh rotates, and a used refresh token ends the whole grant.
    let first = ada.refresh.unwrap_or_default();
    let second = issuer.refresh(&first).await?.refresh.unwrap_or_default();
    ensure!(first != second);
    ensure!(issuer.refresh(&first).await.is_err(), "a used refresh token was taken");
    ensure!(issuer.refresh(&second).await.is_err(), "the grant outlived the reuse");

    // Life of tokens, keys, faults, restart.
    issuer.access_ttl(Duration::from_secs(1)).await?;
    let (_, claims) = forge::decode(&issuer.token("ada").await?)?;
    ensure!(claims["exp"].as_u64() == claims["iat"].as_u64().map(|at| at + 1), "{claims}");
    let kids = |jwks: serde_json::Value| jwks["keys"].as_array().map_or(0, Vec::len);
    issuer.rotate(Rotation::Overlap).await?;
    ensure!(kids(issuer.jwks().await?) == 6);
    issuer.rotate(Rotation::Hard).await?;
    ensure!(kids(issuer.jwks().await?) == 3);
    issuer.fault("/jwks", 500, Duration::ZERO, 1).await?;
    ensure!(issuer.jwks().await.is_err() && issuer.jwks().await.is_ok());
    ensure!(issuer.path_hits("/jwks").await? == 4);
    issuer.stop().await?;
    ensure!(issuer.token("ada").await.is_err());
    issuer.start_again().await?;
    issuer.token("ada").await.map(drop)
}

#[tokio::test]
async fn the_upstreams_say_what_they_saw() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let http = Http::h1(Pki::create(dir.path())?.roots()?)?;

    let nginx = Nginx::start(dir.path()).await?;
    let answer =
        http.get(&format!("{}/v1/x?y=1", nginx.url()), Some("t")).await?.expect_status(200)?.json()?;
    ensure!(answer["uri"] == "/v1/x?y=1", "{answer}");
    let seen = nginx.wait_seen("/v1/x?y=1").await?;
    ensure!(seen["method"] == "GET" && seen["authorization"] == "Bearer t", "{seen}");
    let file = http.get(&format!("{}/files/1k", nginx.url()), None).await?.expect_status(200)?;
    ensure!(file.body.len() == 1024);

    let echo = Echo::start()?;
    let at = |path: &str| format!("{}{path}", echo.url());
    let told = http.get(&at("/a?b"), None).await?.expect_status(200)?.json()?;
    ensure!(told["target"] == "/a?b" && echo.seen_with("/a?b").len() == 1, "{told}");
    http.get(&at("/status/418"), None).await?.expect_status(418)?;
    let streamed =
        http.stream(request("GET", &at("/stream?bytes=300000&step=1000"), None).body(empty())?).await?;
    ensure!(read_pattern(streamed.into_body()).await? == 300_000);
    let upload = request("POST", &at("/sink"), None).body(pattern_body(300_000, 1000, Duration::ZERO))?;
    let sunk = http.send(upload).await?.json()?;
    ensure!(sunk["received"] == 300_000 && sunk["fault"].is_null(), "{sunk}");
    let broken = http.stream(request("GET", &at("/broken?bytes=300000"), None).body(empty())?).await?;
    ensure!(read_pattern(broken.into_body()).await.is_err(), "a broken answer ended well");
    let trailers = request("GET", &at("/trailers"), None).header("te", "trailers").body(empty())?;
    ensure!(http.send(trailers).await?.trailers.is_some_and(|t| t["x-checksum"] == "abc"));

    let url = at("/hold");
    let held =
        async || wait::until("it is held", wait::SOON, async || (echo.waiting() == 1).then_some(())).await;
    tokio::select! {
        answer = http.get(&url, None) => anyhow::bail!("answered {answer:?}"),
        held = held() => held?,
    }
    wait::until("it is given up", wait::SOON, async || (echo.abandoned() == 1).then_some(())).await?;
    let release = async {
        held().await?;
        echo.release();
        Ok(())
    };
    let (answer, ()) = tokio::try_join!(http.get(&url, None), release)?;
    answer.expect_status(200)?;
    ensure!(echo.waiting() == 0 && echo.abandoned() == 1);
    Ok(())
}
