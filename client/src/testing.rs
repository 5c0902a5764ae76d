//! Servers for tests: an HTTPS relay or a plain-http issuer on loopback, answering from a closure and remembering what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_base::http_client::{HttpClient, HttpClientOptions};
use postern_base::proxy::Proxy;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::lease::Leases;
use crate::output::Output;
use crate::relay_api::Relay;
use crate::relay_api::address::RelayUrl;
use crate::session::dpop::ProofKey;
use crate::session::refresh::Tokens;
use crate::session::{Access, Session, Token, now};
use crate::settings::{Keep, Settings};

/// A request as a fake server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: http::request::Parts,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn target(&self) -> String {
        self.head.uri.path_and_query().map(ToString::to_string).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// A field of a form-encoded body.
    pub(crate) fn form(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.body.as_bytes())
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.into_owned())
    }
}

/// Among an answer's extensions: it is held back until there is a permit.
#[derive(Clone)]
pub(crate) struct Held(pub(crate) Arc<Semaphore>);

/// Among a 101's extensions: what becomes of the connection.
#[derive(Clone)]
pub(crate) struct Raw(pub(crate) fn(TokioIo<Upgraded>) -> BoxFuture<'static, ()>);

/// A 101 to `protocol`; the connection is then `raw`'s.
pub(crate) fn switch(
    protocol: &str,
    raw: fn(TokioIo<Upgraded>) -> BoxFuture<'static, ()>,
) -> Response<Bytes> {
    let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", protocol);
    answer.extension(Raw(raw)).body(Bytes::new()).unwrap()
}

/// Greets, gives back all that comes, and says a last word when the other side has ended.
pub(crate) fn parrot(mut io: TokioIo<Upgraded>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        io.write_all(b"hello ").await.unwrap();
        io.flush().await.unwrap();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match io.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => io.write_all(&buffer[..read]).await.unwrap(),
                Err(_) => return,
            }
            io.flush().await.unwrap();
        }
        io.write_all(b" goodbye").await.unwrap();
        io.shutdown().await.unwrap();
    })
}

type Answer = Arc<dyn Fn(&Seen) -> Response<Bytes> + Send + Sync>;

/// A server that stops when dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Option<String>,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Plain http, as issuers on loopback may be.
    pub(crate) async fn http(answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        Self::start(0, None, Arc::new(answer)).await
    }

    /// HTTPS for `localhost` and `127.0.0.1`, HTTP/1.1 and HTTP/2.
    pub(crate) async fn https(answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        let pki = Pki::new();
        Self::start(0, Some(&pki), Arc::new(answer)).await
    }

    pub(crate) async fn start(port: u16, pki: Option<&Pki>, answer: Answer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let tls = pki.map(Pki::acceptor);
        let log = seen.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, tls.clone(), answer.clone(), log.clone()));
            }
        });
        Self { address, ca: pki.map(|p| p.certificate.clone()), seen, _tasks: tasks }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}{path}", self.address.port())
    }

    pub(crate) fn relay(&self) -> RelayUrl {
        self.url("").parse().unwrap()
    }

    pub(crate) fn client(&self) -> HttpClient {
        let extra_roots_pem = self.ca.as_ref().map(|pem| pem.clone().into_bytes());
        HttpClient::new(HttpClientOptions { extra_roots_pem, allow_private: true, ..Default::default() })
            .unwrap()
    }
}

/// A certificate for loopback names.
pub(crate) struct Pki {
    pub(crate) certificate: String,
    key: rcgen::KeyPair,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".into(), "billing.example.com".into()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Self { certificate: made.cert.pem(), key: made.signing_key, der: made.cert.der().clone() }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, answer: Answer, seen: Arc<Mutex<Vec<Seen>>>) {
    let switched: Arc<Mutex<Option<(Raw, OnUpgrade)>>> = Arc::default();
    let theirs = switched.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (answer, seen, switched) = (answer.clone(), seen.clone(), theirs.clone());
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            let (head, body) = request.into_parts();
            let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
            let one = Seen { head, body };
            seen.lock().unwrap().push(one.clone());
            let given = answer(&one);
            if let Some(Held(gate)) = given.extensions().get() {
                gate.acquire().await.unwrap().forget();
            }
            if let Some(raw) = given.extensions().get::<Raw>() {
                *switched.lock().unwrap() = Some((raw.clone(), upgrade));
            }
            Ok::<_, hyper::Error>(given.map(Full::new))
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // A test's client may leave in the middle: that is no failure of the server's.
    let _ = match tls {
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
            Err(_) => return,
        },
        None => builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
    };
    let switched = switched.lock().unwrap().take();
    if let Some((Raw(raw), upgrade)) = switched {
        raw(TokioIo::new(upgrade.await.unwrap())).await;
    }
}

/// A session whose tokens live for `life` seconds from now; its issuer is at `issuer`.
pub(crate) fn session(relay: RelayUrl, issuer: &str, life: u64) -> Session {
    let access = Access { token: Token::new("access-0"), issued: now(), expires: now() + life, bound: false };
    Session {
        relay,
        login: "corp".into(),
        issuer: issuer.into(),
        client_id: "postern-cli".into(),
        token_endpoint: format!("{issuer}/token").parse().unwrap(),
        revocation_endpoint: Some(format!("{issuer}/revoke").parse().unwrap()),
        resource: Some("https://relay.example.com".into()),
        scopes: vec!["openid".into()],
        refresh_token: Some(Token::new("refresh-0")),
        machine: None,
        proof_key: None,
        user: None,
        ended: false,
        access: BTreeMap::from([(String::new(), access)]),
    }
}

/// Settings that keep sessions in files of this directory.
pub(crate) fn settings(dir: &Path) -> Settings {
    Settings {
        relay: None,
        profile: None,
        roots: None,
        dir: dir.to_owned(),
        own_dir: true,
        keep: Keep::File,
        token: None,
        client_id: None,
        client_secret_file: None,
        proxy: Proxy::default(),
    }
}

/// Header and claims of a proof, whose signature is checked with the key in it.
pub(crate) fn opened(jwt: &str) -> (serde_json::Value, serde_json::Value) {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
    let parts: Vec<Vec<u8>> = jwt.split('.').map(|part| BASE64.decode(part).unwrap()).collect();
    let [header, claims, signature] = &parts[..] else { panic!("{jwt}") };
    let value = |bytes: &[u8]| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
    let header = value(header);
    let coordinate = |name: &str| BASE64.decode(header["jwk"][name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let (signed, _) = jwt.rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), signature).unwrap();
    (header, value(claims))
}

/// The tokens of a session that has a key; the first is bound to it.
pub(crate) fn bound(relay: &Fake) -> Tokens {
    let mut session = session(relay.relay(), "http://localhost:9", 3600);
    session.proof_key = Some(Arc::new(ProofKey::generate().unwrap()));
    session.access.values_mut().for_each(|access| access.bound = true);
    Tokens::in_memory(session, relay.client(), TaskTracker::new())
}

/// The live streams of a forward under test; nothing renews them.
pub(crate) fn leases(relay: &Fake, tokens: &Arc<Tokens>) -> Arc<Leases> {
    let relay = Relay::new(relay.relay(), relay.client());
    Arc::new(Leases::new(relay, tokens.clone(), Output::new(false, true)))
}

pub(crate) fn json(status: u16, body: &serde_json::Value) -> Response<Bytes> {
    let kind = if body.get("type").is_some() { "application/problem+json" } else { "application/json" };
    let body = Bytes::from(body.to_string());
    Response::builder().status(status).header("content-type", kind).body(body).unwrap()
}

/// Sends these bytes and reads to the end of the answer's head and of its body, or for 5 s.
pub(crate) async fn raw_http(address: SocketAddr, request: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let closing = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        stream.write_all(closing.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.unwrap()
}

/// Waits until something holds, for 10 s at most.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}
