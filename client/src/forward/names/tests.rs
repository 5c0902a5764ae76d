//! The proxy before a relay that is made up here.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use postern_base::proxy::Proxy;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::*;
use crate::dial::Dial;
use crate::forward::{Entrance, Forward, Serves};
use crate::output::Output;
use crate::session::refresh::Tokens;
use crate::testing::{Fake, Seen, json as answer, leases, parrot, session, switch};

struct Bench {
    relay: Fake,
    address: SocketAddr,
    names: Arc<Names>,
    _serving: JoinSet<()>,
}

fn relayed(seen: &Seen) -> Response<Bytes> {
    let port = seen.head.uri.port_u16().or_else(|| seen.header("host")?.rsplit_once(':')?.1.parse().ok());
    match seen.head.uri.path() {
        "/.postern/services" => answer(
            200,
            &json!({
                "principal": { "issuer": "corp", "subject": "1", "user": "ada", "expires": 9 },
                "services": [
                    { "name": "billing", "kind": "http", "up": true, "url": format!("https://localhost:{}/billing/", port.unwrap()),
                      "hosts": ["billing.example.com", "*.apps.example.com"] },
                    { "name": "ledger-db", "kind": "tcp", "up": true, "may": ["CONNECT"] },
                    { "name": "shut-db", "kind": "tcp", "up": true },
                ],
            }),
        ),
        "/.postern/tcp/ledger-db" => switch("postern-tcp", parrot),
        "/.postern/tcp/shut-db" => answer(
            502,
            &json!({ "type": "urn:postern:upstream-unreachable", "title": "The service is down", "status": 502 }),
        ),
        path => answer(
            200,
            &json!({ "path": path, "host": seen.header("host"), "authority": seen.head.uri.host() }),
        ),
    }
}

async fn proxy() -> Bench {
    proxy_for(Guests::Programs).await
}

async fn proxy_for(guests: Guests) -> Bench {
    let relay = Fake::https(relayed).await;
    let session = session(relay.relay(), "http://localhost:9", 3600);
    let tokens = Arc::new(Tokens::in_memory(session, relay.client(), TaskTracker::new()));
    let dial = Dial::new(&relay.relay(), Proxy::default(), relay.ca.as_ref().map(String::as_bytes)).unwrap();
    let leases = leases(&relay, &tokens);
    let means = Means::new(relay.relay(), dial, tokens, leases, Output::new(false, true));
    let names = Arc::new(Names::new(means, guests));
    let entrance = Entrance::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = entrance.address().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(Forward { serves: Serves::Names(names.clone()), entrance, once: false }.serve());
    Bench { relay, address, names, _serving: serving }
}

impl Bench {
    /// The code that this name and port are answered with, and the connection.
    async fn connect(&self, name: &str, port: u16) -> (u8, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = u8::try_from(name.len()).unwrap();
        let request = [&[5, 1, 0, 5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes()].concat();
        stream.write_all(&request).await.unwrap();
        let mut reply = [0; 12];
        tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut reply)).await.unwrap().unwrap();
        assert_eq!(reply[..3], [5, 0, 5]);
        (reply[3], stream)
    }

    async fn get(&self, name: &str, port: u16, host: &str) -> String {
        self.get_with(name, port, host, "").await
    }

    async fn get_with(&self, name: &str, port: u16, host: &str, fields: &str) -> String {
        let (code, mut stream) = self.connect(name, port).await;
        assert_eq!(code, 0, "{name}");
        let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn told(&self) -> Vec<String> {
        self.names.told.reasons().iter().cloned().collect()
    }
}

#[tokio::test]
async fn an_http_service_answers_to_all_its_names() {
    let bench = proxy().await;
    for (name, port, host) in [
        ("billing", 80, "billing"),
        ("BILLING", 80, "Billing"),
        ("billing.postern", 80, "billing.postern"),
        ("billing", 8080, "billing:8080"),
    ] {
        let text = bench.get(name, port, host).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"path\":\"/billing/x\""), "{text}");
    }
    // By a host of its own it is asked for as that host, at the relay's address.
    let text = bench.get("billing.example.com", 80, "billing.example.com").await;
    assert!(text.contains("\"path\":\"/x\"") && text.contains("billing.example.com"), "{text}");
    let asked = bench.relay.seen();
    let with_token =
        asked.iter().filter(|seen| seen.header("authorization") == Some("Bearer access-0")).count();
    assert_eq!(with_token, asked.len());
    let misled = bench.get("billing", 80, "evil.example.com").await;
    assert!(misled.starts_with("HTTP/1.1 421"), "{misled}");
    assert!(bench.told().is_empty());
}

#[tokio::test]
async fn a_tcp_service_is_a_raw_channel_and_a_refusal_has_a_code() {
    let bench = proxy().await;
    let (code, mut stream) = bench.connect("ledger-db", 5432).await;
    assert_eq!(code, 0);
    stream.write_all(b"word").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello word goodbye");
    assert_eq!(bench.connect("shut-db.postern", 5432).await.0, Reply::HostUnreachable as u8);
}

#[tokio::test]
async fn browsers_are_served_where_that_is_wanted() {
    let fields = "User-Agent: Mozilla/5.0 (X11)\r\n";
    let bench = proxy().await;
    let refused = bench.get_with("billing", 80, "billing", fields).await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("postern proxy --browser"), "{refused}");
    assert!(bench.relay.seen().iter().all(|seen| !seen.head.uri.path().starts_with("/billing")));
    let bench = proxy_for(Guests::Browsers).await;
    let served = bench.get_with("billing", 80, "billing", fields).await;
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
}

#[tokio::test]
async fn no_page_gives_orders_to_a_tcp_service() {
    for guests in [Guests::Programs, Guests::Browsers] {
        let bench = proxy_for(guests).await;
        let (code, mut stream) = bench.connect("ledger-db", 8080).await;
        assert_eq!(code, 0);
        stream.write_all(b"POST / HTTP/1.1\r\nHost: ledger-db:8080\r\n\r\nFLUSHALL\r\n").await.unwrap();
        let mut said = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await.unwrap();
        assert!(ended.is_err() && !String::from_utf8_lossy(&said).contains("FLUSHALL"), "{said:?}");
    }
}

#[tokio::test]
async fn nothing_else_leaves() {
    let bench = proxy().await;
    assert_eq!(bench.connect("billing", 80).await.0, 0);
    let asked = bench.relay.seen().len();
    for (name, port) in [
        ("example.com", 80),
        ("localhost", 80),
        ("127.0.0.1", bench.relay.address.port()),
        ("169.254.169.254", 80),
        ("billing.evil.example.com", 80),
        ("a.b.apps.example.com", 80),
        ("billing", 443),
    ] {
        assert_eq!(bench.connect(name, port).await.0, Reply::NotAllowed as u8, "{name}");
    }
    assert_eq!(bench.relay.seen().len(), asked, "unknown names are not asked for without end");
    assert_eq!(bench.told().len(), 7);
}

#[test]
fn hosts_are_exact_or_one_label() {
    for (host, name, expected) in [
        ("billing.example.com", "billing.example.com", true),
        ("billing.example.com", "x.billing.example.com", false),
        ("*.apps.example.com", "x.apps.example.com", true),
        ("*.apps.example.com", "apps.example.com", false),
        ("*.apps.example.com", "x.y.apps.example.com", false),
        ("*.apps.example.com", ".apps.example.com", false),
    ] {
        assert_eq!(covers(host, name), expected, "{host} {name}");
    }
}
