//! What is refused before a browser opens, and a PKCE login against an issuer that is made up here.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use openidconnect::Nonce;
use openidconnect::core::CoreTokenResponse;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Fake, json as answer, session as kept};

fn relay() -> RelayUrl {
    "relay.example.com".parse().unwrap()
}

fn published() -> Value {
    json!({
        "version": "0.1.0", "relay": "https://relay.example.com",
        "logins": [{
            "name": "corp", "issuer": "https://id.example.com", "client_ids": { "pkce": "postern-cli", "device": "postern-tv" },
            "scopes": ["openid", "offline_access"], "resource": "https://relay.example.com", "audience": null,
        }],
    })
}

fn planned(
    published: &Value,
    change: impl FnOnce(&mut Wanted<'_>),
    pinned: Option<&Session>,
) -> Result<Plan, LoginError> {
    let (relay, scopes) = (relay(), ["invoices:write".to_owned(), "openid".into()]);
    let mut wanted = Wanted {
        relay: &relay,
        issuer: None,
        way: Way::Browser,
        insist: false,
        scopes: &scopes,
        force: false,
        machine: None,
    };
    change(&mut wanted);
    plan(&wanted, &serde_json::from_value(published.clone()).unwrap(), pinned)
}

#[test]
fn a_plan_has_the_flows_client_id_and_every_scope_once() {
    let plan = planned(&published(), |_| {}, None).unwrap();
    assert_eq!((plan.client_id.as_str(), plan.way), ("postern-cli", Way::Browser));
    assert_eq!(plan.scopes, ["openid", "offline_access", "invoices:write"]);
    let device = planned(&published(), |wanted| wanted.way = Way::Device, None).unwrap();
    assert_eq!(device.client_id, "postern-tv");
}

#[test]
fn another_relays_settings_are_refused() {
    for (pointer, value) in [
        ("/relay", "https://evil.example.com"),
        ("/relay", "https://relay.example.com:8443"),
        ("/relay", "http://relay.example.com"),
        ("/logins/0/resource", "https://other.example.com"),
        ("/logins/0/resource", "urn:api"),
    ] {
        let mut settings = published();
        *settings.pointer_mut(pointer).unwrap() = value.into();
        let Err(error) = planned(&settings, |_| {}, None) else { panic!("{value}") };
        assert_eq!(Failure::from(error).exit, Exit::Config, "{value}");
    }
    let mut without = published();
    without["logins"][0]["resource"] = Value::Null;
    assert!(planned(&without, |_| {}, None).is_ok());
}

#[test]
fn issuer_and_client_id_are_pinned_until_forced() {
    let mut pinned = kept(relay(), "https://id.example.com", 0);
    assert!(planned(&published(), |_| {}, Some(&pinned)).is_ok());
    pinned.client_id = "other".into();
    assert!(matches!(planned(&published(), |_| {}, Some(&pinned)), Err(LoginError::Changed { .. })));
    pinned.issuer = "https://old.example.com".into();
    let Err(error) = planned(&published(), |_| {}, Some(&pinned)) else { panic!() };
    let failure = Failure::from(error);
    assert!(failure.exit == Exit::Config && failure.fix.unwrap().contains("--force"));
    assert!(planned(&published(), |wanted| wanted.force = true, Some(&pinned)).is_ok());
}

#[test]
fn a_program_is_its_own_client_and_asks_for_what_is_no_persons() {
    let machine = ("nightly-batch".to_owned(), Machine::Key("/run/key.pem".into()));
    let mut settings = published();
    settings["logins"][0]["scopes"] = json!(["openid", "offline_access", "invoices:read"]);
    let of = |scopes: &[String], pinned: Option<&Session>| {
        let (relay, machine, way) = (&relay(), Some(&machine), Way::Browser);
        let wanted = Wanted { relay, issuer: None, way, insist: false, scopes, force: false, machine };
        plan(&wanted, &serde_json::from_value(settings.clone()).unwrap(), pinned)
    };
    let plan = of(&[], None).unwrap();
    assert_eq!((plan.client_id.as_str(), plan.machine.as_ref()), ("nightly-batch", Some(&machine.1)));
    assert_eq!(plan.scopes, ["invoices:read"]);
    assert_eq!(of(&["other".into()], None).unwrap().scopes, ["other"], "no more than what it says");
    let mut pinned = kept(relay(), "https://id.example.com", 0);
    assert!(matches!(of(&[], Some(&pinned)), Err(LoginError::Changed { .. })), "a person's session");
    pinned.client_id = "nightly-batch".into();
    assert!(of(&[], Some(&pinned)).is_ok());
}

#[test]
fn the_key_of_a_session_stays_until_forced() {
    let mut pinned = kept(relay(), "https://id.example.com", 0);
    let key = Arc::new(ProofKey::generate().unwrap());
    pinned.proof_key = Some(key.clone());
    let again = planned(&published(), |_| {}, Some(&pinned)).unwrap();
    assert_eq!(again.key.unwrap().thumbprint(), key.thumbprint());
    let forced = planned(&published(), |wanted| wanted.force = true, Some(&pinned)).unwrap();
    assert!(forced.key.is_none() && forced.anew);
}

#[test]
fn several_logins_are_chosen_by_name_and_flows_only_where_offered() {
    let mut settings = published();
    let mut second = settings["logins"][0].clone();
    second["name"] = "partners".into();
    second["client_ids"] = json!({ "device": "tv" });
    settings["logins"].as_array_mut().unwrap().push(second);
    assert!(matches!(planned(&settings, |_| {}, None), Err(LoginError::Choose { .. })));
    assert!(matches!(
        planned(&settings, |w| w.issuer = Some("x"), None),
        Err(LoginError::NoSuchLogin { .. })
    ));
    let plan = planned(&settings, |w| w.issuer = Some("partners"), None).unwrap();
    assert_eq!(plan.way, Way::Device, "the default gives way to what is offered");
    let insisting = |w: &mut Wanted<'_>| (w.issuer, w.insist) = (Some("partners"), true);
    assert!(matches!(planned(&settings, insisting, None), Err(LoginError::NotOffered { .. })));
}

#[test]
fn the_way_depends_on_where_one_is() {
    let way = |device, no_browser, set: &[&str]| {
        Way::new(device, no_browser, |name| set.contains(&name).then(|| "x".to_owned()))
    };
    assert_eq!(way(false, false, &["DISPLAY"]), Way::Browser);
    assert_eq!(way(false, false, &["BROWSER"]), Way::Browser);
    assert_eq!(way(false, false, &["DISPLAY", "SSH_CONNECTION"]), Way::Device);
    #[cfg(target_os = "linux")]
    assert_eq!(way(false, false, &[]), Way::Device);
    assert_eq!(way(false, true, &["SSH_CONNECTION"]), Way::PrintedAddress);
    assert_eq!(way(true, false, &["DISPLAY"]), Way::Device);
}

#[test]
fn only_safe_addresses_are_opened() {
    for (url, good) in [
        ("https://id.example.com/a", true),
        ("http://127.0.0.1:8080/a", true),
        ("http://localhost/a", true),
        ("http://id.example.com/a", false),
        ("file:///etc/passwd", false),
        ("javascript:alert(1)", false),
    ] {
        assert_eq!(openable(&url.parse().unwrap()).is_ok(), good, "{url}");
    }
}

fn metadata(issuer: &str) -> Value {
    json!({
        "issuer": issuer, "authorization_endpoint": format!("{issuer}/auth"), "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"),
    })
}

#[tokio::test]
async fn discovery_bears_html_and_refuses_another_issuer() {
    let plain_oauth = Fake::http(|seen| {
        if seen.target() == "/.well-known/oauth-authorization-server" {
            let issuer = format!("http://{}", seen.header("host").unwrap());
            return answer(200, &metadata(&issuer));
        }
        http::Response::new("<html>".into())
    })
    .await;
    let issuer = plain_oauth.url("");
    assert!(discovery::discover(&issuer, &plain_oauth.client()).await.is_ok());
    let slash = discovery::discover(&format!("{issuer}/"), &plain_oauth.client()).await.unwrap_err();
    assert!(slash.to_string().contains("its metadata says that it is"), "{slash}");
    let impostor = Fake::http(|_| answer(200, &metadata("https://id.example.com"))).await;
    assert!(discovery::discover(&impostor.url(""), &impostor.client()).await.is_err());
    let page = Fake::http(|_| http::Response::new("<html>".into())).await;
    assert!(discovery::discover(&page.url(""), &page.client()).await.is_err());
}

/// A signing key and its JWKS.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwks(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "use": "sig", "x": part(1..33), "y": part(33..65) }] })
    }

    fn sign(&self, alg: &str, claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({ "alg": alg, "kid": "1" })), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[tokio::test]
async fn an_id_token_must_be_the_issuers_for_this_client_and_login() {
    let signer = Signer::new();
    let keys = signer.jwks();
    let issuer = Fake::http(move |_| answer(200, &keys)).await;
    let url = issuer.url("");
    let metadata: discovery::Metadata = serde_json::from_value(metadata(&url)).unwrap();
    let plan = planned(&published(), |_| {}, None).unwrap();
    let claims = |nonce: &str| json!({ "iss": url, "sub": "1", "aud": "postern-cli", "iat": now(), "exp": now() + 60, "nonce": nonce });
    let nonce = Nonce::new("n1".into());
    let check = async |token: &str, nonce: Option<&Nonce>| {
        let answer = json!({ "access_token": "a", "token_type": "Bearer", "id_token": token });
        let answer: CoreTokenResponse = serde_json::from_value(answer).unwrap();
        id_token::check(&answer, nonce, &plan, &metadata, &issuer.client()).await
    };
    check(&signer.sign("ES256", &claims("n1")), Some(&nonce)).await.unwrap();
    check(&signer.sign("ES256", &claims("any")), None).await.unwrap();
    let with = |name: &str, value: Value| {
        let mut claims = claims("n1");
        claims[name] = value;
        claims
    };
    for bad in [
        signer.sign("ES256", &claims("n2")),
        signer.sign("ES256", &with("iss", "https://other.example.com".into())),
        signer.sign("ES256", &with("aud", "other".into())),
        signer.sign("ES256", &with("exp", 1.into())),
        signer.sign("none", &claims("n1")),
        signer.sign("HS256", &claims("n1")),
        Signer::new().sign("ES256", &claims("n1")),
    ] {
        let refused = check(&bad, Some(&nonce)).await;
        assert!(matches!(refused, Err(LoginError::IdToken(_))), "{bad}: {refused:?}");
    }
}
