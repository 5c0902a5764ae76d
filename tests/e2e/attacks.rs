//! Attacks that once got through, and who pretends to be an agent or a relay: what they hold is freed, what they say is not believed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use postern_base::id::TrustDomain;
use postern_tests::agents_ca::{AgentsCa, Side};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use postern_wire::codec::{self, CONTROL_LIMIT, HEAD_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage};
use postern_wire::head::{CallerInfo, Fields, RequestHead, ResponseHead};
use postern_wire::link::{Code, Link, RecvStream, SendStream, quic};
use postern_wire::tls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// More than an agent, a tunnel and a relay hold on their way.
const LARGE: u64 = 16 << 20;

async fn handshake(stand: &Stand, config: ClientConfig) -> Result<std::io::Result<TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect(("127.0.0.1", stand.port)).await?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1")?, tcp);
    wait::within("a handshake", wait::SOON, shaken).await
}

fn caller(stand: &Stand, alpns: &[&[u8]]) -> Result<ClientConfig> {
    let mut config = postern_tests::http::tls(stand.pki.roots()?)?;
    config.alpn_protocols = alpns.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// An HTTP/2 caller who never opens a window: `window` bytes of each answer are taken, and no more.
async fn miser(stand: &Stand, window: u32, owner: &mut JoinSet<()>) -> Result<SendRequest<Bytes>> {
    let stream = handshake(stand, caller(stand, &[b"h2"])?).await??;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 30);
    let (opener, connection) = builder.handshake(stream).await?;
    owner.spawn(async move {
        // However it ends, the test looks at what became of its requests.
        let _ = connection.await;
    });
    Ok(opener)
}

async fn ask(opener: &mut SendRequest<Bytes>, url: &str, token: &str) -> Result<ResponseFuture> {
    let request = Request::get(url).header("authorization", format!("Bearer {token}")).body(())?;
    let mut ready = opener.clone().ready().await?;
    Ok(ready.send_request(request, true)?.0)
}

/// The first sample of a metric.
async fn metric(stand: &Stand, base: &str, name: &str) -> Option<i64> {
    let text = stand.http.get(&format!("{base}/metrics"), None).await.ok()?.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

const IN_FLIGHT: &str = "postern_relay_requests_in_flight ";

#[tokio::test]
async fn downloads_that_nobody_takes_are_freed() -> Result<()> {
    let extra = Extra {
        tables: "[services.stalled]\nagent = \"dc1\"\nlimit = { idle = \"3s\" }\nrules = [{ allow = \"*\", to = \"* /**\" }]\n"
            .to_owned(),
        // Freed within the relay, their streams end with their connection, on which nothing is asked any more.
        limits: "keepalive = \"5s\"".to_owned(),
        agent_tables: "[services.stalled]\nupstream = \"{echo}\"\n".to_owned(),
        ..Extra::default()
    };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let base = Stand::metrics_url(stand.relay()?).await?;
    let url = stand.at(&format!("/stalled/stream?bytes={LARGE}&step=65536&pause=0"));
    let mut owner = JoinSet::new();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut opener = miser(&stand, 0, &mut owner).await?;
        for _ in 0..100 {
            answers.push(ask(&mut opener, &url, &token).await?);
        }
    }
    let mut bodies = Vec::new();
    for answer in answers {
        let answer = wait::within("an answer's head", Duration::from_secs(30), answer).await??;
        ensure!(answer.status() == 200, "{}", answer.status());
        bodies.push(answer.into_body());
    }
    let before = stand.relay()?.memory()?.now;
    say(&format!("200 downloads stand still; the relay takes {} MiB", before >> 20));
    let start = Instant::now();
    wait::until("none is in flight", Duration::from_secs(30), async || {
        (metric(&stand, &base, IN_FLIGHT).await? == 0).then_some(())
    })
    .await?;
    say(&format!("none is in flight after {:.1?}", start.elapsed()));
    let mut ends = HashMap::<String, usize>::new();
    for mut body in bodies {
        // What was cut does not look complete.
        let end = wait::within("a download's end", 2 * wait::SOON, body.data()).await?;
        *ends.entry(format!("{end:?}")).or_default() += 1;
    }
    say(&format!("{:.1?}: {ends:?}", start.elapsed()));
    ensure!(ends.keys().all(|end| end.starts_with("Some(Err(")), "a cut download ended well: {ends:?}");
    stand.http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn refusals_that_nobody_takes_end_the_connection() -> Result<()> {
    let extra = Extra { limits: "failed_auth = \"100000/s per address\"".to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let before = stand.relay()?.memory()?.now;
    let mut owner = JoinSet::new();
    for round in 0..60 {
        let mut opener = miser(&stand, 0, &mut owner).await?;
        let mut asked = 0;
        let ended = wait::within("the relay ends the connection", wait::SOON, async {
            let mut answers = Vec::new();
            while let Ok(answer) = ask(&mut opener, &stand.at("/echo/x"), "a.b.c").await {
                asked += 1;
                answers.push(answer);
                if answers.len() == 100 {
                    // As many as may be open at once: the relay decides now.
                    let failed = futures_util::future::join_all(answers.drain(..).map(|answer| async {
                        match answer.await {
                            Ok(answer) => answer.into_body().data().await.is_none_or(|data| data.is_err()),
                            Err(_) => true,
                        }
                    }));
                    ensure!(failed.await.into_iter().all(|failed| failed), "a refusal was delivered");
                }
            }
            Ok(())
        });
        ended.await??;
        ensure!((33..=200).contains(&asked), "round {round}: ended after {asked} requests");
    }
    let grown = stand.relay()?.memory()?.now.saturating_sub(before);
    say(&format!("60 connections of it: {} KiB more", grown >> 10));
    ensure!(grown < 32 << 20, "the relay grew by {grown} bytes");
    stand.http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_public_listener_tells_its_rows_apart() -> Result<()> {
    let stand = Stand::start().await?;
    let (tunnel, join) = (tls::ALPN_TUNNEL_TCP, tls::ALPN_JOIN_TCP);
    say("one connection, two kinds of peer: no certificate");
    for mixed in [[tunnel, b"h2"], [b"h2", tunnel], [b"http/1.1", join], [join, tunnel]] {
        ensure!(handshake(&stand, caller(&stand, &mixed)?).await?.is_err(), "{mixed:?} was served");
    }
    ensure!(handshake(&stand, caller(&stand, &[tls::ALPN_TUNNEL])?).await?.is_err(), "QUIC's row over TCP");
    say("who trusts the public certificate does not see it on the agents' rows, and the other way round");
    let real = AgentsCa::of(&stand.path("relay"))?;
    for row in [tunnel, join] {
        let error =
            handshake(&stand, caller(&stand, &[row])?).await?.err().context("the web's certificate")?;
        ensure!(error.to_string().contains("UnknownIssuer"), "{error}");
    }
    let mut agent = tls::join_config(real.pin()?, join)?;
    agent.alpn_protocols = vec![b"h2".to_vec()];
    ensure!(handshake(&stand, agent).await?.is_err(), "the agents' certificate for callers");
    for names in [&[&b"h2"[..], b"http/1.1"][..], &[]] {
        handshake(&stand, caller(&stand, names)?).await??;
    }

    say("a tunnel needs an enrolled agent's certificate: anything else is refused and in the audit log");
    let foreign = AgentsCa::foreign()?;
    let id = "01jd0000000000000000000000";
    let domain: TrustDomain = "example.com".parse()?;
    let config = |identity| tls::tunnel_config(identity, &[real.root()], domain.clone(), 0, tunnel);
    for (why, config, reason) in [
        ("none", tls::join_config(real.pin()?, tunnel)?, "peer sent no certificates"),
        (
            "signed by another authority",
            config(foreign.identity(&format!("spiffe://example.com/agent/dc1/{id}"), Side::Agent)?)?,
            "UnknownIssuer",
        ),
        (
            "another trust domain",
            config(real.identity(&format!("spiffe://other.example/agent/dc1/{id}"), Side::Agent)?)?,
            "trust domain",
        ),
        ("a relay's", config(real.identity("spiffe://example.com/relay/relay", Side::Agent)?)?, "a relay's"),
        (
            "no agent of this relay",
            config(real.identity(&format!("spiffe://example.com/agent/dc1/{id}"), Side::Agent)?)?,
            "not enrolled",
        ),
    ] {
        say(why);
        let mut stream = handshake(&stand, config).await??;
        // It speaks no HTTP/2, and is not waited for.
        let end = wait::within("the relay closes", wait::SOON, async {
            while matches!(stream.read(&mut [0; 1024]).await, Ok(some) if some > 0) {}
        });
        end.await?;
        refused(&stand, 1, reason).await?;
    }

    say("the same over QUIC");
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let named = format!("spiffe://example.com/agent/dc1/{id}");
    for (config, count, reason) in [
        (tls::join_config(real.pin()?, tls::ALPN_TUNNEL)?, 1, "showed no certificate"),
        (
            tls::tunnel_config(
                foreign.identity(&named, Side::Agent)?,
                &[real.root()],
                domain,
                0,
                tls::ALPN_TUNNEL,
            )?,
            2,
            "UnknownIssuer",
        ),
    ] {
        let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
        let config = quinn::ClientConfig::new(Arc::new(config));
        let connecting = endpoint.connect_with(config, ([127, 0, 0, 1], stand.port).into(), "relay")?;
        // The relay refuses it only after the agent's last flight: the handshake may end well here.
        if let Ok(connection) = wait::within("a handshake", wait::SOON, connecting).await? {
            wait::within("the relay closes", wait::SOON, connection.closed()).await?;
        }
        refused(&stand, count, reason).await?;
    }
    stand.passed();
    Ok(())
}

/// Waits for this many audit lines of tunnels that were refused for a reason.
async fn refused(stand: &Stand, count: usize, reason: &str) -> Result<()> {
    let is_it = |line: &Value| {
        line["event"] == "tunnel-refused" && line["reason"].as_str().is_some_and(|text| text.contains(reason))
    };
    stand.wait_audit(count, is_it).await.map(drop)
}

/// What an agent answered to a request that a hostile relay made up.
async fn order(link: &Link, fields: &HeaderMap) -> Result<String> {
    let (mut send, mut recv) = link.open().await?;
    let caller =
        CallerInfo { issuer: "corp", subject: "x", client: None, scopes: vec![], roles: vec![], expires: 0 };
    let head = RequestHead::Http {
        request_id: "01jd0000000000000000000000",
        traceparent: "",
        service: "echo",
        method: "POST",
        path_and_query: "/ordered",
        fields: Fields::Map(fields),
        caller,
        credential: None,
        upgrade: None,
    };
    send.message(&head, HEAD_LIMIT).await?;
    // A body that is all there at once: ten bytes, and the end.
    send.send(&mut [Bytes::from_static(b"\x00\x0a0123456789\x02")]).await?;
    send.finish();
    let answer = recv.message(HEAD_LIMIT).await?.context("no answer")?;
    Ok(match codec::decode::<ResponseHead<'_>>(&answer)? {
        ResponseHead::Http { status, .. } => status.to_string(),
        ResponseHead::Failed { detail, .. } => format!("failed: {detail}"),
        ResponseHead::Opened => bail!("opened"),
    })
}

/// Answers heartbeats until the agent leaves, which is an error.
async fn acknowledge(send: &mut SendStream, recv: &mut RecvStream) -> Result<Infallible> {
    loop {
        let message = recv.message(CONTROL_LIMIT).await?.context("the agent left")?;
        if let AgentMessage::Heartbeat { seq } = codec::decode(&message)? {
            send.message(&RelayMessage::HeartbeatAck { seq }, CONTROL_LIMIT).await?;
        }
    }
}

#[tokio::test]
async fn an_agent_believes_no_relay_that_says_two_lengths() -> Result<()> {
    let mut stand = Stand::start().await?;
    stand.stop_agent(Signal::TERM).await?;
    stand.stop_relay(Signal::TERM).await?;

    say("a relay that turned bad: its certificate is real");
    let ca = AgentsCa::of(&stand.path("relay"))?;
    let identity = ca.identity("spiffe://example.com/relay/relay", Side::Relay)?;
    let config = tls::relay_config(identity, tls::Roots::new(&[ca.root()])?, &[tls::ALPN_TUNNEL])?;
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(config));
    config.transport_config(quic::transport(1));
    let endpoint = quinn::Endpoint::server(config, ([127, 0, 0, 1], stand.port).into())?;
    let starting = stand.start_agent();
    let serving = async {
        let incoming = wait::within("the agent dials", wait::SOON, endpoint.accept()).await?;
        let link = Link::quic(incoming.context("no endpoint")?.await?);
        let (mut send, mut recv) = link.control().await?;
        let hello = recv.message(CONTROL_LIMIT).await?.context("no hello")?;
        ensure!(matches!(codec::decode(&hello)?, AgentMessage::Hello { .. }));
        let welcome = RelayMessage::Welcome {
            minor: MINOR,
            relay: "relay".to_owned(),
            heartbeat_ms: 5000,
            other_relays: Vec::new(),
            refused: Vec::new(),
        };
        send.message(&welcome, CONTROL_LIMIT).await?;
        let orders = async {
            let mut fields = HeaderMap::new();
            fields.insert("host", HeaderValue::from_static("relay.example.com"));
            fields.insert("content-length", HeaderValue::from_static("10"));
            let one = order(&link, &fields).await?;
            fields.append("content-length", HeaderValue::from_static("3"));
            let two = order(&link, &fields).await?;
            fields.insert("content-length", HeaderValue::from_static("10, 3"));
            let joined = order(&link, &fields).await?;
            Ok::<_, anyhow::Error>((one, two, joined))
        };
        let said = tokio::select! {
            said = wait::within("three answers", wait::SOON, orders) => said??,
            left = acknowledge(&mut send, &mut recv) => match left? {},
        };
        link.close(Code::DONE, "");
        Ok(said)
    };
    // The agent's own start goes on until it is ready, which takes a tunnel: this one.
    let (said, _) = tokio::join!(serving, tokio::time::timeout(wait::SOON, starting));
    let (one, two, joined) = said?;
    ensure!(one == "200", "{one}");
    ensure!(two.starts_with("failed: ") && joined.starts_with("failed: "), "{two} {joined}");
    ensure!(stand.echo.seen_with("/ordered").len() == 1, "{:?}", stand.echo.seen_with("/ordered"));
    stand.passed();
    Ok(())
}
