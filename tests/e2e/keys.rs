//! The issuer's keys change, and the issuer goes away: callers with good tokens do not notice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::issuer::{Login, Rotation, forge};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::json;

const PATH: &str = "/billing/v1/invoices/7";

/// The relay refetches for an unknown kid at most once in 5 s: this waits that out, so that the next fetch is not held back.
async fn no_refetch_for_five_seconds() -> Result<()> {
    let start = Instant::now();
    wait::until("five seconds", Duration::from_secs(10), async || {
        (start.elapsed() > Duration::from_millis(5100)).then_some(())
    })
    .await
}

#[tokio::test]
async fn keys_rotate_and_outages_pass_unnoticed() -> Result<()> {
    let mut stand = Stand::start_with(Extra {
        limits: "failed_auth = \"10000/s per address\"".to_owned(),
        ..Extra::default()
    })
    .await?;
    let url = stand.at(PATH);
    let old = stand.issuer.token("ada").await?;
    stand.http.get(&url, Some(&old)).await?.expect_status(200)?;

    say("overlapping rotation: old and new tokens work");
    no_refetch_for_five_seconds().await?;
    stand.issuer.rotate(Rotation::Overlap).await?;
    let new = stand.issuer.token("ada").await?;
    ensure!(forge::decode(&old)?.0["kid"] != forge::decode(&new)?.0["kid"]);
    for token in [&new, &old, &stand.issuer.token("ada").await?] {
        stand.http.get(&url, Some(token)).await?.expect_status(200)?;
    }

    say("hard rotation: the new token works, the old ones no longer");
    no_refetch_for_five_seconds().await?;
    stand.issuer.rotate(Rotation::Hard).await?;
    let newest = stand.issuer.token("ada").await?;
    stand.http.get(&url, Some(&newest)).await?.expect_status(200)?;
    for token in [&old, &new] {
        stand.http.get(&url, Some(token)).await?.expect_status(401)?;
    }

    say("a flood of unknown kids costs the issuer at most one fetch");
    no_refetch_for_five_seconds().await?;
    let before = stand.issuer.path_hits("/jwks").await?;
    let flood = Instant::now();
    let forged =
        (0..100).map(|n| forge::by_stranger(&newest, |header, _| header["kid"] = json!(format!("kid-{n}"))));
    let forged: Vec<String> = forged.collect::<Result<_>>()?;
    let answers = forged.iter().map(|token| stand.http.get(&url, Some(token)));
    for answer in futures_util::future::join_all(answers).await {
        answer?.expect_status(401)?;
    }
    let fetched = stand.issuer.path_hits("/jwks").await? - before;
    ensure!(fetched <= 1 + flood.elapsed().as_secs() / 5, "{fetched} fetches in {:?}", flood.elapsed());

    say("the issuer is stopped: good tokens go on, even one never seen before");
    let unseen = stand.issuer.token("ada").await?;
    no_refetch_for_five_seconds().await?;
    stand.issuer.stop().await?;
    for token in [&newest, &unseen] {
        stand.http.get(&url, Some(token)).await?.expect_status(200)?;
    }

    say("it comes back with a new key: a new token works within a second");
    stand.issuer.start_again().await?;
    let after = stand.issuer.token("ada").await?;
    let start = Instant::now();
    let answer = stand.http.get(&url, Some(&after)).await?;
    let took = start.elapsed();
    say(&format!("the first answer with the new key came after {took:?}"));
    ensure!(answer.status == 200 && took < Duration::from_secs(1), "{} after {took:?}", answer.status);

    say("a slow or failing issuer is asked again soon: a failure does not spend the five seconds");
    no_refetch_for_five_seconds().await?;
    stand.issuer.rotate(Rotation::Hard).await?;
    stand.issuer.fault("/jwks", 500, Duration::ZERO, 1).await?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_status(PATH, &token, 200, Duration::from_secs(3)).await?;

    say("a relay started while the issuer is away serves as soon as it is back");
    stand.issuer.stop().await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;
    let refused = stand.http.get(&url, Some(&token)).await?;
    ensure!(matches!(refused.status.as_u16(), 401 | 503), "without any keys: {}", refused.status);
    stand.issuer.start_again().await?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}

/// One token of each algorithm.
async fn one_of_each(stand: &Stand) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    for (resource, algorithm) in [("", "ES256"), ("/rs256", "RS256"), ("/eddsa", "EdDSA")] {
        let login = Login::of("ada").resource(&format!("{}{resource}", stand.url));
        let token = stand.issuer.login(&login).await?.access;
        ensure!(forge::decode(&token)?.0["alg"] == algorithm, "{resource}");
        tokens.push(token);
    }
    Ok(tokens)
}

#[tokio::test]
async fn tokens_of_every_algorithm_outlive_rotation_and_a_slow_issuer() -> Result<()> {
    let stand = Stand::start().await?;
    let url = stand.at(PATH);
    let all = async |tokens: &[String], status: u16| {
        for token in tokens {
            let start = Instant::now();
            stand.http.get(&url, Some(token)).await?.expect_status(status)?;
            ensure!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
        Ok(())
    };
    let first = one_of_each(&stand).await?;
    all(&first, 200).await?;

    say("overlapping rotation, and the issuer is slow from then on");
    no_refetch_for_five_seconds().await?;
    stand.issuer.rotate(Rotation::Overlap).await?;
    let second = one_of_each(&stand).await?;
    all(&second, 200).await?;
    all(&first, 200).await?;
    stand.issuer.fault("/jwks", 0, Duration::from_secs(20), 1000).await?;
    all(&first, 200).await?;

    say("hard rotation while it is slow: what was good goes on, what is new cannot be judged yet");
    no_refetch_for_five_seconds().await?;
    stand.issuer.rotate(Rotation::Hard).await?;
    let third = one_of_each(&stand).await?;
    let (waited, ()) = tokio::try_join!(stand.http.get(&url, Some(&third[0])), all(&second, 200))?;
    waited.expect_status(503)?;
    all(&first, 200).await?;

    say("it stands still: the same");
    stand.issuer.signal(Signal::STOP)?;
    let goes_on = all(&second, 200).await;
    stand.issuer.signal(Signal::CONT)?;
    goes_on?;

    say("well again: the new keys count, and only they");
    stand.issuer.fault("/jwks", 0, Duration::ZERO, 0).await?;
    stand.wait_status(PATH, &third[0], 200, Duration::from_secs(12)).await?;
    all(&third, 200).await?;
    all(&second, 401).await?;
    all(&first, 401).await?;
    stand.passed();
    Ok(())
}
