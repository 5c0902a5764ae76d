//! The relay's own addresses against a relay that is made up here.

use std::sync::Arc;

use postern_base::secret::Secret;
use serde_json::json;

use super::*;
use crate::testing::{Fake, Pki, json as answer};

fn pass() -> Pass {
    Pass::given(&Secret::new("t0"))
}

fn relay(fake: &Fake) -> Relay {
    Relay::new(fake.relay(), fake.client())
}

#[tokio::test]
async fn the_token_goes_along_and_unknown_members_are_borne() {
    let fake = Fake::https(|_| {
        answer(
            200,
            &json!({
                "principal": { "issuer": "corp", "subject": "1", "user": "ada", "expires": 7, "later": true },
                "services": [],
            }),
        )
    })
    .await;
    let found = relay(&fake).services(&pass()).await.unwrap();
    assert_eq!((found.principal.user.raw(), found.principal.expires), ("ada", 7));
    let seen = fake.seen();
    assert_eq!(
        (seen[0].target().as_str(), seen[0].header("authorization")),
        ("/.postern/services", Some("Bearer t0"))
    );
}

#[tokio::test]
async fn a_call_to_explain_is_escaped() {
    let fake = Fake::https(|_| {
        answer(404, &json!({ "type": "urn:postern:no-such-service", "title": "x", "status": 404 }))
    })
    .await;
    let target = "billing/a b?c=d&e#%2f".parse().unwrap();
    let error = relay(&fake).explain(&pass(), "M&X", &target).await.unwrap_err();
    assert_eq!(Failure::from(error).exit, Exit::NoSuchService);
    let target = "/.postern/explain?method=M%26X&target=billing/a%20b%3Fc%3Dd%26e%23%252f";
    assert_eq!(fake.seen()[0].target(), target);
}

#[tokio::test]
async fn redirects_are_not_followed_and_strangers_are_told_from_relays() {
    let elsewhere = Fake::https(|_| answer(200, &json!({}))).await;
    let location = elsewhere.url("/steal");
    let fake = Fake::https(move |_| {
        Response::builder().status(307).header("location", &location).body(Bytes::new()).unwrap()
    })
    .await;
    let error = relay(&fake).services(&pass()).await.unwrap_err();
    assert!(matches!(error, RelayError::NotPostern { .. }), "{error}");
    assert!(elsewhere.seen().is_empty(), "the token must not follow a redirect");
}

#[tokio::test]
async fn an_unreachable_relay_is_exit_seven() {
    let pki = Pki::new();
    let fake = Fake::start(0, Some(&pki), Arc::new(|_| answer(200, &json!({})))).await;
    let relay = relay(&fake);
    assert!(relay.answers().await);
    let distrusting =
        postern_base::http_client::HttpClientOptions { allow_private: true, ..Default::default() };
    let distrusting = Relay::new(fake.relay(), HttpClient::new(distrusting).unwrap());
    let failure = Failure::from(distrusting.published().await.unwrap_err());
    assert_eq!(failure.exit, Exit::RelayUnreachable);
    assert!(
        failure.message.contains("certificate") && failure.fix.unwrap().contains("--ca"),
        "{}",
        failure.message
    );
    drop(fake);
    let gone = Failure::from(relay.published().await.unwrap_err());
    assert_eq!(gone.exit, Exit::RelayUnreachable, "{}", gone.message);
}

#[tokio::test]
async fn what_keeps_a_relay_from_being_reached_has_a_fix_of_its_own() {
    let fix = async |port: u16| {
        let relay = format!("127.0.0.1:{port}").parse().unwrap();
        let options =
            postern_base::http_client::HttpClientOptions { allow_private: true, ..Default::default() };
        let relay = Relay::new(relay, HttpClient::new(options).unwrap());
        let failure = Failure::from(relay.published().await.unwrap_err());
        assert_eq!(failure.exit, Exit::RelayUnreachable, "{}", failure.message);
        failure.fix.unwrap()
    };
    // Bound, so that nobody else takes it, but not listening.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    assert_eq!(fix(port).await, "is the relay running, and is that its port?");
    let plain = Fake::http(|_| answer(200, &json!({}))).await;
    assert!(fix(plain.address.port()).await.contains("does not speak TLS"));
    let stranger = Fake::https(|_| answer(200, &json!({}))).await;
    assert!(fix(stranger.address.port()).await.contains("--ca FILE"));
}
