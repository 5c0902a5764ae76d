//! The device flow against providers' deviations. No test waits: the pauses asked for are written down instead.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::*;
use crate::relay_api::{ClientIds, Login};
use crate::testing::{Fake, json as answer};

fn plan(issuer: &str) -> Plan {
    let login = Login {
        name: "corp".into(),
        issuer: issuer.into(),
        client_ids: ClientIds { pkce: None, device: Some("tv".into()) },
        scopes: Vec::new(),
        resource: Some("https://relay.example.com".into()),
        audience: None,
    };
    Plan {
        login,
        client_id: "tv".into(),
        way: super::super::Way::Device,
        scopes: vec!["openid".into()],
        machine: None,
        key: None,
        anew: false,
    }
}

fn metadata(issuer: &str) -> Metadata {
    let endpoints = json!({ "issuer": issuer, "token_endpoint": format!("{issuer}/token"),
        "device_authorization_endpoint": format!("{issuer}/device") });
    serde_json::from_value(endpoints).unwrap()
}

fn empty(status: u16) -> Response<Bytes> {
    Response::builder().status(status).body(Bytes::new()).unwrap()
}

/// Polls an issuer that gives these answers in turn; gives what came of it and the pauses between.
async fn polled(
    code: Value,
    answers: Vec<Response<Bytes>>,
) -> (Result<CoreTokenResponse, LoginError>, Vec<u64>, Fake) {
    let turn = AtomicUsize::new(0);
    let issuer = Fake::http(move |seen| {
        if seen.target() == "/device" {
            return answer(200, &code);
        }
        answers[turn.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone()
    })
    .await;
    let (plan, metadata) = (plan(&issuer.url("")), metadata(&issuer.url("")));
    let code = ask(&plan, &metadata, &issuer.client()).await.unwrap();
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let log = pauses.clone();
    let sleep = move |pause: Duration| {
        log.lock().unwrap().push(pause.as_secs());
        std::future::ready(())
    };
    let patience = code.expires_in();
    let send = issuer::sender(&issuer.client(), &Prover::default());
    let result = poll(&plan, &metadata, &code, send, patience, sleep).await;
    let pauses = pauses.lock().unwrap().clone();
    (result, pauses, issuer)
}

fn code(more: &[(&str, Value)]) -> Value {
    let mut code = json!({ "device_code": "d", "user_code": "WDJB-MJHT", "verification_uri": "https://id.example.com/device", "expires_in": 600 });
    for (name, value) in more {
        code[name] = value.clone();
    }
    code
}

fn pending(status: u16) -> Response<Bytes> {
    answer(status, &json!({ "error": "authorization_pending" }))
}

fn granted() -> Response<Bytes> {
    answer(200, &json!({ "access_token": "a", "token_type": "bearer" }))
}

#[tokio::test]
async fn five_seconds_unless_said_and_five_more_after_slow_down() {
    let slow = answer(400, &json!({ "error": "slow_down" }));
    let (result, pauses, issuer) =
        polled(code(&[]), vec![pending(400), slow.clone(), pending(400), granted()]).await;
    assert!(result.is_ok());
    assert_eq!(pauses, [5, 10, 10]);
    let seen = issuer.seen();
    assert_eq!(seen[0].form("scope").unwrap(), "openid");
    assert_eq!(seen[0].form("resource").unwrap(), "https://relay.example.com");
    assert_eq!(seen[1].form("grant_type").unwrap(), "urn:ietf:params:oauth:grant-type:device_code");
    assert_eq!(seen[1].form("resource").unwrap(), "https://relay.example.com");
    let (_, pauses, _) = polled(code(&[("interval", 2.into())]), vec![slow, pending(400), granted()]).await;
    assert_eq!(pauses, [7, 7]);
}

#[tokio::test]
async fn pending_is_known_by_its_code_at_any_status() {
    for odd in [pending(428), pending(200), pending(500), empty(400), empty(403), empty(500), empty(503)] {
        let status = odd.status();
        let (result, pauses, _) = polled(code(&[]), vec![odd, granted()]).await;
        assert!(result.is_ok() && pauses == [5], "{status}: {pauses:?}");
    }
}

#[tokio::test]
async fn googles_name_for_the_address_is_known() {
    let mut google = code(&[("verification_url", "https://www.example.com/device".into())]);
    google.as_object_mut().unwrap().remove("verification_uri");
    let (result, _, _) = polled(google, vec![granted()]).await;
    assert!(result.is_ok());
}

#[tokio::test]
async fn a_denial_ends_it_and_so_does_the_codes_end() {
    let denied = answer(400, &json!({ "error": "access_denied", "error_description": "no\u{1b}" }));
    let (result, pauses, _) = polled(code(&[]), vec![pending(400), denied]).await;
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "the login was refused: access_denied: no\\u{1b}");
    assert_eq!(pauses.len(), 1);
    let (result, _, _) = polled(code(&[]), vec![answer(400, &json!({ "error": "expired_token" }))]).await;
    assert!(matches!(result, Err(LoginError::TimedOut(_))));
    let (result, _, _) = polled(code(&[("expires_in", 0.into())]), vec![pending(400)]).await;
    assert!(matches!(result, Err(LoginError::TimedOut(_))), "no answer in time");
    let (result, _, _) = polled(code(&[]), vec![answer(400, &json!({ "error": "invalid_client" }))]).await;
    assert!(matches!(result, Err(LoginError::Issuer(IssuerError::Refused { .. }))));
}
