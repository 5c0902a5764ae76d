//! SIGTERM in the middle of bodies: what runs is finished, no byte is lost, in either direction. What cannot be finished does not look
//! finished, and what nobody waits for any more is given up everywhere.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use postern_tests::http::{Http, pattern_body, read_pattern, request};
use postern_tests::pattern::Check;
use postern_tests::process::Signal;
use postern_tests::stand::{Stand, say};
use postern_tests::wait;
use serde_json::Value;

const BYTES: u64 = 8 << 20;
const STEP: u64 = 64 << 10;
/// 128 pieces at this pace take 2.5 s.
const PAUSE: Duration = Duration::from_millis(20);

/// A download that has begun: its first megabyte has been checked.
struct Download {
    body: Incoming,
    check: Check,
}

impl Download {
    async fn begin(http: &Http, stand: &Stand, token: &str) -> Result<Self> {
        let path = format!("/echo/stream?bytes={BYTES}&step={STEP}&pause={}", PAUSE.as_millis());
        let answer = http
            .stream(request("GET", &stand.at(&path), Some(token)).body(postern_tests::http::empty())?)
            .await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let mut download = Self { body: answer.into_body(), check: Check::default() };
        while download.check.received() < 1 << 20 {
            ensure!(download.next().await?, "ended early");
        }
        Ok(download)
    }

    async fn next(&mut self) -> Result<bool> {
        let frame = wait::within("the next piece", wait::SOON, self.body.frame()).await?;
        let Some(frame) = frame else { return Ok(false) };
        let data = frame.with_context(|| format!("after {} bytes", self.check.received()))?;
        if let Some(data) = data.data_ref() {
            self.check.feed(data)?;
        }
        Ok(true)
    }

    async fn finish(mut self) -> Result<u64> {
        while self.next().await? {}
        Ok(self.check.received())
    }
}

async fn upload(http: &Http, stand: &Stand, token: &str) -> Result<Value> {
    let body = pattern_body(BYTES, STEP, PAUSE);
    http.send(request("POST", &stand.at("/echo/sink"), Some(token)).body(body)?)
        .await?
        .expect_status(200)?
        .json()
}

/// A download and an upload over each protocol, with `event` in the middle of all four.
async fn in_the_middle(stand: &mut Stand, token: &str, who: &str) -> Result<()> {
    let h1 = Http::h1(stand.pki.roots()?)?;
    let h2 = Http::h2(stand.pki.roots()?)?;
    let first = Download::begin(&h1, stand, token).await?;
    let second = Download::begin(&h2, stand, token).await?;
    let (program, grace) = if who == "relay" { (stand.relay()?, 25) } else { (stand.agent()?, 25) };
    let pid = program.pid();
    say(&format!("SIGTERM for the {who} ({pid})"));
    let uploads = async { tokio::try_join!(upload(&h1, stand, token), upload(&h2, stand, token)) };
    let signalled = async {
        // The uploads have begun once the echo server has seen them.
        wait::until("the uploads began", wait::SOON, async || {
            (stand.echo.seen_with("/sink").len() >= 2).then_some(())
        })
        .await?;
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("no pid")?;
        rustix::process::kill_process(pid, Signal::TERM).context("SIGTERM")
    };
    let (first, second, uploads, signalled) =
        tokio::join!(first.finish(), second.finish(), uploads, signalled);
    signalled?;
    ensure!(first? == BYTES && second? == BYTES, "a download lost bytes");
    for sunk in <[Value; 2]>::from(uploads?) {
        ensure!(sunk["received"] == BYTES && sunk["fault"].is_null(), "an upload lost bytes: {sunk}");
    }
    let program = if who == "relay" { stand.relay()? } else { stand.agent()? };
    let status = program.wait_exit(Duration::from_secs(grace)).await?;
    ensure!(status.success(), "the {who} ended with {status}");
    Ok(())
}

#[tokio::test]
async fn sigterm_in_the_middle_of_bodies_loses_no_byte() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    in_the_middle(&mut stand, &token, "relay").await?;
    stand.start_relay().await?;
    stand.wait_status("/echo/again", &token, 200, Duration::from_secs(30)).await?;
    drop(stand);

    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    in_the_middle(&mut stand, &token, "agent").await?;
    stand.start_agent().await?;
    stand.wait_status("/echo/again", &token, 200, Duration::from_secs(30)).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_is_cut_does_not_end_well_and_what_is_left_is_given_up() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let h1 = Http::h1(stand.pki.roots()?)?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    say("a caller who goes away is given up at the upstream");
    for http in [&h1, &h2] {
        let (waiting, abandoned) = (stand.echo.waiting(), stand.echo.abandoned());
        let url = stand.at("/echo/hold");
        let call = http.get(&url, Some(&token));
        let held =
            wait::until("it is held", wait::SOON, async || (stand.echo.waiting() > waiting).then_some(()));
        tokio::select! {
            answer = call => anyhow::bail!("answered: {answer:?}"),
            held = held => held?,
        }
        wait::until("the upstream notices", Duration::from_secs(5), async || {
            (stand.echo.abandoned() > abandoned).then_some(())
        })
        .await?;
    }

    say("an agent killed in the middle of a body: the download fails, it does not end");
    let downloads =
        [Download::begin(&h1, &stand, &token).await?, Download::begin(&h2, &stand, &token).await?];
    stand.stop_agent(Signal::KILL).await?;
    for download in downloads {
        let end = wait::within("the download fails", Duration::from_secs(40), download.finish()).await?;
        ensure!(end.is_err(), "a cut download ended well after {end:?} of {BYTES} bytes");
    }

    say("an upstream that breaks off: the same");
    stand.start_agent().await?;
    let body = stand.http.stream(
        request("GET", &stand.at(&format!("/echo/broken?bytes={BYTES}")), Some(&token))
            .body(postern_tests::http::empty())?,
    );
    let end = match body.await {
        Ok(answer) => read_pattern(answer.into_body()).await,
        Err(error) => Err(error),
    };
    ensure!(end.is_err(), "a broken answer ended well after {end:?} bytes");
    stand.passed();
    Ok(())
}
