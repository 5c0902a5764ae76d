//! Recoveries at a relay made for the test, over real QUIC on loopback.

use std::sync::LazyLock;
use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use postern_wire::codec::JOIN_LIMIT;
use postern_wire::link::{Code, Link};
use quinn::Endpoint;

use super::*;
use crate::identity::tests::{ID, TestCa, ended};
use crate::join::tests::{RELAY, relay};

static WAY: LazyLock<Way> = LazyLock::new(Way::default);

const HOUR: Duration = Duration::from_hours(1);

/// Answers recoveries as `answer` says, none where it gives none; gives what was asked.
async fn serve(
    endpoint: &Endpoint,
    times: usize,
    answer: impl Fn(&RecoverRequest) -> Option<JoinAnswer>,
) -> Vec<RecoverRequest> {
    let mut seen = Vec::new();
    while seen.len() < times {
        let Some(incoming) = endpoint.accept().await else { break };
        let Ok(connection) = incoming.await else { continue };
        let link = Link::quic(connection);
        let (mut send, mut recv) = link.control().await.unwrap();
        let asked = recv.message(JOIN_LIMIT).await.unwrap().unwrap();
        let Question::Recover(request) = Question::decode(&asked).unwrap() else { panic!("a join") };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &request.key);
        let signed = RecoverRequest::signed(&link.exporter(), &request.csr);
        key.verify(&signed, &request.signature).expect("the key is proved on this very connection");
        if let Some(answer) = answer(&request) {
            send.message(&answer, JOIN_LIMIT).await.unwrap();
            send.finish();
            link.closed().await;
        } else {
            link.close(Code::DONE, "the link is cut");
        }
        seen.push(request);
    }
    seen
}

fn granted(ca: &TestCa, request: &RecoverRequest) -> JoinAnswer {
    JoinAnswer::Granted { chain: ca.day(&request.csr, ID), trust_domain: "example.com".to_owned() }
}

fn refuse(code: u16) -> JoinAnswer {
    JoinAnswer::Refused { code, reason: "a\u{1b}[2J".to_owned() }
}

fn off_for_days(state: &std::path::Path, ca: &TestCa) -> Arc<AgentIdentity> {
    Arc::new(ended(state, ca, SystemTime::now() - 72 * HOUR))
}

fn own_key(identity: &AgentIdentity) -> Vec<u8> {
    tls::public_key(&identity.tls().chain()[0]).unwrap()
}

#[tokio::test]
async fn an_ended_certificate_is_followed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = off_for_days(dir.path(), &ca);
    let (own, chain) = (own_key(&identity), identity.tls().chain());
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    let served = serve(&endpoint, 1, |request| Some(granted(&ca, request)));
    let (seen, recovered) = tokio::join!(served, recover(&identity, &address, &WAY));
    recovered.unwrap();
    assert_eq!(seen[0].key, own, "a key that was never asked for is not tried");
    assert_eq!(seen[0].chain, chain.iter().map(|der| der.to_vec()).collect::<Vec<_>>());
    let loaded = AgentIdentity::load(dir.path()).unwrap();
    assert!(!loaded.is_expired(SystemTime::now()) && !identity.is_expired(SystemTime::now()));
    assert_ne!(own_key(&loaded), own);
    assert!(!dir.path().join("next.key").exists());
}

#[tokio::test]
async fn after_a_lost_answer_the_key_that_was_asked_for_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = off_for_days(dir.path(), &ca);
    let own = own_key(&identity);
    identity.renewal().unwrap();

    // The relay never saw that renewal: the identity's own key is the newest.
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    let knows_own = |request: &RecoverRequest| {
        Some(refuse(if request.key == own { refusal::UNAVAILABLE } else { refusal::UNKNOWN_KEY }))
    };
    let served = serve(&endpoint, 2, knows_own);
    let (seen, recovered) = tokio::join!(served, recover(&identity, &address, &WAY));
    assert!(matches!(recovered, Err(RecoverError::Busy(_))));
    let next = seen[0].key.clone();
    assert_ne!(next, own);
    assert_eq!(seen[1].key, own);

    // An answer that is lost leaves it open what the relay knows: the own key may be an old one by now, and is not shown.
    let served = serve(&endpoint, 1, |_| None);
    let (seen, recovered) = tokio::join!(served, recover(&identity, &address, &WAY));
    assert!(matches!(recovered, Err(RecoverError::Ask(AskError::NoAnswer(_)))), "{recovered:?}");
    assert_eq!((seen.len(), &seen[0].key), (1, &next));

    // It was signed: that key is the newest, and the certificate is for it again.
    let knows_next = |request: &RecoverRequest| {
        Some(if request.key == next { granted(&ca, request) } else { refuse(refusal::OLD_KEY) })
    };
    let served = serve(&endpoint, 1, knows_next);
    let (seen, recovered) = tokio::join!(served, recover(&identity, &address, &WAY));
    recovered.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(own_key(&identity), next);
}

#[tokio::test]
async fn refusals_say_what_to_do_and_whether_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = off_for_days(dir.path(), &ca);
    for (code, is_final, advice) in [
        (refusal::SUSPENDED, false, "suspended"),
        (refusal::TOO_MANY, false, "busy"),
        (refusal::UNAVAILABLE, false, "busy"),
        (refusal::INVALID, false, "matching versions"),
        (99, false, "code 99"),
        (refusal::NOT_ENROLLED, true, "agent invite dc1"),
        (refusal::TOO_LATE, true, "postern-agent join"),
        (refusal::OLD_KEY, true, "copy"),
        (refusal::UNKNOWN_KEY, true, "postern-agent join"),
    ] {
        let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
        // The second recovery asks with the key that the first one made, and then perhaps with its own.
        let recovered = tokio::select! {
            recovered = recover(&identity, &address, &WAY) => recovered,
            _ = serve(&endpoint, usize::MAX, |_| Some(refuse(code))) => unreachable!(),
        };
        let error = recovered.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.is_final(), is_final, "{code}: {text}");
        assert!(text.contains(advice) && !text.contains('\u{1b}'), "{code}: {text}");
    }
    assert!(identity.is_expired(SystemTime::now()));
    let suspended = refused(refusal::SUSPENDED, "", identity.name());
    assert_eq!(suspended.failure(), Failure::Asked(SUSPENDED_AGAIN));
}

#[tokio::test]
async fn nothing_is_proved_to_a_relay_that_is_not_this_agents() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ca, other) = (TestCa::new(), TestCa::new());
    let identity = off_for_days(dir.path(), &ca);
    let foreign = "spiffe://example.org/relay/relay";
    for (endpoint, address) in [relay(&other, RELAY, tls::ALPN_JOIN), relay(&ca, foreign, tls::ALPN_JOIN)] {
        let accepted = async { endpoint.accept().await.unwrap().await.err() };
        let (refused, recovered) = tokio::join!(accepted, recover(&identity, &address, &WAY));
        assert!(refused.is_some(), "the agent hung up in the handshake");
        assert!(matches!(recovered, Err(RecoverError::Ask(AskError::Connect(_)))), "{recovered:?}");
    }
    // The stolen key of an authority that was replaced makes no relay either.
    identity.saw(1);
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    let accepted = async { endpoint.accept().await.unwrap().await.err() };
    let (refused, recovered) = tokio::join!(accepted, recover(&identity, &address, &WAY));
    assert!(refused.is_some() && recovered.is_err());
    ca.rotate(1);
    let (endpoint, address) = relay(&ca, RELAY, tls::ALPN_JOIN);
    let served = serve(&endpoint, 1, |request| Some(granted(&ca, request)));
    let (_, recovered) = tokio::join!(served, recover(&identity, &address, &WAY));
    recovered.unwrap();
}
