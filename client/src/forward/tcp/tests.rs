//! Forwards of a TCP service behind a relay that is made up here.

use std::net::SocketAddr;

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
use crate::session::refresh::Tokens;
use crate::session::vault::{Keyring, Vault};
use crate::testing::{Fake, Pki, Seen, json as answer, leases, parrot, settings, switch};

struct Bench {
    address: SocketAddr,
    tcp: Arc<Tcp>,
    serving: JoinSet<()>,
    _dir: tempfile::TempDir,
}

async fn forward(relay: &Fake, once: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
    let token = Some(Secret::new("t0"));
    let tokens =
        Arc::new(Tokens::new(Account::of(relay.relay()), token, vault, relay.client(), TaskTracker::new()));
    let opener = Opener {
        service: "ledger-db".parse().unwrap(),
        relay: relay.relay(),
        dial: Dial::new(&relay.relay(), Proxy::default(), relay.ca.as_ref().map(String::as_bytes)).unwrap(),
        audience: None,
        leases: leases(relay, &tokens),
        tokens,
    };
    let tcp = Arc::new(Tcp::new(opener, Arc::default(), Output::new(false, true)));
    let entrance = Entrance::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = entrance.address().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(Forward { serves: Serves::Tcp(tcp.clone()), entrance, once }.serve());
    Bench { address, tcp, serving, _dir: dir }
}

impl Bench {
    /// Says `word` and ends; gives all that comes back.
    async fn say(&self, word: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(word.as_bytes()).await?;
        stream.shutdown().await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    }
}

fn relayed(_: &Seen) -> http::Response<bytes::Bytes> {
    switch("postern-tcp", parrot)
}

#[tokio::test]
async fn many_connections_have_a_stream_each() {
    let relay = Fake::https(relayed).await;
    let bench = forward(&relay, false).await;
    let words: Vec<String> = (0..50).map(|n| format!("word {n}")).collect();
    let all = futures_util::future::join_all(words.iter().map(|word| bench.say(word))).await;
    for (word, answer) in words.iter().zip(all) {
        assert_eq!(answer.unwrap(), format!("hello {word} goodbye"));
    }
    assert_eq!(relay.seen().len(), words.len());
}

#[tokio::test]
async fn a_refused_connection_is_reset_and_the_reason_told_once() {
    let relay = Fake::https(|_| {
        answer(
            403,
            &json!({ "type": "urn:postern:denied", "title": "Forbidden", "status": 403, "detail": "no" }),
        )
    })
    .await;
    let bench = forward(&relay, false).await;
    for _ in 0..3 {
        let refused = bench.say("x").await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(bench.tcp.told.reasons().iter().collect::<Vec<_>>(), ["Denied (403): no"]);
}

#[tokio::test]
async fn a_new_connection_waits_for_a_relay_that_comes_back() {
    let pki = Pki::new();
    let relay = Fake::start(0, Some(&pki), Arc::new(relayed)).await;
    let bench = forward(&relay, false).await;
    assert_eq!(bench.say("one").await.unwrap(), "hello one goodbye");
    let port = relay.address.port();
    drop(relay);
    let back = async {
        // The connection has found nobody once before the relay is back.
        bench.tcp.link.lost().await;
        Fake::start(port, Some(&pki), Arc::new(relayed)).await
    };
    let (text, _relay) = tokio::join!(bench.say("two"), back);
    assert_eq!(text.unwrap(), "hello two goodbye");
}

#[tokio::test]
async fn a_connection_whose_tunnel_broke_is_made_again() {
    let broke = std::sync::atomic::AtomicBool::new(false);
    let relay = Fake::https(move |seen| {
        if broke.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return relayed(seen);
        }
        answer(502, &json!({ "type": "urn:postern:tunnel-lost", "title": "The tunnel broke", "status": 502 }))
    })
    .await;
    let bench = forward(&relay, false).await;
    assert_eq!(bench.say("one").await.unwrap(), "hello one goodbye");
    assert!(bench.tcp.told.reasons().is_empty());
}

#[tokio::test]
async fn once_ends_with_the_first_connection() {
    let relay = Fake::https(relayed).await;
    let mut bench = forward(&relay, true).await;
    assert_eq!(bench.say("one").await.unwrap(), "hello one goodbye");
    tokio::time::timeout(Duration::from_secs(5), bench.serving.join_next()).await.unwrap();
}
