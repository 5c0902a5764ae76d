//! Behind a balancer that speaks the PROXY protocol (a real HAProxy) the caller's address is the caller's: in policy, limits, the audit
//! log and what the upstream sees. Nobody else can claim one, and a balancer that claims none is not served.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::http::raw::RawAnswer;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Balancer;
use postern_tests::wait;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const TABLES: &str = r#"
[services.office]
agent = "dc1"
rules = [{ name = "the office alone", allow = "*", to = "* /**", from = ["192.0.2.0/24", "127.0.0.2/32"] }]
"#;
const AGENT_TABLES: &str = "[services.office]\nupstream = \"{echo}\"\n";
/// HAProxy's address, and one of a balancer that tests play.
const BALANCERS: &str = "proxy_protocol = [\"127.0.0.3\", \"127.0.0.4/32\"]\n";

/// Twelve bytes that no other protocol begins with, version 2 and PROXY, TCP over IPv4, addresses.
fn header(of: [u8; 4]) -> Vec<u8> {
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
    [&start[..], &of, &[203, 0, 113, 1, 0x30, 0x39, 1, 0xbb]].concat()
}

async fn connect(from: &str, port: u16) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse()?, 0))?;
    Ok(socket.connect(([127, 0, 0, 1], port).into()).await?)
}

/// A request over a connection from `from` that begins with `first`.
async fn ask(stand: &Stand, from: &str, port: u16, first: &[u8], request: &str) -> Result<RawAnswer> {
    let mut stream = connect(from, port).await?;
    stream.write_all(first).await?;
    let mut config = postern_tests::http::tls(stand.pki.roots()?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1")?;
    let tls = TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream);
    let Ok(mut stream) = wait::within("TLS", wait::SOON, tls).await? else {
        return Ok(RawAnswer { status: 0, text: String::new() });
    };
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    // The end may be a reset: what came before it counts.
    let _ = wait::within("an answer", wait::SOON, stream.read_to_end(&mut text)).await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(RawAnswer { status, text })
}

#[tokio::test]
async fn behind_a_balancer_the_callers_address_counts() -> Result<()> {
    let extra = Extra {
        tables: TABLES.to_owned(),
        agent_tables: AGENT_TABLES.to_owned(),
        limits: "handshake = \"2s\"".to_owned(),
        ..Extra::default()
    };
    let mut stand = Stand::start_with(extra).await?;
    stand.edit("relay.toml", "[tls]\n", &format!("{BALANCERS}\n[tls]\n"))?;
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &token, 200, wait::SOON).await?;
    let balancer = Balancer::start(stand.dir(), stand.port).await?;
    let get = |path: &str| {
        let host = format!("Host: 127.0.0.1:{}\r\n", stand.port);
        format!("GET {path} HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\nConnection: close\r\n\r\n")
    };

    say("through HAProxy: two callers, told apart by policy, in the audit log and at the upstream");
    let office = ask(&stand, "127.0.0.2", balancer.port, b"", &get("/office/through")).await?;
    ensure!(office.status == 200, "{office:?}");
    let other = ask(&stand, "127.0.0.5", balancer.port, b"", &get("/office/through")).await?;
    ensure!(other.status == 403, "{other:?}");
    let seen = stand.echo.seen_with("/through");
    ensure!(seen.len() == 1 && seen[0].header("x-forwarded-for") == "127.0.0.2", "{seen:?}");
    for address in ["127.0.0.2", "127.0.0.5"] {
        stand.wait_audit(1, |line| line["event"] == "decision" && line["address"] == address).await?;
    }
    ensure!(
        stand.audit()?.iter().all(|line| line["address"] != "127.0.0.3"),
        "the balancer passed for a caller"
    );

    say("a balancer that we play: its word counts, for an address that nobody here has");
    let far = ask(&stand, "127.0.0.4", stand.port, &header([192, 0, 2, 77]), &get("/office/far")).await?;
    ensure!(far.status == 200, "{far:?}");
    ensure!(stand.echo.seen_with("/far")[0].header("x-forwarded-for") == "192.0.2.77");
    let far = ask(&stand, "127.0.0.4", stand.port, &header([198, 51, 100, 1]), &get("/office/far")).await?;
    ensure!(far.status == 403, "{far:?}");

    say("without a header, with half of one, or with another's: not served");
    let none = ask(&stand, "127.0.0.4", stand.port, b"", &get("/echo/x")).await?;
    ensure!(none.status == 0, "{none:?}");
    let first = b"PROXY TCP4 192.0.2.77 203.0.113.1 12345 443\r\n";
    let old = ask(&stand, "127.0.0.4", stand.port, first, &get("/echo/x")).await?;
    ensure!(old.status == 0, "{old:?}");
    let mut half = connect("127.0.0.4", stand.port).await?;
    half.write_all(&header([192, 0, 2, 77])[..20]).await?;
    let start = std::time::Instant::now();
    let end = wait::within("the relay gives up", wait::SOON, half.read(&mut [0])).await?;
    ensure!(matches!(end, Ok(0) | Err(_)) && start.elapsed() < Duration::from_secs(5), "{end:?}");

    say("from anybody else the header is no header but a broken handshake");
    let forged =
        ask(&stand, "127.0.0.5", stand.port, &header([192, 0, 2, 77]), &get("/office/forged")).await?;
    ensure!(forged.status == 0 && stand.echo.seen_with("/forged").is_empty(), "{forged:?}");
    let plain = ask(&stand, "127.0.0.5", stand.port, b"", &get("/echo/plain")).await?;
    ensure!(plain.status == 200, "{plain:?}");

    say("limits count the caller, not the balancer");
    let mut statuses = Vec::new();
    let bad = get("/echo/x").replace(&token, "a.b.c");
    for _ in 0..40 {
        statuses.push(ask(&stand, "127.0.0.6", balancer.port, b"", &bad).await?.status);
    }
    ensure!(statuses.contains(&429) && statuses[..5].iter().all(|status| *status == 401), "{statuses:?}");
    let good = ask(&stand, "127.0.0.2", balancer.port, b"", &get("/office/again")).await?;
    ensure!(good.status == 200, "{good:?}");

    say("an agent over TCP behind the same balancer: its address is its own");
    stand.stop_agent(Signal::TERM).await?;
    let relay = format!("\"127.0.0.1:{}\"", stand.port);
    stand.edit(
        "agent.toml",
        &format!("relay = {relay}"),
        &format!("relay = \"127.0.0.1:{}\"", balancer.port),
    )?;
    stand.edit("agent.toml", "[telemetry]\n", "[tunnel]\ntransport = \"tcp\"\n\n[telemetry]\n")?;
    stand.start_agent().await?;
    stand.wait_status("/echo/x", &token, 200, wait::SOON).await?;
    let opened = stand.wait_audit(1, |line| line["event"] == "tunnel-open" && line["link"] == "tcp").await?;
    ensure!(opened.iter().all(|line| line["address"] == "127.0.0.1"), "{opened:?}");
    stand.passed();
    Ok(())
}
