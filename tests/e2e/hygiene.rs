//! What a caller sends and what the upstream gets: identity cannot be spoofed in any spelling, hop-by-hop fields stay on their hop, and
//! whatever two parsers could read differently is refused. The same on the way back.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use postern_tests::http::{Http, empty, raw, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Seen;

/// What callers try to pass as, or to control proxies with. None may arrive as sent.
const SPOOFED: &[&str] = &[
    "X-Postern-Subject",
    "x_postern_subject",
    "X-Postern_Roles",
    "X-POSTERN-ISSUER",
    "X-Postern-Client",
    "X-Postern-Scopes",
    "X-Postern-Assertion",
    "X-Postern-Anything",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-User",
    "Forwarded",
    "X-Real-IP",
    "X-Request-Id",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Keep-Alive",
    "DPoP",
    "X-Remote-User",
    "X_Remote_User",
];

const SPOOF: &str = "spoofed-value";

fn check_seen(seen: &Seen, who: &str) -> Result<()> {
    for (name, value) in &seen.headers {
        let text = String::from_utf8_lossy(value.as_bytes());
        ensure!(!text.contains(SPOOF), "{who}: {name}: {text} arrived");
        ensure!(!name.as_str().contains('_'), "{who}: {name} arrived");
    }
    let ours = [
        ("x-postern-subject", "ada"),
        ("x-postern-client", "postern-cli"),
        ("x-postern-roles", "clerk"),
        ("x-remote-user", "ada"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/portal"),
        ("x-forwarded-for", "127.0.0.1"),
    ];
    for (name, expected) in ours {
        ensure!(seen.header(name) == expected, "{who}: {name} is {:?}", seen.header(name));
    }
    for name in ["x-request-id", "traceparent", "forwarded", "x-forwarded-host", "x-postern-issuer"] {
        ensure!(!seen.header(name).is_empty() && !seen.header(name).contains('|'), "{who}: {name}");
    }
    // The agent may ask the upstream for trailers by itself.
    ensure!(matches!(seen.header("te").as_str(), "" | "trailers"), "{who}: te: {:?}", seen.header("te"));
    for name in ["authorization", "upgrade", "x-hop", "x-also-hop"] {
        ensure!(seen.header(name).is_empty(), "{who}: {name}: {:?} arrived", seen.header(name));
    }
    ensure!(seen.header("x-repeated") == "one|two", "{who}: {:?}", seen.header("x-repeated"));
    ensure!(seen.header("cookie") == "a=1", "{who}: {:?}", seen.header("cookie"));
    Ok(())
}

const TABLES: &str = r#"
[services.portal]
agent = "dc1"
send = { user = "X-Remote-User" }
rules = [{ allow = "*", to = "* /**" }]
"#;

const AGENT_TABLES: &str = "[services.portal]\nupstream = \"{echo}\"\n";

#[tokio::test]
async fn nobody_passes_for_another() -> Result<()> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    for (who, http) in [("h1", &stand.http), ("h2", &h2)] {
        let mut builder = request("POST", &stand.at(&format!("/portal/{who}?q=1")), Some(&token))
            .header("x-repeated", "one")
            .header("x-repeated", "two")
            .header("cookie", "a=1");
        for name in SPOOFED {
            let hop = matches!(*name, "Proxy-Connection" | "Keep-Alive");
            if !(hop && who == "h2") {
                builder = builder.header(*name, SPOOF);
                // Several proofs are refused before anything else.
                builder = if *name == "DPoP" { builder } else { builder.header(*name, SPOOF) };
            }
        }
        if who == "h1" {
            builder = builder
                .header("connection", "x-hop, X-Also-Hop, X-Postern-Subject, x-forwarded-for")
                .header("x-hop", "1")
                .header("x-also-hop", "1")
                .header("upgrade", "h2c");
        }
        // Trailers: a spoofed identity, and one that may pass.
        let mut trailers = HeaderMap::new();
        trailers.insert("x-postern-subject", HeaderValue::from_static(SPOOF));
        trailers.insert("x-forwarded-for", HeaderValue::from_static(SPOOF));
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let trailer = "x-postern-subject, x-forwarded-for, x-checksum";
        let answer =
            http.send(builder.header("trailer", trailer).body(body)?).await?.expect_status(200)?.json()?;
        ensure!(answer["body"] == "body" && answer["whole"] == true, "{answer}");
        ensure!(!answer["trailers"].to_string().contains(SPOOF), "{who}: {}", answer["trailers"]);
        let seen = stand.echo.seen_with(&format!("/{who}?q=1"));
        ensure!(seen.len() == 1 && seen[0].target == format!("/{who}?q=1"), "{seen:?}");
        check_seen(&seen[0], who)?;
    }

    say("what comes back");
    for http in [&stand.http, &h2] {
        let dirty = http.get(&stand.at("/echo/dirty"), Some(&token)).await?.expect_status(200)?;
        let gone = [
            "x-powered-by",
            "alt-svc",
            "x-postern-subject",
            "set-cookie",
            "strict-transport-security",
            "x-hop",
        ];
        for name in gone {
            ensure!(!dirty.headers.contains_key(name), "{name}: {} came back", dirty.header(name));
        }
        for name in ["server", "proxy-status", "www-authenticate"] {
            ensure!(!dirty.header(name).contains("legacy"), "{name}: {} came back", dirty.header(name));
        }
        let kept: Vec<_> = dirty.headers.get_all("x-kept").iter().collect();
        ensure!(kept == ["one", "two"], "{kept:?}");
        ensure!(
            dirty.header("location") == stand.at("/echo/elsewhere"),
            "Location: {}",
            dirty.header("location")
        );
        ensure!(!dirty.header("x-request-id").is_empty(), "no X-Request-Id");
        let status = http.get(&stand.at("/echo/status/418"), Some(&token)).await?.expect_status(418)?;
        ensure!(status.json()?["from"] == "echo", "an upstream's refusal was replaced");
    }
    let te = request("GET", &stand.at("/echo/trailers"), Some(&token)).header("te", "trailers");
    for http in [&stand.http, &h2] {
        let te = te.headers_ref().cloned().unwrap_or_default();
        let mut again = request("GET", &stand.at("/echo/trailers"), None);
        again.headers_mut().into_iter().for_each(|headers| headers.extend(te.clone()));
        let answer = http.send(again.body(empty())?).await?.expect_status(200)?;
        let checksum = answer.trailers.as_ref().and_then(|t| t.get("x-checksum"));
        ensure!(checksum.is_some_and(|v| v == "abc"), "trailers: {:?}", answer.trailers);
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_parsers_could_read_differently_is_refused() -> Result<()> {
    let stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let own = format!("127.0.0.1:{}", stand.port);
    let auth = format!("Authorization: Bearer {token}\r\nConnection: close\r\n");
    let host = format!("Host: {own}\r\n");
    let evil = "GET /echo/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

    let refused: Vec<(&str, String)> = vec![
        ("no Host", format!("GET /echo/a HTTP/1.1\r\n{auth}\r\n")),
        ("two Hosts", format!("GET /echo/a HTTP/1.1\r\n{host}{host}{auth}\r\n")),
        (
            "another absolute form",
            format!("GET https://other.example.com/echo/a HTTP/1.1\r\n{host}{auth}\r\n"),
        ),
        ("obs-fold", format!("GET /echo/a HTTP/1.1\r\n{host}{auth}X-Folded: a\r\n b\r\n\r\n")),
        ("space before colon", format!("GET /echo/a HTTP/1.1\r\n{host}{auth}X-Spaced : a\r\n\r\n")),
        ("bare CR", format!("GET /echo/a HTTP/1.1\r\n{host}{auth}X-Cr: a\rb\r\n\r\n")),
        ("NUL", format!("GET /echo/a HTTP/1.1\r\n{host}{auth}X-Nul: a\0b\r\n\r\n")),
        (
            "two lengths",
            format!("POST /echo/a HTTP/1.1\r\n{host}{auth}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ),
        ("a list of lengths", format!("POST /echo/a HTTP/1.1\r\n{host}{auth}Content-Length: 1, 2\r\n\r\nab")),
        ("a signed length", format!("POST /echo/a HTTP/1.1\r\n{host}{auth}Content-Length: +1\r\n\r\na")),
        (
            "an unknown coding",
            format!("POST /echo/a HTTP/1.1\r\n{host}{auth}Transfer-Encoding: gzip\r\n\r\na"),
        ),
        (
            "a coding after chunked",
            format!("POST /echo/a HTTP/1.1\r\n{host}{auth}Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n"),
        ),
        ("a blank in the target", format!("GET /echo/a b HTTP/1.1\r\n{host}{auth}\r\n")),
        ("a tab in the target", format!("GET /echo/a\tb HTTP/1.1\r\n{host}{auth}\r\n")),
        ("HTTP/0.9", "GET /echo/a\r\n\r\n".to_owned()),
        ("CONNECT", format!("CONNECT 127.0.0.1:22 HTTP/1.1\r\n{host}{auth}\r\n")),
    ];
    for (name, bytes) in refused {
        let answer = raw::exchange(stand.port, stand.pki.roots()?, bytes.as_bytes()).await?;
        say(&format!("{name}: {}", answer.status));
        ensure!((400..=405).contains(&answer.status) || answer.status == 0, "{name}: {}", answer.text);
        ensure!(answer.status != 401, "{name}: the token was not even read: {}", answer.text);
    }
    ensure!(stand.echo.seen().is_empty(), "an ambiguous request arrived: {:?}", stand.echo.seen());

    say("Content-Length beside Transfer-Encoding: refused, or chunked alone counts and the connection ends");
    let length = evil.len() + 5;
    let both = format!(
        "POST /echo/both HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"
    );
    let answer = raw::exchange(stand.port, stand.pki.roots()?, both.as_bytes()).await?;
    ensure!(matches!(answer.status, 400 | 200), "{}", answer.text);
    ensure!(answer.text.matches("HTTP/1.1 ").count() == 1, "two answers: {}", answer.text);
    for seen in stand.echo.seen() {
        ensure!(seen.target == "/both" && seen.header("content-length").is_empty(), "{seen:?}");
    }

    say("a body cut short does not arrive as a whole one");
    let before = stand.echo.seen_with("/sink").len();
    let mut cut = raw::connect(stand.port, stand.pki.roots()?, "127.0.0.1").await?;
    let head = format!(
        "POST /echo/sink HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"
    );
    tokio::io::AsyncWriteExt::write_all(&mut cut, format!("{head}\0\u{1}\u{2}\u{3}").as_bytes()).await?;
    postern_tests::wait::until("the upload began", postern_tests::wait::SOON, async || {
        (stand.echo.seen_with("/sink").len() > before).then_some(())
    })
    .await?;
    drop(cut);
    postern_tests::wait::until("the upstream sees a broken body", postern_tests::wait::SOON, async || {
        stand.echo.faults().iter().any(|fault| !fault.reason.contains("wrong byte")).then_some(())
    })
    .await?;
    stand.passed();
    Ok(())
}
