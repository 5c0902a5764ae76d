//! Live streams of tokens that their issuer is asked about: asked again when its word is too old, and cut when it takes the token back or
//! cannot be asked.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::issuer::Login;
use postern_tests::lives::Place;
use postern_tests::stand::{Extra, say};
use postern_tests::wait;

#[tokio::test]
async fn a_stream_ends_when_its_issuer_takes_the_token_back() -> Result<()> {
    const ASKED: &str = "/token/introspection";
    let how = "client_id = \"relay\", client_secret = { file = \"relay.secret\" }, cache = \"2s\", negative = \"2s\"";
    let issuer = format!("check = \"auto\"\nintrospect = {{ {how} }}");
    let place = Place::with_issuer(Extra { issuer, ..Extra::default() }).await?;
    let stand = &place.stand;
    let opaque = async |user: &str| -> Result<String> {
        let resource = format!("{}/opaque", stand.url);
        Ok(stand.issuer.login(&Login::of(user).resource(&resource)).await?.access)
    };
    let (revoked, kept, jwt) = (opaque("ada").await?, opaque("ada").await?, stand.issuer.token("ada").await?);
    let mut streams = [
        place.socket(&revoked).await?,
        place.pipe(&revoked).await?,
        place.socket(&kept).await?,
        place.socket(&jwt).await?,
    ];
    say("the issuer is asked about each again, as often as it wants, and they go on");
    let before = stand.issuer.path_hits(ASKED).await?;
    wait::until("it is asked again and again", wait::SOON, async || {
        (stand.issuer.path_hits(ASKED).await.ok()? >= before + 4).then_some(())
    })
    .await?;
    for live in &mut streams {
        live.is_open().await?;
    }

    say("one token is revoked");
    stand.issuer.revoke(&revoked).await?;
    let start = Instant::now();
    let [socket, pipe, kept_open, by_signature] = &mut streams;
    for live in [socket, pipe] {
        live.is_cut(wait::SOON).await?;
    }
    say(&format!("cut {:?} after its revocation", start.elapsed()));
    ensure!(start.elapsed() < Duration::from_secs(5), "cut after {:?}", start.elapsed());
    kept_open.is_open().await?;
    by_signature.is_open().await?;
    let cuts = stand.wait_audit(2, |line| line["event"] == "cut").await?;
    ensure!(cuts.iter().all(|cut| cut["reason"] == "token-inactive"), "{cuts:?}");

    say("an issuer that does not answer has a while, and then what it cannot vouch for ends");
    stand.issuer.fault(ASKED, 500, Duration::ZERO, 10_000).await?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        kept_open.is_open().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    kept_open.is_cut(wait::SOON).await?;
    say(&format!("cut {:?} after the issuer fell silent", start.elapsed()));
    by_signature.is_open().await?;
    let cut = stand.wait_audit(3, |line| line["event"] == "cut").await?;
    ensure!(cut[2]["reason"] == "issuer-unavailable", "{cut:?}");
    place.stand.passed();
    Ok(())
}
