//! Who listens need not speak: once the answer has begun, a caller's own body may pause for longer than `limits.body_stall`, as the
//! stream of a gRPC call does that waits for news. Until then it may not.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use postern_tests::counting::Counting;
use postern_tests::http::{Body, Http, request};
use postern_tests::site::{Plan, Site};
use postern_tests::wait;
use tokio::sync::mpsc;

use super::READY;

/// Three times the limit that the test sets.
const PAUSE: Duration = Duration::from_secs(3);

/// A body that goes on as long as the sender lives.
fn open_body() -> (mpsc::Sender<Bytes>, Body) {
    let (pieces, taken) = mpsc::channel(1);
    let frames = stream::unfold(taken, async |mut taken| {
        let piece: Bytes = taken.recv().await?;
        Some((Ok(Frame::data(piece)), taken))
    });
    (pieces, StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn whoever_listens_may_be_silent() -> Result<()> {
    let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
    let short = Counting::in_relay_toml(&["dc1"], "1s");
    let mut site = Site::start(&Plan::on_loopback(&short)).await?;
    let tables = format!("[services.count]\nupstream = \"{}\"\n", upstream.url());
    let relay = format!("127.0.0.1:{}", site.port);
    site.enrol("dc1", &relay, &tables, None).await?;
    site.start_agent("dc1").await?;
    let target = site.target("count", "none").await?;
    site.wait_status(&target.at("/get/ready"), &target.token, 200, READY).await?;

    for http in [Http::h1(site.pki.roots()?)?, Http::h2(site.pki.roots()?)?] {
        let (pieces, body) = open_body();
        pieces.send("first".into()).await?;
        let call = request("POST", &target.at("/duplex/listens"), Some(&target.token)).body(body)?;
        let answer = http.stream(call).await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let mut answer = answer.into_body();
        for piece in ["first", "second"] {
            if piece == "second" {
                tokio::time::sleep(PAUSE).await;
                pieces.send(piece.into()).await?;
            }
            let back = wait::within("the echo", wait::SOON, answer.frame()).await?;
            let back = back.context("the answer ended")??.into_data();
            ensure!(back.as_deref().is_ok_and(|back| back == piece.as_bytes()), "{back:?} for {piece}");
        }
        drop(pieces);
        ensure!(answer.collect().await?.to_bytes().is_empty(), "more than was sent");

        // The same silence before anything is answered: the upstream waits for the whole body.
        let (pieces, body) = open_body();
        pieces.send("begun".into()).await?;
        let call = request("POST", &target.at("/put/silent"), Some(&target.token)).body(body)?;
        http.send(call).await?.expect_status(408)?;
    }
    site.passed();
    Ok(())
}
