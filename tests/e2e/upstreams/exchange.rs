//! One exchange with an upstream: the agent's own limits hold, and a request is sent a second time only where that can do no harm.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http_body_util::BodyExt;
use postern_tests::http::{full, pattern_body, request};
use postern_tests::stand::{Stand, say};
use postern_tests::upstream::Echo;
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::stand_with;

#[tokio::test]
async fn the_agents_limits_hold() -> Result<()> {
    let slow = Echo::start()?;
    let services = [
        ("few", format!("upstream = \"{}\"\nlimit = {{ concurrent = 2 }}", slow.url())),
        ("brisk", format!("upstream = \"{}\"\nlimit = {{ idle = \"1s\" }}", slow.url())),
    ];
    let stand = stand_with(&services).await?;
    let token = stand.issuer.token("ada").await?;
    say("concurrent");
    let url = stand.at("/few/hold");
    let held = async || stand.http.get(&url, Some(&token)).await?.expect_status(200);
    let third = async {
        wait::until("two are held", wait::SOON, async || (slow.waiting() == 2).then_some(())).await?;
        let answer = stand.http.get(&stand.at("/few/x"), Some(&token)).await?.expect_status(503)?;
        ensure!(answer.header("proxy-status").starts_with("agent"), "{:?}", answer.headers);
        slow.release();
        Ok(())
    };
    tokio::try_join!(held(), held(), third)?;
    stand.http.get(&stand.at("/few/x"), Some(&token)).await?.expect_status(200)?;
    ensure!(slow.seen_with("/x").len() == 1, "the upstream saw what was turned away");
    say("idle: one byte in time is enough, silence is not");
    let steady = stand.http.get(&stand.at("/brisk/stream?bytes=6&step=1&pause=500"), Some(&token)).await?;
    ensure!(steady.expect_status(200)?.body.len() == 6);
    let stalling = request("GET", &stand.at("/brisk/stream?bytes=2&step=1&pause=20000"), Some(&token));
    let start = Instant::now();
    let answer = stand.http.stream(stalling.body(full(""))?).await?;
    let cut = wait::within("the answer is cut", wait::SOON, answer.into_body().collect()).await?;
    ensure!(cut.is_err(), "a stalled answer ended well: {cut:?}");
    let took = start.elapsed();
    ensure!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    stand.passed();
    Ok(())
}

/// Answers only the second of two connections; gives how many requests came over the first ones.
async fn forgetful(listener: &TcpListener) -> Result<(String, String)> {
    let mut requests = Vec::new();
    for answers in [false, true] {
        let (mut stream, _) = listener.accept().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        requests.push(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
        if answers {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await?;
        }
    }
    Ok((requests.swap_remove(0), requests.swap_remove(0)))
}

#[tokio::test]
async fn only_what_can_do_no_harm_is_sent_twice() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let services = [("forgetful", format!("upstream = \"http://{}\"", listener.local_addr()?))];
    // The agent is ready only when its upstreams take connections.
    let until_ready = async {
        loop {
            if let Err(error) = listener.accept().await {
                return error;
            }
        }
    };
    let stand = tokio::select! {
        stand = stand_with(&services) => stand?,
        error = until_ready => return Err(error.into()),
    };
    let token = stand.issuer.token("ada").await?;
    let url = stand.at("/forgetful/x");
    let get = stand.http.get(&url, Some(&token));
    let (answer, seen) = tokio::try_join!(get, forgetful(&listener))?;
    ensure!(answer.expect_status(200)?.text() == "ok" && seen.0 == seen.1, "{seen:?}");
    let post = async {
        let post = request("POST", &url, Some(&token)).body(full("once"))?;
        stand.http.send(post).await?.expect_status(502)?;
        stand.http.get(&stand.at("/forgetful/after"), Some(&token)).await?.expect_status(200)
    };
    let (_, seen) = tokio::try_join!(post, forgetful(&listener))?;
    ensure!(seen == ("POST /x HTTP/1.1".to_owned(), "GET /after HTTP/1.1".to_owned()), "{seen:?}");
    stand.passed();
    Ok(())
}

/// Takes one upload: answers its head with an early hint and a head at once, and its end with the end.
async fn eager(listener: &TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut received = Vec::new();
        // Whoever only looks whether somebody listens says nothing.
        while let Ok(byte) = stream.read_u8().await {
            received.push(byte);
            if received.ends_with(b"\r\n\r\n") && !received.ends_with(b"0\r\n\r\n") {
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n").await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            } else if received.ends_with(b"\r\n0\r\n\r\n") {
                stream.write_all(b"2\r\nok\r\n0\r\n\r\n").await?;
                return Ok(());
            }
        }
    }
}

#[tokio::test]
async fn an_answer_may_wait_for_an_upload_that_goes_on() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let table = format!("upstream = \"http://{}\"\nlimit = {{ idle = \"1s\" }}", listener.local_addr()?);
    let talk = async {
        let mut stand = stand_with(&[("eager", table)]).await?;
        let token = stand.issuer.token("ada").await?;
        let slow = pattern_body(8, 1, Duration::from_millis(400));
        let answer = request("POST", &stand.at("/eager/x"), Some(&token)).body(slow)?;
        ensure!(stand.http.send(answer).await?.expect_status(200)?.text() == "ok");
        let url = Stand::metrics_url(stand.agent()?).await?;
        let metrics = stand.http.get(&format!("{url}/metrics"), None).await?.text();
        ensure!(metrics.contains("postern_agent_informational_total 1\n"), "{metrics}");
        stand.passed();
        Ok(())
    };
    tokio::try_join!(talk, eager(&listener)).map(drop)
}
