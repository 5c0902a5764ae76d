//! Tokens that are bound to a client certificate (RFC 8705): good on connections that proved its key, at hosts that ask for it, and
//! nowhere else. Other hosts do not ask, and a connection's certificate serves the one host that it was shown to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_tests::http::{Body, Http, empty, request, tls, tls_as};
use postern_tests::issuer::Login;
use postern_tests::pki::CertFiles;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme, version};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
hosts = ["vault.example.com", "second.example.com"]
client_certificates = true
rules = [{ allow = "*", to = "GET /**", with = { bound = true } }]

[services.plain]
agent = "dc1"
hosts = ["plain.example.com"]
rules = [{ allow = "*", to = "GET /**" }]
"#;
const AGENT_TABLES: &str =
    "[services.vault]\nupstream = \"{echo}\"\n[services.plain]\nupstream = \"{echo}\"\n";

async fn stand() -> Result<Stand> {
    let extra = Extra {
        tables: TABLES.to_owned(),
        agent_tables: AGENT_TABLES.to_owned(),
        limits: "failed_auth = \"1000/s per address\"".to_owned(),
        ..Extra::default()
    };
    Stand::start_with(extra).await
}

/// Counts how often a server asks for a certificate, and shows none.
#[derive(Debug, Default)]
struct Asked(AtomicUsize);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        None
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Shows a certificate beside a key that is not its own.
#[derive(Debug)]
struct Stolen(Arc<CertifiedKey>);

impl ResolvesClientCert for Stolen {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

fn resolving(stand: &Stand, resolver: Arc<dyn ResolvesClientCert>) -> Result<ClientConfig> {
    let mut config = tls(stand.pki.roots()?)?;
    config.client_auth_cert_resolver = resolver;
    Ok(config)
}

fn get(url: &str, token: &str) -> Result<Request<Body>> {
    Ok(request("GET", url, Some(token)).body(empty())?)
}

/// One connection with this name in TLS, over which requests for any host can be sent.
struct Connection {
    sender: http2::SendRequest<Body>,
    _tasks: JoinSet<()>,
}

impl Connection {
    async fn open(port: u16, mut config: ClientConfig, name: &str) -> Result<Self> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let io = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        let mut tasks = JoinSet::new();
        // Its end is seen by whoever asks next.
        tasks.spawn(async { drop(connection.await) });
        Ok(Self { sender, _tasks: tasks })
    }

    async fn status(&mut self, url: &str, token: &str) -> Result<StatusCode> {
        self.sender.ready().await?;
        let answer = wait::within(url, wait::SOON, self.sender.send_request(get(url, token)?)).await??;
        let status = answer.status();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

/// One handshake and one request over HTTP/1.1.
async fn once(port: u16, config: ClientConfig, host: &str, token: &str) -> Result<StatusCode> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(host.to_owned())?;
    let io = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async { drop(connection.await) });
    let request = request("GET", "/x", Some(token)).header("host", format!("{host}:{port}")).body(empty())?;
    Ok(wait::within(host, wait::SOON, sender.send_request(request)).await??.status())
}

async fn bound(stand: &Stand) -> Result<(CertFiles, String)> {
    let certificate = stand.pki.client("ada")?;
    let token = stand.issuer.login_certified(&Login::of("ada"), &certificate).await?.access;
    Ok((certificate, token))
}

#[tokio::test]
async fn a_token_bound_to_a_certificate_needs_its_key() -> Result<()> {
    let stand = stand().await?;
    let (port, roots) = (stand.port, || stand.pki.roots());
    let (mine, token) = bound(&stand).await?;
    let other = stand.pki.client("bob")?;
    let plain = stand.issuer.token("ada").await?;
    let host = |name: &str| format!("https://{name}:{port}/x");
    let vault = host("vault.example.com");

    let with = Http::h1_as(roots()?, &mine)?;
    for url in [&vault, &host("second.example.com"), &vault] {
        with.get(url, Some(&token)).await?.expect_status(200)?;
    }
    with.get(&vault, Some(&plain)).await?.expect_status(403).context("not bound")?;
    for (name, http, told) in [
        ("no certificate", Http::h1(roots()?)?, "showed none"),
        ("another's", Http::h1_as(roots()?, &other)?, "another client certificate"),
    ] {
        let refused = http.get(&vault, Some(&token)).await?.expect_status(401).context(name)?;
        ensure!(refused.text().contains(told), "{name}: {}", refused.text());
        ensure!(
            refused.header("www-authenticate").contains("error=\"invalid_token\""),
            "{:?}",
            refused.headers
        );
    }
    let dpop = Request::get(&vault).header("authorization", format!("DPoP {token}")).header("dpop", "x");
    with.send(dpop.body(empty())?).await?.expect_status(401)?;

    say("a certificate is nothing without its key; TLS 1.2 is alike");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let stolen =
        CertifiedKey::new(vec![mine.read()?.0], provider.key_provider.load_private_key(other.read()?.1)?);
    let thief = resolving(&stand, Arc::new(Stolen(Arc::new(stolen))))?;
    let answer = once(port, thief.clone(), "vault.example.com", &token).await;
    ensure!(answer.is_err(), "the handshake held: {answer:?}");
    // Where nobody asks, nothing is shown.
    ensure!(once(port, thief, "plain.example.com", &plain).await? == 200, "a host that does not ask");
    let (leaf, key) = mine.read()?;
    let builder =
        ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&version::TLS12])?;
    let old = builder.with_root_certificates(roots()?).with_client_auth_cert(vec![leaf], key)?;
    for _ in 0..2 {
        ensure!(once(port, old.clone(), "vault.example.com", &token).await? == 200, "over TLS 1.2");
    }

    say("a resumed session brings no certificate: there are none");
    let resuming = tls_as(roots()?, &mine)?;
    for _ in 0..3 {
        ensure!(once(port, resuming.clone(), "vault.example.com", &token).await? == 200, "again");
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn only_hosts_that_need_one_ask_for_a_certificate() -> Result<()> {
    let mut stand = stand().await?;
    let port = stand.port;
    let (mine, token) = bound(&stand).await?;
    let plain = stand.issuer.token("ada").await?;
    let asked = Arc::new(Asked::default());
    let names =
        [("plain.example.com", 0), ("127.0.0.1", 0), ("unknown.example.com", 0), ("vault.example.com", 1)];
    for (name, expected) in names {
        asked.0.store(0, Ordering::SeqCst);
        once(port, resolving(&stand, asked.clone())?, name, &plain).await?;
        ensure!(asked.0.load(Ordering::SeqCst) == expected, "{name}");
    }
    let with = tls_as(stand.pki.roots()?, &mine)?;
    ensure!(once(port, with.clone(), "plain.example.com", &token).await? == 401, "not asked for there");
    ensure!(once(port, with.clone(), "127.0.0.1", &token).await? == 401, "nor at the relay's own host");

    say("HTTP/2: a connection serves the host that it was opened for");
    let vault = format!("https://vault.example.com:{port}/x");
    let (elsewhere, own) = (format!("https://plain.example.com:{port}/x"), stand.at("/echo/x"));
    let mut shown = Connection::open(port, with.clone(), "vault.example.com").await?;
    ensure!(shown.status(&vault, &token).await? == 200, "its own host");
    for url in [&elsewhere, &own, &format!("https://second.example.com:{port}/x")] {
        ensure!(shown.status(url, &token).await? == 421, "{url}");
    }
    ensure!(shown.status(&vault, &token).await? == 200, "and nothing is broken by that");

    say("the relay's own host asks from a reload on");
    let metadata = stand.at("/.well-known/oauth-protected-resource");
    stand.edit("relay.toml", "mode = \"files\"", "mode = \"files\"\nclient_certificates = true")?;
    stand.relay()?.signal(Signal::HUP)?;
    wait::until("the metadata says so", wait::SOON, async || {
        let answer = stand.http.get(&metadata, None).await.ok()?.json().ok()?;
        (answer["tls_client_certificate_bound_access_tokens"] == json!(true)).then_some(())
    })
    .await?;
    // An address has no name in TLS.
    let mut unnamed = Connection::open(port, with.clone(), "127.0.0.1").await?;
    ensure!(unnamed.status(&own, &token).await? == 200, "the relay's own host");
    for url in [&elsewhere, &vault] {
        ensure!(unnamed.status(url, &token).await? == 421, "{url}: it was not shown to that host");
    }
    ensure!(once(port, with, "plain.example.com", &token).await? == 401, "others still do not ask");
    stand.passed();
    Ok(())
}
