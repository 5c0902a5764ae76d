//! The issuer as its clients see it, without a network: requests in, answers out, and a clock that the test sets.

use std::collections::HashMap;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use super::keys::{base64url, hash};
use super::*;

const REDIRECT: &str = "http://127.0.0.1:50123/callback";
const VERIFIER: &str = "a-verifier-that-is-long-enough-for-rfc-7636-00";
const SCOPE: &str = "openid offline_access invoices:read";
const START: Time = Duration::from_hours(500_000);

fn issuer() -> Issuer {
    Issuer::new("http://127.0.0.1:9".into(), "https://127.0.0.1:8".into()).unwrap()
}

fn encoded(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn send(issuer: &Issuer, now: Time, method: &str, uri: &str, form: &[(&str, &str)]) -> Response<Bytes> {
    let request = Request::builder().method(method).uri(uri).header(HOST, "127.0.0.1:9");
    issuer.handle(now, &request.body(Bytes::from(encoded(form))).unwrap())
}

/// A POST by the one client; gives the JSON.
fn post(issuer: &Issuer, now: Time, path: &str, form: &[(&str, &str)]) -> Value {
    let form = [form, &[("client_id", CLIENT_ID)]].concat();
    serde_json::from_slice(send(issuer, now, "POST", path, &form).body()).unwrap()
}

fn token(issuer: &Issuer, now: Time, grant_type: &str, form: &[(&str, &str)]) -> Value {
    post(issuer, now, "/token", &[form, &[("grant_type", grant_type)]].concat())
}

fn authorize(issuer: &Issuer, overrides: &[(&str, &str)]) -> Response<Bytes> {
    let challenge = base64url(&hash(VERIFIER.as_bytes()));
    let mut params = HashMap::from([
        ("client_id", CLIENT_ID),
        ("response_type", "code"),
        ("redirect_uri", REDIRECT),
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", "S256"),
        ("scope", SCOPE),
        ("state", "st"),
        ("nonce", "no"),
    ]);
    params.extend(overrides.iter().copied());
    let query = encoded(&params.into_iter().collect::<Vec<_>>());
    send(issuer, START, "GET", &format!("/authorize?{query}"), &[])
}

fn redirected(response: &Response<Bytes>) -> HashMap<String, String> {
    assert_eq!(response.status(), 303);
    let location = Url::parse(response.headers()[LOCATION].to_str().unwrap()).unwrap();
    assert!(location.as_str().starts_with(&format!("{REDIRECT}?")), "{location}");
    location.query_pairs().into_owned().collect()
}

/// Up to the code that the client's redirect receives.
fn code(issuer: &Issuer) -> String {
    let response = authorize(issuer, &[]);
    let html = String::from_utf8(response.body().to_vec()).unwrap();
    assert!(html.contains("DEVELOPMENT ISSUER"));
    let page = html.split("name=\"page\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = [("page", page), ("person", "ada")];
    let mut back = redirected(&send(issuer, START, "POST", "/authorize", &form));
    assert_eq!((back["state"].as_str(), back["iss"].as_str()), ("st", "http://127.0.0.1:9"));
    assert_eq!(send(issuer, START, "POST", "/authorize", &form).status(), 400, "a page is answered once");
    back.remove("code").unwrap()
}

fn redeem(issuer: &Issuer, now: Time, code: &str, verifier: &str) -> Value {
    let form = [("code", code), ("redirect_uri", REDIRECT), ("code_verifier", verifier)];
    token(issuer, now, "authorization_code", &form)
}

fn claims(issuer: &Issuer, token: &Value, audience: &str, kind: &str) -> Value {
    let set: JwkSet = serde_json::from_slice(send(issuer, START, "GET", "/jwks", &[]).body()).unwrap();
    let token = token.as_str().unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    assert_eq!(header.typ.as_deref(), Some(kind));
    let key = DecodingKey::from_jwk(set.find(header.kid.as_deref().unwrap()).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&["http://127.0.0.1:9"]);
    jsonwebtoken::decode(token, &key, &validation).unwrap().claims
}

#[test]
fn a_code_gives_signed_tokens_for_the_person_who_was_picked() {
    let issuer = issuer();
    let answer = redeem(&issuer, START, &code(&issuer), VERIFIER);
    let access = claims(&issuer, &answer["access_token"], "https://127.0.0.1:8", "at+jwt");
    assert_eq!((&access["sub"], &access["groups"]), (&json!("ada"), &json!(["finance"])));
    assert_eq!((&access["client_id"], &access["scope"]), (&json!(CLIENT_ID), &json!(SCOPE)));
    assert_eq!(access["auth_time"], START.as_secs());
    let id = claims(&issuer, &answer["id_token"], CLIENT_ID, "JWT");
    assert_eq!((&id["nonce"], &id["email"]), (&json!("no"), &json!("ada@example.com")));
}

#[test]
fn a_wrong_verifier_is_refused_and_spends_the_code() {
    let issuer = issuer();
    let code = code(&issuer);
    let other = "b".repeat(43);
    assert_eq!(redeem(&issuer, START, &code, &other)["error"], "invalid_grant");
    assert_eq!(redeem(&issuer, START, &code, VERIFIER)["error"], "invalid_grant");
}

#[test]
fn a_code_is_good_once_and_its_second_use_ends_the_session() {
    let issuer = issuer();
    let code = code(&issuer);
    let answer = redeem(&issuer, START, &code, VERIFIER);
    let refresh = answer["refresh_token"].as_str().unwrap();
    assert_eq!(redeem(&issuer, START, &code, VERIFIER)["error"], "invalid_grant");
    assert_eq!(
        token(&issuer, START, "refresh_token", &[("refresh_token", refresh)])["error"],
        "invalid_grant"
    );
}

#[test]
fn a_code_is_good_for_a_minute_and_for_its_redirect() {
    let issuer = issuer();
    let late = START + Duration::from_mins(1);
    assert_eq!(redeem(&issuer, late, &code(&issuer), VERIFIER)["error"], "invalid_grant");
    let code = code(&issuer);
    let form = [("code", &*code), ("redirect_uri", "http://127.0.0.1:50123/x"), ("code_verifier", VERIFIER)];
    assert_eq!(token(&issuer, START, "authorization_code", &form)["error"], "invalid_grant");
}

#[test]
fn only_loopback_redirects_and_s256_are_accepted() {
    let issuer = issuer();
    for uri in [
        "https://127.0.0.1:50123/x",
        "http://127.0.0.1/x",
        "http://localhost:50123/x",
        "http://127.0.0.1.example.com:50123/x",
        "http://127.0.0.1:50123@example.com/x",
        "http://user@127.0.0.1:50123/x",
        "http://127.1:50123/x",
        "http://127.0.0.1:50123/../x",
        "http://127.0.0.1:50123/x?y",
        "http://127.0.0.1:50123/x#y",
        "http://example.com/x",
        "",
    ] {
        assert_eq!(authorize(&issuer, &[("redirect_uri", uri)]).status(), 400, "{uri}");
    }
    assert_eq!(authorize(&issuer, &[("redirect_uri", "http://[::1]:1/x")]).status(), 200);
    assert_eq!(authorize(&issuer, &[("client_id", "other")]).status(), 400);
    for (wrong, error) in [
        (("code_challenge_method", "plain"), "invalid_request"),
        (("code_challenge", ""), "invalid_request"),
        (("response_type", "token"), "unsupported_response_type"),
        (("resource", "https://example.com"), "invalid_target"),
    ] {
        assert_eq!(redirected(&authorize(&issuer, &[wrong]))["error"], error, "{wrong:?}");
    }
}

#[test]
fn refresh_tokens_rotate_and_reuse_ends_the_session() {
    let issuer = issuer();
    let refresh = |token_: &str| token(&issuer, START, "refresh_token", &[("refresh_token", token_)]);
    let first =
        redeem(&issuer, START, &code(&issuer), VERIFIER)["refresh_token"].as_str().unwrap().to_owned();
    let answer = refresh(&first);
    assert!(answer["access_token"].is_string());
    let second = answer["refresh_token"].as_str().unwrap();
    assert_ne!(first, second);
    assert_eq!(refresh(&first)["error"], "invalid_grant");
    assert_eq!(refresh(second)["error"], "invalid_grant", "the thief's or the owner's: both are out");
}

#[test]
fn a_token_is_for_the_relay_or_for_one_thing_at_it() {
    let issuer = issuer();
    let mut session =
        redeem(&issuer, START, &code(&issuer), VERIFIER)["refresh_token"].as_str().unwrap().to_owned();
    for resource in ["https://127.0.0.1:8", "https://127.0.0.1:8/wiki"] {
        let asked = [("refresh_token", session.as_str()), ("resource", resource)];
        let answer = token(&issuer, START, "refresh_token", &asked);
        claims(&issuer, &answer["access_token"], resource, "at+jwt");
        session = answer["refresh_token"].as_str().unwrap().to_owned();
    }
    for wrong in ["https://127.0.0.1:80", "https://127.0.0.1:8.example.com", "https://example.com/wiki"] {
        let asked = [("refresh_token", session.as_str()), ("resource", wrong)];
        assert_eq!(token(&issuer, START, "refresh_token", &asked)["error"], "invalid_target", "{wrong}");
    }
    let two = [("resource", "https://127.0.0.1:8"), ("resource", "https://127.0.0.1:8/wiki")];
    assert_eq!(token(&issuer, START, "refresh_token", &two)["error"], "invalid_target");
}

#[test]
fn a_revoked_session_is_over() {
    let issuer = issuer();
    let answer = redeem(&issuer, START, &code(&issuer), VERIFIER);
    let refresh = [("refresh_token", answer["refresh_token"].as_str().unwrap())];
    assert_eq!(post(&issuer, START, "/revoke", &[("token", refresh[0].1)]), json!({}));
    assert_eq!(token(&issuer, START, "refresh_token", &refresh)["error"], "invalid_grant");
}

/// Gives the device code and the user code.
fn device(issuer: &Issuer) -> (String, String) {
    let answer = post(issuer, START, "/device_authorization", &[("scope", SCOPE)]);
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    assert_eq!(
        text("verification_uri_complete"),
        format!("{}?user_code={}", text("verification_uri"), text("user_code"))
    );
    (text("device_code"), text("user_code"))
}

fn poll(issuer: &Issuer, millis: u64, device_code: &str) -> Value {
    token(issuer, START + Duration::from_millis(millis), DEVICE_GRANT, &[("device_code", device_code)])
}

fn decide(issuer: &Issuer, user_code: &str, person: &str) -> StatusCode {
    send(issuer, START, "POST", "/device", &[("user_code", user_code), ("person", person)]).status()
}

#[test]
fn a_device_waits_slows_down_and_gets_its_tokens_once() {
    let issuer = issuer();
    let (device_code, user_code) = device(&issuer);
    assert_eq!(poll(&issuer, 0, &device_code)["error"], "authorization_pending");
    assert_eq!(poll(&issuer, 1000, &device_code)["error"], "authorization_pending");
    assert_eq!(poll(&issuer, 1999, &device_code)["error"], "slow_down");
    assert_eq!(poll(&issuer, 7998, &device_code)["error"], "slow_down", "now six seconds apart, then eleven");
    assert_eq!(poll(&issuer, 18998, &device_code)["error"], "authorization_pending");
    assert_eq!(decide(&issuer, "BBBB-BBBB", "ada"), 400);
    // As people type it.
    assert_eq!(decide(&issuer, &user_code.replace('-', " ").to_lowercase(), "bob"), 200);
    assert_eq!(decide(&issuer, &user_code, "ada"), 400, "a code is entered once");
    let answer = poll(&issuer, 40000, &device_code);
    let access = claims(&issuer, &answer["access_token"], "https://127.0.0.1:8", "at+jwt");
    assert_eq!((&access["sub"], &access["groups"]), (&json!("bob"), &json!([])));
    assert_eq!(poll(&issuer, 60000, &device_code)["error"], "invalid_grant");
}

#[test]
fn a_device_hears_no_and_too_late() {
    let issuer = issuer();
    let (device_code, user_code) = device(&issuer);
    assert_eq!(decide(&issuer, &user_code, "nobody"), 200);
    assert_eq!(poll(&issuer, 0, &device_code)["error"], "access_denied");
    let (device_code, _) = device(&issuer);
    assert_eq!(poll(&issuer, 600_000, &device_code)["error"], "expired_token");
    assert_eq!(poll(&issuer, 0, "unknown")["error"], "invalid_grant");
}

#[test]
fn what_waits_is_bounded_and_forgotten() {
    let issuer = issuer();
    let begin = |now: Time| post(&issuer, now, "/device_authorization", &[("scope", SCOPE)])["error"].clone();
    while begin(START).is_null() {}
    assert_eq!(begin(START), "temporarily_unavailable");
    assert_eq!(begin(START + 2 * PATIENCE), Value::Null);
}

#[test]
fn other_hosts_other_clients_and_repeated_parameters_are_refused() {
    let issuer = issuer();
    let request = Request::get("/jwks").header(HOST, "rebound.example.com:9").body(Bytes::new()).unwrap();
    assert_eq!(issuer.handle(START, &request).status(), 421);
    let twice = [("scope", "openid"), ("scope", "openid"), ("client_id", CLIENT_ID)];
    assert_eq!(send(&issuer, START, "POST", "/device_authorization", &twice).status(), 400);
    assert_eq!(send(&issuer, START, "POST", "/token", &[("client_id", "other")]).status(), 401);
    let page = send(&issuer, START, "GET", "/device?user_code=%22%3E%3Cscript%3E", &[]);
    assert!(!String::from_utf8(page.body().to_vec()).unwrap().contains("<script>"));
}
