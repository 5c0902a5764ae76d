//! Streams to TCP services behind a relay that is made up here.

use http::Response;
use postern_base::proxy::Proxy;
use postern_base::secret::Secret;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use super::*;
use crate::failure::Exit;
use crate::session::profile::Account;
use crate::session::vault::{Keyring, Vault};
use crate::testing::{Fake, Pki, bound, json as answer, leases, opened, parrot, settings, switch};

fn opener(relay: &Fake) -> Opener {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
    let token = Some(Secret::new("t0"));
    let tokens =
        Arc::new(Tokens::new(Account::of(relay.relay()), token, vault, relay.client(), TaskTracker::new()));
    Opener {
        service: "ledger-db".parse().unwrap(),
        relay: relay.relay(),
        dial: Dial::new(&relay.relay(), Proxy::default(), relay.ca.as_ref().map(String::as_bytes)).unwrap(),
        audience: None,
        leases: leases(relay, &tokens),
        tokens,
    }
}

#[tokio::test]
async fn a_stream_is_asked_for_with_the_token_and_ends_on_each_side_by_itself() {
    let relay = Fake::https(|_| switch("postern-tcp", parrot)).await;
    let mut channel = opener(&relay).open().await.unwrap();
    channel.stream.write_all(b"ping").await.unwrap();
    channel.stream.shutdown().await.unwrap();
    let mut text = channel.early.to_vec();
    channel.stream.read_to_end(&mut text).await.unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "hello ping goodbye");
    let seen = &relay.seen()[0];
    assert_eq!((seen.head.method.as_str(), seen.target().as_str()), ("GET", "/.postern/tcp/ledger-db"));
    assert_eq!(seen.header("authorization"), Some("Bearer t0"));
    assert_eq!(seen.header("upgrade"), Some("postern-tcp"));
    assert_eq!(seen.header("host"), Some(relay.relay().to_string().as_str()));
    assert_eq!(seen.head.version, http::Version::HTTP_11);
}

#[tokio::test]
async fn a_refusal_is_told_as_for_every_call() {
    let cases = [
        (403, "denied", Exit::Denied),
        (404, "no-such-service", Exit::NoSuchService),
        (401, "step-up", Exit::LoginNeeded),
        (429, "too-many", Exit::RateLimited),
        (502, "upstream-unreachable", Exit::UpstreamDown),
        (502, "tunnel-lost", Exit::UpstreamDown),
        (503, "no-agent", Exit::UpstreamDown),
    ];
    for (status, kind, exit) in cases {
        let relay = Fake::https(move |_| {
            let named = format!("urn:postern:{kind}");
            answer(status, &json!({ "type": named, "title": "No", "status": status, "detail": "why" }))
        })
        .await;
        let opener = opener(&relay);
        let error = opener.open().await.err().unwrap();
        assert_eq!(error.may_pass(), status == 503 || kind == "tunnel-lost");
        assert!(!error.is_lost());
        let failure = opener.failure(error);
        assert_eq!((failure.exit, failure.fix.is_some()), (exit, true), "{failure:?}");
    }
}

#[tokio::test]
async fn why_a_stream_ended_is_the_relays_word() {
    for (held, expected) in [
        (json!({ "by": "lock", "lock": "00c0ffee" }), Some("ledger-db: the service is locked")),
        (json!({ "by": "down", "since": 1 }), None),
        (json!(null), None),
    ] {
        let relay = Fake::https(move |_| {
            answer(
                200,
                &json!({
                    "decision_id": "d", "allowed": true, "service": "ledger-db", "method": "CONNECT", "path": "/", "held": held,
                }),
            )
        })
        .await;
        let why = opener(&relay).why_ended().await;
        let said = why.as_ref().map(|failure| failure.message.rsplit("to ").next().unwrap());
        assert_eq!(said, expected);
        assert!(why.is_none_or(|failure| failure.fix.unwrap().contains("lock 00c0ffee")));
    }
}

#[tokio::test]
async fn what_answers_otherwise_is_no_relay() {
    fn other(_: &crate::testing::Seen) -> Response<Bytes> {
        switch("websocket", parrot)
    }
    let relay = Fake::https(other).await;
    let error = opener(&relay).open().await.err().unwrap();
    assert!(matches!(error, ChannelError::Relay(RelayError::NotPostern { .. })), "{error}");
    let relay = Fake::https(|_| Response::new("<html>".into())).await;
    let error = opener(&relay).open().await.err().unwrap();
    assert!(error.to_string().contains("status 200") && !error.may_pass(), "{error}");
}

#[tokio::test]
async fn a_relay_that_is_away_or_not_trusted_is_unreachable() {
    let pki = Pki::new();
    let relay = Fake::start(0, Some(&pki), Arc::new(|_| switch("postern-tcp", parrot))).await;
    let opener = opener(&relay);
    opener.open().await.unwrap();
    let untrusting = Opener {
        dial: Dial::new(&relay.relay(), Proxy::default(), None).unwrap(),
        service: opener.service.clone(),
        relay: relay.relay(),
        audience: None,
        tokens: opener.tokens.clone(),
        leases: opener.leases.clone(),
    };
    let failure = untrusting.failure(untrusting.open().await.err().unwrap());
    assert!(failure.fix.as_ref().unwrap().contains("--ca FILE"), "{failure:?}");
    drop(relay);
    let error = opener.open().await.err().unwrap();
    assert!(error.is_lost() && error.may_pass());
    assert_eq!(opener.failure(error).exit, Exit::RelayUnreachable);
}

#[tokio::test]
async fn a_bound_token_goes_with_a_proof_and_again_with_the_relays_nonce() {
    let relay = Fake::https(|seen| {
        let (_, claims) = opened(seen.header("dpop").unwrap());
        assert_eq!(
            (seen.header("authorization"), claims["htm"].as_str()),
            (Some("DPoP access-0"), Some("GET"))
        );
        assert!(claims["htu"].as_str().unwrap().ends_with("/.postern/tcp/ledger-db"), "{claims}");
        if claims["nonce"] == "n1" {
            return switch("postern-tcp", parrot);
        }
        let problem =
            json!({ "type": "urn:postern:use-dpop-nonce", "title": "A nonce is needed", "status": 401 });
        let mut refused = answer(401, &problem);
        let challenge = HeaderValue::from_static("DPoP error=\"use_dpop_nonce\"");
        refused.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        refused.headers_mut().insert("dpop-nonce", HeaderValue::from_static("n1"));
        refused
    })
    .await;
    let tokens = Arc::new(bound(&relay));
    let opener = Opener { leases: leases(&relay, &tokens), tokens, ..opener(&relay) };
    opener.open().await.unwrap();
    opener.open().await.unwrap();
    assert_eq!(relay.seen().len(), 3, "the nonce is remembered");
}
