//! WebSocket through the relay, beside what tests/e2e/fidelity.rs shows with real stacks: which handshakes are refused, and how; that a
//! refused one ends its connection; that what is no upgrade is an ordinary request; and what ends a live stream.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use postern_tests::counting::Counting;
use postern_tests::http::switch::{Many, Once, Stream, switched};
use postern_tests::http::{Body, empty, raw, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use postern_tests::websocket::{self, Kind};
use serde_json::Value;

const TABLES: &str = r#"
[services.sock]
agent = "dc1"
limit = { idle = "2s" }
rules = [{ allow = "role:clerk", to = "GET /**" }]

[services.long]
agent = "dc1"
limit = { idle = "off" }
rules = [{ allow = "role:clerk", to = "GET /**" }]
"#;

const SOCKET: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "websocket")];
const VERSION: (&str, &str) = ("sec-websocket-version", "13");

async fn stand() -> Result<(Stand, Counting)> {
    let upstream = Counting::start(std::net::Ipv4Addr::LOCALHOST.into())?;
    let agent_tables =
        format!("[services.sock]\nupstream = \"{0}\"\n[services.long]\nupstream = \"{0}\"\n", upstream.url());
    let extra = Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() };
    Ok((Stand::start_with(extra).await?, upstream))
}

/// A request on a connection of its own.
fn asking(stand: &Stand, path: &str, token: Option<&str>, fields: &[(&str, &str)]) -> Result<Request<Body>> {
    let mut builder = request("GET", path, token).header("host", format!("127.0.0.1:{}", stand.port));
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    Ok(builder.body(empty())?)
}

async fn h1(stand: &Stand, token: &str, path: &str) -> Result<Stream> {
    let key = websocket::key();
    let fields = [SOCKET[0], SOCKET[1], VERSION, ("sec-websocket-key", &key)];
    let once = Once::send(stand.port, stand.pki.roots()?, asking(stand, path, Some(token), &fields)?).await?;
    ensure!(websocket::is_accepted(once.answer.headers(), &key), "{:?}", once.answer.headers());
    once.stream().await
}

async fn h2(many: &mut Many, token: &str, path: &str) -> Result<Stream> {
    let authorization = format!("Bearer {token}");
    let answer = many.ask("websocket", path, &[("authorization", &authorization), VERSION]).await?;
    ensure!(answer.status() == StatusCode::OK, "{answer:?}");
    ensure!(!answer.headers().contains_key("sec-websocket-accept"), "{answer:?}");
    switched(answer).await
}

async fn say_and_hear(stream: &mut Stream, text: &str) -> Result<()> {
    websocket::write(stream, Kind::Text, text.as_bytes(), true).await?;
    let heard = wait::within("an echo", wait::SOON, websocket::read(stream, false)).await??;
    ensure!(heard == (Kind::Text, text.as_bytes().to_vec()), "{heard:?}");
    Ok(())
}

fn ends_of(service: &str) -> impl Fn(&Value) -> bool {
    move |line| line["event"] == "end" && line["service"] == service
}

#[tokio::test]
async fn messages_pass_and_the_record_ends_with_the_stream() -> Result<()> {
    let (stand, upstream) = stand().await?;
    let token = stand.issuer.token("ada").await?;
    let mut many = Many::connect(stand.port, stand.pki.roots()?).await?;
    for (mut stream, status) in [
        (h1(&stand, &token, "/long/socket/a").await?, 101),
        (h2(&mut many, &token, "/long/socket/b").await?, 200),
    ] {
        for text in ["", "hello", &"x".repeat(60_000)] {
            say_and_hear(&mut stream, text).await?;
        }
        websocket::write(&mut stream, Kind::Close, &1000u16.to_be_bytes(), true).await?;
        let closed = wait::within("the close", wait::SOON, websocket::read(&mut stream, false)).await??;
        ensure!(closed == (Kind::Close, 1000u16.to_be_bytes().to_vec()), "{closed:?}");
        drop(stream);
        let ends = stand.wait_audit(1, |line| ends_of("long")(line) && line["status"] == status).await?;
        let bytes = (ends[0]["bytes_in"].as_u64(), ends[0]["bytes_out"].as_u64());
        ensure!(bytes.0 > Some(60_000) && bytes.1 > Some(60_000), "{}", ends[0]);
    }
    let decided =
        stand.wait_audit(2, |line| line["event"] == "decision" && line["service"] == "long").await?;
    ensure!(decided.iter().all(|line| line["method"] == "GET"), "{decided:?}");
    wait::until("nothing is open", wait::SOON, async || (upstream.open() == 0).then_some(())).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn handshakes_are_whole_or_refused() -> Result<()> {
    let (stand, upstream) = stand().await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    let good = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let path = "/long/socket/never";
    let of_ada = Some(&*ada);
    for (what, token, fields, status) in [
        ("no token", None, &[VERSION, good][..], 401),
        ("not allowed", Some(&*bob), &[VERSION, good], 403),
        ("no version", of_ada, &[good], 400),
        ("an old version", of_ada, &[("sec-websocket-version", "8"), good], 400),
        ("no key", of_ada, &[VERSION], 400),
        ("a short key", of_ada, &[VERSION, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j")], 400),
        ("two keys", of_ada, &[VERSION, good, good], 400),
    ] {
        let fields: Vec<_> = SOCKET.iter().chain(fields).copied().collect();
        let request = asking(&stand, path, token, &fields)?;
        let once = Once::send(stand.port, stand.pki.roots()?, request).await?;
        ensure!(once.answer.status() == status, "{what}: {:?}", once.answer);
        ensure!(once.answer.headers().get("connection").is_some_and(|v| v == "close"), "{what}");
        once.closes().await.with_context(|| format!("{what}: the connection goes on"))?;
    }
    let mut many = Many::connect(stand.port, stand.pki.roots()?).await?;
    let authorization = format!("Bearer {ada}");
    for (protocol, fields, status) in [
        ("websocket", &[VERSION][..], 401),
        ("websocket", &[("authorization", &*authorization)], 400),
        ("chat", &[("authorization", &*authorization)], 400),
        ("postern-tcp", &[("authorization", &*authorization)], 400),
    ] {
        let answer = many.ask(protocol, path, fields).await?;
        ensure!(answer.status() == status, "{protocol}: {answer:?}");
    }
    let own =
        many.ask("websocket", "/.postern/services", &[("authorization", &*authorization), VERSION]).await?;
    ensure!(own.status() == 405, "{own:?}");
    ensure!(upstream.arrived().is_empty(), "{:?}", upstream.arrived());

    say("an upstream that does not switch");
    let fields = [SOCKET[0], SOCKET[1], VERSION, good];
    let request = asking(&stand, "/echo/x", Some(&ada), &fields)?;
    let once = Once::send(stand.port, stand.pki.roots()?, request).await?;
    ensure!(once.answer.status() == 200, "{:?}", once.answer);
    once.closes().await?;
    let fields = [("authorization", &*authorization), VERSION];
    let answer = many.ask("websocket", "/echo/x", &fields).await?;
    ensure!(answer.status() == 502, "{answer:?}");
    let answer = many.ask("websocket", "/echo/status/404", &fields).await?;
    ensure!(answer.status() == 404, "{answer:?}");
    let body = wait::within("its body", wait::SOON, answer.into_body().collect()).await??;
    ensure!(!String::from_utf8_lossy(&body.to_bytes()).contains("urn:postern"), "the relay's answer");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_is_no_upgrade_is_an_ordinary_request() -> Result<()> {
    let (stand, _upstream) = stand().await?;
    let token = stand.issuer.token("ada").await?;
    let head = |path: &str, fields: &str| {
        format!(
            "GET /echo/{path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nauthorization: Bearer {token}\r\n{fields}\r\n",
            stand.port
        )
    };
    // On one connection: each is answered, and the next one is read.
    let all = [
        head("one", "connection: Upgrade\r\nupgrade: h2c, postern-tcp\r\n"),
        head("two", "upgrade: websocket\r\n"),
        head("three", "connection: close\r\n"),
    ];
    let answer = raw::exchange(stand.port, stand.pki.roots()?, all.concat().as_bytes()).await?;
    ensure!(answer.text.matches("HTTP/1.1 200").count() == 3, "{}", answer.text);
    for path in ["/one", "/two"] {
        let seen = stand.echo.seen_with(path);
        ensure!(seen.len() == 1 && seen[0].header("upgrade").is_empty(), "{seen:?}");
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_ends_a_live_stream() -> Result<()> {
    const LIFE: Duration = Duration::from_secs(8);
    let (stand, upstream) = stand().await?;
    let roots = stand.pki.roots()?;
    let token = stand.issuer.token("ada").await?;
    let mut many = Many::connect(stand.port, roots).await?;

    say("limit.idle, where there is one");
    let mut quiet =
        [h1(&stand, &token, "/sock/socket/q1").await?, h2(&mut many, &token, "/sock/socket/q2").await?];
    let mut long = h1(&stand, &token, "/long/socket/l").await?;
    let start = Instant::now();
    for stream in &mut quiet {
        say_and_hear(stream, "once").await?;
    }
    for stream in &mut quiet {
        let cut = wait::within("the cut", wait::SOON, websocket::read(stream, false)).await?;
        ensure!(cut.is_err(), "{cut:?}");
    }
    let took = start.elapsed();
    ensure!(took > Duration::from_secs(2) && took < Duration::from_secs(6), "cut after {took:?}");
    let ends = stand.wait_audit(2, ends_of("sock")).await?;
    ensure!(ends.iter().all(|end| end["ended"] == "cut"), "{ends:?}");
    say_and_hear(&mut long, "still here").await?;

    say("the end of the token");
    stand.issuer.access_ttl(LIFE).await?;
    let short = stand.issuer.token("ada").await?;
    let start = Instant::now();
    let mut expiring = h2(&mut many, &short, "/long/socket/e").await?;
    let mut cut = None;
    while start.elapsed() < LIFE + wait::SOON {
        // It moves all the time, which does not help it.
        match say_and_hear(&mut expiring, "tick").await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => {
                cut = Some((start.elapsed(), error));
                break;
            }
        }
    }
    let (took, _) = cut.context("it was not cut")?;
    ensure!(
        took + Duration::from_secs(2) > LIFE && took < LIFE + Duration::from_secs(3),
        "cut after {took:?}"
    );
    let ends = stand.wait_audit(1, |line| ends_of("long")(line) && line["ended"] == "expired").await?;
    ensure!(ends.len() == 1, "{ends:?}");
    say_and_hear(&mut long, "not this one").await?;

    say("the agent's removal");
    stand.relay_command(&["agent", "remove", "dc1"]).await?.expect_code(0)?;
    let start = Instant::now();
    let cut = wait::within("the cut", wait::SOON, websocket::read(&mut long, false)).await?;
    ensure!(cut.is_err() && start.elapsed() < Duration::from_secs(1), "{cut:?} after {:?}", start.elapsed());
    wait::until("the upstream is told", wait::SOON, async || (upstream.open() == 0).then_some(())).await?;
    stand.passed();
    Ok(())
}
