//! Every limit of relay.toml holds: heads, bodies, time, connections, failed authentications; and ordinary requests go on meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::http::{Http, empty, full, pattern_body, raw, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMITS: &str = r#"
per_address = 40
requests = 8
handshake = "1s"
first_byte_in = "1s"
head = "1s"
body_stall = "1s"
keepalive = "2s"
headers = "16KiB"
fields = 50
failed_auth = "10/s per address"
"#;

const TABLES: &str = r#"
[services.small]
agent = "dc1"
limit = { body = "1KiB" }
rules = [{ allow = "*", to = "* /**" }]
"#;

const AGENT_TABLES: &str = "[services.small]\nupstream = \"{echo}\"\n";

/// Waits until the other side has closed; gives how long that took, and what it said before.
async fn closed(mut stream: impl AsyncReadExt + Unpin) -> Result<(Duration, String)> {
    let start = Instant::now();
    let mut said = Vec::new();
    // Closed with a reset is closed too.
    let _ = wait::within("the relay closes", wait::SOON, stream.read_to_end(&mut said)).await?;
    Ok((start.elapsed(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn limits_hold_and_others_are_served() -> Result<()> {
    let extra = Extra {
        limits: LIMITS.to_owned(),
        tables: TABLES.to_owned(),
        agent_tables: AGENT_TABLES.to_owned(),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let url = stand.at("/echo/x");
    let h2 = Http::h2(stand.pki.roots()?)?;
    let host = format!("Host: 127.0.0.1:{}\r\n", stand.port);
    let connect = async || raw::connect(stand.port, stand.pki.roots()?, "127.0.0.1").await;

    say("heads: bytes, fields, target, token");
    for http in [&stand.http, &h2] {
        let wide = request("GET", &url, Some(&token)).header("x-wide", "a".repeat(17 * 1024));
        http.send(wide.body(empty())?).await?.expect_status(431)?;
        let mut many = request("GET", &url, Some(&token));
        for n in 0..51 {
            many = many.header(format!("x-many-{n}"), "1");
        }
        http.send(many.body(empty())?).await?.expect_status(431)?;
        let long = stand.at(&format!("/echo/{}", "a".repeat(8 * 1024)));
        http.get(&long, Some(&token)).await?.expect_status(414)?;
    }

    say("bodies: declared and counted");
    let small = stand.at("/small/x");
    for http in [&stand.http, &h2] {
        let fits = request("POST", &small, Some(&token)).body(full("a".repeat(1024)))?;
        http.send(fits).await?.expect_status(200)?;
        let declared = request("POST", &small, Some(&token)).body(full("a".repeat(1025)))?;
        http.send(declared).await?.expect_status(413)?;
        let counted =
            request("POST", &small, Some(&token)).body(pattern_body(64 * 1024, 512, Duration::ZERO))?;
        // The refusal may come while the body is still being sent: the connection may then end first.
        let status = http.send(counted).await.map(|answer| answer.status.as_u16());
        ensure!(matches!(status, Ok(413) | Err(_)), "{status:?}");
    }
    let whole =
        stand.echo.seen_with("/x").iter().filter(|seen| seen.header("content-length") == "1025").count();
    ensure!(whole == 0, "a body over the limit was forwarded");

    say("time: handshake, first byte, head, body, keep-alive");
    let silent = TcpStream::connect(("127.0.0.1", stand.port)).await?;
    let mut half = TcpStream::connect(("127.0.0.1", stand.port)).await?;
    half.write_all(&[22, 3, 1]).await?;
    let idle = connect().await?;
    let mut head = connect().await?;
    head.write_all(format!("GET /echo/x HTTP/1.1\r\n{host}X-Slow:").as_bytes()).await?;
    let mut body = connect().await?;
    let start = format!(
        "POST /echo/sink HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n\0\u{1}\u{2}"
    );
    body.write_all(start.as_bytes()).await?;
    let mut kept = connect().await?;
    kept.write_all(format!("GET /echo/x HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\n\r\n").as_bytes())
        .await?;
    let (silent, half, idle, head, body, kept) = tokio::try_join!(
        closed(silent),
        closed(half),
        closed(idle),
        closed(head),
        closed(body),
        closed(kept)
    )?;
    for (name, (took, said), limit) in [
        ("handshake, silent", silent, 1),
        ("handshake, half", half, 1),
        ("first byte", idle, 1),
        ("head", head, 1),
        ("body", body, 1),
        ("keep-alive", kept, 2),
    ] {
        say(&format!("{name}: closed after {took:.1?} {:?}", said.lines().next().unwrap_or_default()));
        let (least, most) =
            (Duration::from_millis(limit * 1000 - 300), Duration::from_millis(limit * 1000 + 3000));
        ensure!((least..most).contains(&took), "{name}: {took:?}");
    }

    say("requests in flight");
    let mut eight = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (h2, url, token) = (h2.clone(), stand.at("/echo/hold"), token.clone());
        eight.spawn(async move { h2.get(&url, Some(&token)).await });
    }
    wait::until("eight are held", wait::SOON, async || (stand.echo.waiting() == 8).then_some(())).await?;
    let over = stand.http.get(&url, Some(&token)).await?.expect_status(503)?;
    ensure!(!over.header("retry-after").is_empty(), "{:?}", over.headers);
    stand.echo.release();
    while let Some(answer) = eight.join_next().await {
        answer??.expect_status(200)?;
    }
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;

    say("connections per address");
    let ask = format!("GET /echo/x HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..60 {
        let Ok(mut stream) = connect().await else { continue };
        let sent = stream.write_all(ask.as_bytes()).await;
        let mut first = [0u8; 12];
        if sent.is_ok() && wait::within("an answer", wait::SOON, stream.read_exact(&mut first)).await?.is_ok()
        {
            open.push(stream);
        }
    }
    say(&format!("{} of 60 were served at once", open.len()));
    ensure!((30..=40).contains(&open.len()), "{} connections", open.len());
    drop(open);
    stand.wait_status("/echo/x", &token, 200, wait::SOON).await?;

    say("failed authentications: 429 before any work, and it passes");
    let mut statuses = Vec::new();
    for _ in 0..40 {
        let answer = stand.http.get(&url, Some("a.b.c")).await?;
        statuses.push(answer.status.as_u16());
        if answer.status == 429 {
            ensure!(!answer.header("retry-after").is_empty(), "{:?}", answer.headers);
        }
    }
    let refused = statuses.iter().filter(|status| **status == 429).count();
    say(&format!("{refused} of 40 were refused with 429"));
    ensure!(refused >= 15 && statuses[..5].iter().all(|status| *status == 401), "{statuses:?}");
    stand.wait_status("/echo/x", &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_refusal_reaches_a_caller_that_is_still_sending() -> Result<()> {
    let stand = Stand::start_with(Extra::default()).await?;
    let body = vec![b'x'; 2 << 20];
    for round in 0..20 {
        let mut stream = raw::connect(stand.port, stand.pki.roots()?, "127.0.0.1").await?;
        let head = format!(
            "POST /echo/x HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\n\r\n",
            stand.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // The answer is on its way while this is; a reset would overtake it.
        let sent = wait::within("the body", wait::SOON, stream.write_all(&body)).await?;
        ensure!(sent.is_ok(), "round {round}: {sent:?}");
        let mut status = [0u8; 12];
        wait::within("the answer", wait::SOON, stream.read_exact(&mut status)).await??;
        ensure!(&status == b"HTTP/1.1 401", "round {round}: {:?}", String::from_utf8_lossy(&status));
    }
    stand.passed();
    Ok(())
}
