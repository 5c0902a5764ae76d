//! A forward whose session has a key.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::testing::{bound, opened};

/// What went along: the token's hash is checked by the way.
fn proof(seen: &Seen) -> Value {
    assert_eq!(seen.header("authorization"), Some("DPoP access-0"));
    let (_, claims) = opened(seen.header("dpop").unwrap());
    // SHA-256 of "access-0".
    assert_eq!(claims["ath"], "VA1IUBk4GsdZ9PPdwh8zdGo1HXHnYR1bjN46nt-WagA");
    claims
}

#[tokio::test]
async fn every_request_has_a_proof_of_its_own_for_its_public_address() {
    let relay = Fake::https(echo).await;
    let bench = over(&relay, &relay.url("/billing/"), bound(&relay), false).await;
    for path in ["/v1/%7e?a=b", "/v1/%7e?a=c", "/"] {
        assert!(bench.get(path, "DPoP: stolen\r\n").await.starts_with("HTTP/1.1 200"));
    }
    let seen = relay.seen();
    let claims: Vec<Value> = seen.iter().map(proof).collect();
    let addresses: Vec<_> = claims.iter().map(|claims| claims["htu"].as_str().unwrap()).collect();
    assert_eq!(
        addresses,
        [relay.url("/billing/v1/%7e"), relay.url("/billing/v1/%7e"), relay.url("/billing/")]
    );
    assert!(claims.iter().all(|claims| claims["htm"] == "GET" && claims.get("nonce").is_none()));
    let ids: BTreeSet<_> = claims.iter().map(|claims| claims["jti"].to_string()).collect();
    assert_eq!(ids.len(), 3);
}

/// A relay that wants a nonce, and a new one after each request that had it.
async fn demanding() -> Fake {
    let turn = AtomicUsize::new(0);
    Fake::https(move |seen| {
        let now = turn.load(Ordering::SeqCst);
        let good = proof(seen)["nonce"] == format!("n{now}");
        let mut answered = if good {
            Response::new(format!("{} bytes", seen.body.len()).into())
        } else {
            let problem =
                json!({ "type": "urn:postern:use-dpop-nonce", "title": "A nonce is needed", "status": 401 });
            let mut refused = answer(401, &problem);
            let challenge = HeaderValue::from_static("DPoP error=\"use_dpop_nonce\"");
            refused.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            refused
        };
        let next = format!("n{}", now + usize::from(good));
        turn.store(now + usize::from(good), Ordering::SeqCst);
        // Only a refusal says the nonce, so that each request is refused once.
        if !good {
            answered.headers_mut().insert("dpop-nonce", next.parse().unwrap());
        }
        answered
    })
    .await
}

#[tokio::test]
async fn a_nonce_that_the_relay_wants_is_had_without_the_programs_knowledge() {
    let relay = demanding().await;
    let bench = over(&relay, &relay.url("/billing/"), bound(&relay), false).await;
    assert!(bench.get("/v1", "").await.ends_with("0 bytes"));
    let host = bench.address;
    for length in [5, 100_000] {
        let body = "x".repeat(length);
        let request = format!("POST /v1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}");
        let text = raw_http(host, &request).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with(&format!("{length} bytes")), "{text}");
    }
    assert_eq!(relay.seen().len(), 6, "each was asked for twice");
    // This relay, unlike ours, takes a whole body before it refuses: more than is kept cannot be sent again.
    let request = format!(
        "POST /v1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1100000\r\n\r\n{}",
        "x".repeat(1_100_000)
    );
    assert!(raw_http(host, &request).await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn a_relay_that_wants_nonces_for_ever_is_asked_twice() {
    let relay = Fake::https(|seen| {
        proof(seen);
        let problem =
            json!({ "type": "urn:postern:use-dpop-nonce", "title": "A nonce is needed", "status": 401 });
        let mut refused = answer(401, &problem);
        refused
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("DPoP error=\"use_dpop_nonce\""));
        refused.headers_mut().insert("dpop-nonce", HeaderValue::from_static("n"));
        refused
    })
    .await;
    let bench = over(&relay, &relay.url("/billing/"), bound(&relay), false).await;
    assert!(bench.get("/v1", "").await.starts_with("HTTP/1.1 401"));
    assert_eq!(relay.seen().len(), 2);
}

#[tokio::test]
async fn a_websocket_is_asked_for_with_a_proof_and_again_with_a_nonce() {
    let asked = AtomicBool::new(false);
    let relay = Fake::https(move |seen| {
        let claims = proof(seen);
        if asked.swap(true, Ordering::SeqCst) {
            assert_eq!(claims["nonce"], "n1");
            let mut switched = switch("websocket", parrot);
            switched.headers_mut().insert("postern-lease", "A".repeat(22).parse().unwrap());
            return switched;
        }
        let problem =
            json!({ "type": "urn:postern:use-dpop-nonce", "title": "A nonce is needed", "status": 401 });
        let mut refused = answer(401, &problem);
        refused
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("DPoP error=\"use_dpop_nonce\""));
        refused.headers_mut().insert("dpop-nonce", HeaderValue::from_static("n1"));
        refused
    })
    .await;
    let bench = over(&relay, &relay.url("/billing/"), bound(&relay), false).await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
    let head = format!("GET /live HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", bench.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"hello ") {
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "{}", String::from_utf8_lossy(&text));
    }
    let text = String::from_utf8(text).unwrap().to_lowercase();
    assert!(text.starts_with("http/1.1 101") && !text.contains("postern-lease"), "{text}");
}
