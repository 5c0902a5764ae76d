//! A forward before a relay that is made up here.

mod bound;

use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_base::proxy::Proxy;
use postern_base::secret::Secret;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::*;
use crate::dial::Dial;
use crate::forward::{Entrance, Forward, Serves};
use crate::session::profile::Account;
use crate::session::vault::{Keyring, Vault};
use crate::testing::{Fake, Pki, Seen, json as answer, leases, parrot, raw_http, settings, switch, until};

struct Bench {
    address: SocketAddr,
    local: String,
    service: Arc<Service>,
    serving: JoinSet<()>,
}

/// Forwards `url` of this relay, with the token `t0` (none: nobody is logged in).
async fn forward(relay: &Fake, url: &str, token: Option<&str>, once: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
    let token = token.map(Secret::new);
    let tokens = Tokens::new(Account::of(relay.relay()), token, vault, relay.client(), TaskTracker::new());
    over(relay, url, tokens, once).await
}

async fn over(relay: &Fake, url: &str, tokens: Tokens, once: bool) -> Bench {
    let tokens = Arc::new(tokens);
    let roots = relay.ca.as_ref().map(String::as_bytes);
    let dial = Dial::new(&relay.relay(), Proxy::default(), roots).unwrap();
    let service = Arc::new(Service {
        name: "billing".parse().unwrap(),
        upstream: Upstream::new(&dial),
        relay: relay.relay(),
        map: Map::new(url.parse().unwrap()),
        audience: None,
        leases: leases(relay, &tokens),
        tokens,
        link: Arc::default(),
        refused: Some(Mutex::new(None)),
    });
    let entrance = Entrance::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = entrance.address().unwrap();
    let local = format!("http://{address}");
    let mut serving = JoinSet::new();
    let serves = Serves::Http { service: service.clone(), local: local.as_str().into() };
    serving.spawn(Forward { serves, entrance, once }.serve());
    Bench { address, local, service, serving }
}

impl Bench {
    async fn get(&self, path: &str, fields: &str) -> String {
        let host = self.address;
        raw_http(self.address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await
    }
}

fn echo(seen: &Seen) -> Response<Bytes> {
    Response::new(format!("{} {}", seen.head.method, seen.target()).into())
}

#[tokio::test]
async fn the_token_is_added_and_what_was_sent_is_replaced() {
    let relay = Fake::https(echo).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let fields = "Authorization: Bearer stolen\r\nDPoP: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\nExpect: nothing\r\n";
    let answer = bench.get("/v1/%7e%2f/x?a=b", fields).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("GET /billing/v1/%7e%2f/x?a=b"),
        "{answer}"
    );
    let seen = relay.seen();
    let header = |name| seen[0].header(name);
    assert_eq!(header("authorization"), Some("Bearer t0"));
    assert_eq!(seen[0].head.headers.get_all("authorization").iter().count(), 1);
    assert_eq!((header("dpop"), header("x-hop"), header("expect")), (None, None, None));
    assert_eq!(header("x-kept"), Some("2"));
}

#[tokio::test]
async fn a_services_own_host_is_reached_at_the_relays_address() {
    let relay = Fake::https(echo).await;
    let url = format!("https://billing.example.com:{}/", relay.address.port());
    let bench = forward(&relay, &url, Some("t0"), false).await;
    let origin = format!("Origin: {}\r\n", bench.local);
    assert!(bench.get("/v1", &origin).await.ends_with("GET /v1"));
    let seen = &relay.seen()[0];
    assert_eq!(seen.head.uri.host().or(seen.header("host")), Some("billing.example.com"));
    assert_eq!(
        seen.header("origin"),
        Some(url.trim_end_matches('/')),
        "the page's own origin, as the service knows it"
    );
}

#[tokio::test]
async fn strangers_are_refused_before_the_relay_hears_of_them() {
    let relay = Fake::https(echo).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let rebound = raw_http(bench.address, "GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 421") && rebound.contains("application/problem+json"), "{rebound}");
    let foreign = bench.get("/", "Origin: https://evil.example.com\r\n").await;
    assert!(
        foreign.starts_with("HTTP/1.1 403") && foreign.contains("urn:postern:client:foreign-page"),
        "{foreign}"
    );
    let fetched = bench.get("/", "Sec-Fetch-Site: cross-site\r\n").await;
    assert!(fetched.starts_with("HTTP/1.1 403"), "{fetched}");
    for escape in ["/../wiki/", "/%2e%2E/wiki/", "/..;a/wiki/"] {
        let refused = bench.get(escape, "").await;
        assert!(
            refused.starts_with("HTTP/1.1 400") && refused.contains("\"urn:postern:client:path\""),
            "{refused}"
        );
    }
    assert!(relay.seen().is_empty());
}

#[tokio::test]
async fn locations_come_home_and_hops_stay_behind() {
    let relay = Fake::https(|seen| {
        let there = format!("https://localhost:{}/billing/next?x=1", seen.head.uri.port_u16().unwrap());
        Response::builder()
            .status(302)
            .header("location", there)
            .header("x-more", "1")
            .body(Bytes::new())
            .unwrap()
    })
    .await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let answer = bench.get("/", "").await;
    assert!(answer.contains(&format!("location: {}/next?x=1\r\n", bench.local)), "{answer}");
    assert!(answer.contains("x-more: 1"));
}

#[tokio::test]
async fn without_a_session_the_answer_says_what_to_type() {
    let relay = Fake::https(echo).await;
    let bench = forward(&relay, &relay.url("/billing/"), None, false).await;
    let answer = bench.get("/", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("run: postern login localhost"),
        "{answer}"
    );
    assert!(relay.seen().is_empty());
}

#[tokio::test]
async fn a_lost_relay_is_told_and_its_return_needs_nothing() {
    let pki = Pki::new();
    let relay = Fake::start(0, Some(&pki), Arc::new(echo)).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    assert!(bench.get("/1", "").await.starts_with("HTTP/1.1 200"));
    let port = relay.address.port();
    drop(relay);
    let mut lost = String::new();
    for _ in 0..50 {
        lost = bench.get("/2", "").await;
        if lost.contains(RELAY_UNREACHABLE) {
            break;
        }
    }
    assert!(lost.starts_with("HTTP/1.1 502") && lost.contains("check your network"), "{lost}");
    let kept = bench.service.refused.as_ref().unwrap().lock().unwrap().take().unwrap();
    assert_eq!(kept.problem.exit(), Exit::RelayUnreachable);
    let _again = Fake::start(port, Some(&pki), Arc::new(echo)).await;
    assert!(bench.get("/3", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_refusal_is_kept_for_who_explains_it_and_passed_on_whole() {
    let relay = Fake::https(|seen| {
        if seen.target().ends_with("/ok") {
            return echo(seen);
        }
        answer(
            403,
            &json!({ "type": "urn:postern:denied", "title": "Forbidden", "status": 403, "detail": "no" }),
        )
    })
    .await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    assert!(bench.get("/", "").await.contains("\"detail\":\"no\""));
    let refused = bench.service.refused.as_ref().unwrap();
    assert_eq!(refused.lock().unwrap().as_ref().unwrap().problem.exit(), Exit::Denied);
    bench.get("/ok", "").await;
    assert!(refused.lock().unwrap().is_none(), "a later answer wipes it out");
}

#[tokio::test]
async fn once_ends_with_the_first_requests_connection() {
    let relay = Fake::https(echo).await;
    let mut bench = forward(&relay, &relay.url("/billing/"), Some("t0"), true).await;
    drop(TcpStream::connect(bench.address).await.unwrap());
    assert!(
        bench.get("/", "").await.starts_with("HTTP/1.1 200"),
        "a connection without a request does not count"
    );
    tokio::time::timeout(Duration::from_secs(5), bench.serving.join_next()).await.unwrap();
}

#[tokio::test]
async fn a_unix_socket_is_its_owners_alone_and_goes_with_the_forward() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("billing.sock");
    std::fs::write(&path, "mine").unwrap();
    assert!(Entrance::unix(&path).await.is_err(), "a file is never replaced");
    std::fs::remove_file(&path).unwrap();
    let entrance = Entrance::unix(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Entrance::unix(&path).await.is_err(), "nor is a living socket");
    tokio::net::UnixStream::connect(&path).await.unwrap();
    drop(entrance);
    until("the socket is gone", || !path.exists()).await;
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(Entrance::unix(&path).await.is_ok(), "one left behind is replaced");
}

#[tokio::test]
async fn a_websocket_becomes_raw_bytes_with_the_token_added() {
    let relay = Fake::https(|_| switch("websocket", parrot)).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let fields = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
    let head = format!("GET /live HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", bench.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"hello ") {
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "{}", String::from_utf8_lossy(&text));
    }
    stream.write_all(b"ping").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, raw) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: websocket"), "{head}");
    assert_eq!(raw, "hello ping goodbye");
    let seen = &relay.seen()[0];
    assert_eq!((seen.target().as_str(), seen.head.version), ("/billing/live", http::Version::HTTP_11));
    assert_eq!(
        (seen.header("authorization"), seen.header("upgrade")),
        (Some("Bearer t0"), Some("websocket"))
    );
    assert_eq!(seen.header("sec-websocket-key"), Some("k"));
}

#[tokio::test]
async fn a_page_from_elsewhere_gets_no_websocket() {
    let relay = Fake::https(|_| switch("websocket", parrot)).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://evil.example.com\r\n";
    let text = bench.get("/", fields).await;
    assert!(text.starts_with("HTTP/1.1 403") && relay.seen().is_empty(), "{text}");
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_as_such() {
    let relay = Fake::https(echo).await;
    let bench = forward(&relay, &relay.url("/billing/"), Some("t0"), false).await;
    let stream = TcpStream::connect(bench.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let (mut sender, connection) = handshake;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let body = || Full::new(Bytes::from_static(b"x"));
    let request = Request::post(format!("{}/v1/x?a=b", bench.local)).header("te", "trailers");
    let response = sender.send_request(request.body(body()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "POST /billing/v1/x?a=b");
    let seen = &relay.seen()[0];
    assert_eq!((seen.header("te"), seen.header("authorization")), (Some("trailers"), Some("Bearer t0")));
    assert_eq!(seen.head.version, http::Version::HTTP_2);
    let stranger = Request::get("http://evil.example.com/").body(body()).unwrap();
    assert_eq!(sender.send_request(stranger).await.unwrap().status(), StatusCode::MISDIRECTED_REQUEST);
}
