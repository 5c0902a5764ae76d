//! Joins against a relay made for the test, over real QUIC and TCP on loopback.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::link::{Code, Link};
use postern_wire::tls::Identity;
use quinn::Endpoint;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::*;
use crate::config::Transport;
use crate::identity::tests::TestCa;

fn relay_identity(ca: &TestCa, id: &str) -> Arc<Identity> {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let chain = ca.day(csr.der(), id).into_iter().map(CertificateDer::from).collect();
    Arc::new(Identity::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap())
}

pub(crate) fn relay(ca: &TestCa, id: &str, alpn: &[u8]) -> (Endpoint, RelayAddress) {
    let config =
        tls::relay_config(relay_identity(ca, id), tls::Roots::new(&[ca.root()]).unwrap(), &[alpn]).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("127.0.0.1:{}", endpoint.local_addr().unwrap().port()).parse().unwrap();
    (endpoint, address)
}

/// Answers one join as `answer` says; gives the request that came, if one came before the connection ended.
async fn serve(
    endpoint: &Endpoint,
    answer: impl Fn(&JoinRequest) -> Option<JoinAnswer>,
) -> Option<JoinRequest> {
    serve_over(Link::quic(endpoint.accept().await?.await.ok()?), answer).await
}

async fn serve_over(link: Link, answer: impl Fn(&JoinRequest) -> Option<JoinAnswer>) -> Option<JoinRequest> {
    let (mut send, mut recv) = link.control().await.ok()?;
    let request: JoinRequest = codec::decode(&recv.message(JOIN_LIMIT).await.ok()??).unwrap();
    if let Some(answer) = answer(&request) {
        send.message(&answer, JOIN_LIMIT).await.unwrap();
        send.finish();
        // The agent ends the connection when it has read that.
        link.closed().await;
    } else {
        link.close(Code::OVERLOADED, "");
    }
    Some(request)
}

fn invite(ca: &TestCa) -> Invite {
    Invite { pin: tls::pin(&ca.root()).unwrap(), epoch: 0, secret: Zeroizing::new(vec![5; 20]) }
}

fn granted(ca: &TestCa, request: &JoinRequest, name: &str, domain: &str) -> JoinAnswer {
    let id = format!("spiffe://example.com/agent/{name}");
    JoinAnswer::Granted { chain: ca.day(&request.csr, &id), trust_domain: domain.to_owned() }
}

static WAY: LazyLock<Way> = LazyLock::new(Way::default);

type Answer<'a> = Box<dyn Fn(&JoinRequest) -> Option<JoinAnswer> + 'a>;

pub(crate) const RELAY: &str = "spiffe://example.com/relay/relay";

#[tokio::test]
async fn a_join_stores_an_identity_of_its_own_key() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let (endpoint, mut address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    // Where it has two addresses, nobody answers on the other.
    address.host = "localhost".to_owned();
    let invite = invite(&ca);
    let state = dir.path().join("state");
    let answer = |request: &JoinRequest| {
        Some(granted(&ca, request, &format!("dc1/{}", request.instance), "example.com"))
    };
    let (request, joined) = tokio::join!(serve(&endpoint, answer), join(&address, &invite, &state, &WAY));
    assert_eq!(request.unwrap().secret, *invite.secret);
    let identity = joined.unwrap();
    assert_eq!(identity.name().as_str(), "dc1");
    let loaded = AgentIdentity::load(&state).unwrap();
    assert_eq!(loaded.instance(), identity.instance());
    assert_eq!(loaded.roots(), [ca.root()]);
    assert!(loaded.renew_in(SystemTime::now()) > Some(Duration::ZERO));
}

/// A relay that UDP does not reach: TCP, and nothing but silence beside it.
async fn over_tcp(
    ca: &TestCa,
    alpn: &[u8],
    way: &Way,
) -> (Option<JoinRequest>, Result<AgentIdentity, JoinError>) {
    let dir = tempfile::tempdir().unwrap();
    let config =
        tls::relay_config(relay_identity(ca, RELAY), tls::Roots::new(&[ca.root()]).unwrap(), &[alpn])
            .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _silence = std::net::UdpSocket::bind(address).unwrap();
    let served = async {
        let (stream, peer) = listener.accept().await.unwrap();
        let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
        let link = postern_wire::link::tcp::accepted(stream, peer).await.ok()?;
        let answer = |request: &JoinRequest| {
            Some(granted(ca, request, &format!("dc1/{}", request.instance), "example.com"))
        };
        serve_over(link, answer).await
    };
    let (address, invite) = (address.to_string().parse().unwrap(), invite(ca));
    tokio::join!(served, join(&address, &invite, dir.path(), way))
}

#[tokio::test]
async fn where_udp_is_blocked_a_join_goes_over_tcp() {
    let ca = TestCa::new();
    let (request, joined) = over_tcp(&ca, tls::ALPN_JOIN_TCP, &WAY).await;
    assert_eq!(joined.unwrap().instance().as_str(), request.unwrap().instance);
    let (request, joined) = over_tcp(&ca, b"h2", &Way { transport: Transport::Tcp, ..Way::default() }).await;
    assert!(request.is_none());
    assert!(matches!(joined.unwrap_err(), JoinError::NoJoins(..)));
}

#[tokio::test]
async fn the_secret_goes_to_nobody_but_the_pinned_relay() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (TestCa::new(), TestCa::new());
    let invite = invite(&ca);
    let agent = "spiffe://example.com/agent/dc1/01jc8";
    for (what, (endpoint, address)) in [
        ("another root", relay(&other, RELAY, tls::ALPN_JOIN)),
        ("an agent that plays relay", relay(&ca, agent, tls::ALPN_JOIN)),
    ] {
        let seen = serve(&endpoint, |request| Some(granted(&ca, request, "dc1/01jc8", "example.com")));
        let (request, joined) = tokio::join!(seen, join(&address, &invite, dir.path(), &WAY));
        assert!(request.is_none(), "{what} saw the secret");
        let error = joined.unwrap_err();
        assert!(matches!(error, JoinError::NotTheRelay(..)), "{what}: {error}");
        assert!(error.to_string().contains("was not sent"), "{error}");
    }
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_TUNNEL);
    let (request, joined) =
        tokio::join!(serve(&endpoint, |_| None), join(&address, &invite, dir.path(), &WAY));
    assert!(request.is_none());
    assert!(matches!(joined.unwrap_err(), JoinError::NoJoins(..)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is stored");
}

#[tokio::test]
async fn refusals_and_false_answers_store_nothing_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let invite = invite(&ca);
    let refuse =
        |code| move |_: &JoinRequest| Some(JoinAnswer::Refused { code, reason: "a\u{1b}[2J".into() });
    let own = |r: &JoinRequest| format!("dc1/{}", r.instance);
    let cases: Vec<(&str, Answer<'_>)> = vec![
        ("used already", Box::new(refuse(refusal::INVALID))),
        ("expired", Box::new(refuse(refusal::EXPIRED))),
        ("busy", Box::new(refuse(refusal::TOO_MANY))),
        ("busy", Box::new(|_| None)),
        ("at the moment", Box::new(refuse(refusal::UNAVAILABLE))),
        ("agent resume", Box::new(refuse(refusal::SUSPENDED))),
        ("code 99", Box::new(refuse(99))),
        ("not for this agent", Box::new(|r| Some(granted(&ca, r, "dc1/01jc8", "example.com")))),
        ("not for this agent", Box::new(|r| Some(granted(&ca, r, &own(r), "example.org")))),
        ("not for this agent", Box::new(|r| Some(granted(&TestCa::new(), r, &own(r), "example.com")))),
    ];
    for (text, answer) in cases {
        let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
        let (request, joined) =
            tokio::join!(serve(&endpoint, answer), join(&address, &invite, dir.path(), &WAY));
        assert!(request.is_some());
        let error = joined.unwrap_err().to_string();
        assert!(error.contains(text) && !error.contains('\u{1b}'), "{text}: {error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{text}");
    }
}

#[tokio::test]
async fn an_unusable_state_directory_spends_no_invite() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = join(&address, &invite(&ca), &file.join("state"), &WAY).await.unwrap_err();
    assert!(matches!(error, JoinError::State { .. }), "{error}");
    assert_eq!(endpoint.open_connections(), 0);
}

#[tokio::test]
async fn an_unknown_name_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let address = "relay.invalid".parse().unwrap();
    let error = join(&address, &invite(&TestCa::new()), dir.path(), &WAY).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
}

#[tokio::test]
async fn a_relay_of_an_authority_before_the_invites_is_sent_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut ca = TestCa::new();
    ca.rotate(7);
    let own = |request: &JoinRequest| format!("dc1/{}", request.instance);
    for (epoch, is_joined) in [(8, false), (7, true)] {
        let invite = Invite { epoch, ..invite(&ca) };
        let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
        let seen = serve(&endpoint, |request| Some(granted(&ca, request, &own(request), "example.com")));
        let (request, joined) = tokio::join!(seen, join(&address, &invite, dir.path(), &WAY));
        assert_eq!((request.is_some(), joined.is_ok()), (is_joined, is_joined), "{joined:?}");
        if let Err(error) = joined {
            assert!(matches!(error, JoinError::NotTheRelay(..)), "{error}");
            assert!(
                error.to_string().contains("has epoch 7, and the invite was made under epoch 8"),
                "{error}"
            );
        }
    }
}
