//! An issuer on loopback and tokens that fail at each step: what is told is what refuses.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::steps::Step;
use super::*;
use crate::token::Algorithm;
use crate::token::tests::support::{FakeIssuer, NOW, Signer, good_claims, now, settings, with};

fn state(checks: &[Check], name: &str) -> State {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {checks:?}")).state
}

/// The step that failed, if one did; all before it passed, none behind it was reached.
fn failed(checks: &[Check]) -> Option<String> {
    let at = checks.iter().position(|check| check.state == State::Bad)?;
    assert!(checks[..at].iter().all(|check| check.state == State::Good), "{checks:?}");
    assert!(checks[at + 1..].iter().all(|check| check.state == State::Skipped), "{checks:?}");
    assert!(checks[at].fix.as_ref().is_some_and(|fix| !fix.is_empty()), "{checks:?}");
    Some(checks[at].name.clone())
}

#[tokio::test]
async fn every_step_is_told_and_the_first_that_fails_is_the_one_that_refuses() {
    let signer = Signer::new(Algorithm::Es256, "one");
    let other = Signer::new(Algorithm::Es256, "two");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = Issuers::new(vec![settings(&issuer.url, "")]).unwrap();
    let good = good_claims(&issuer.url);
    let claims = |changes: Value| with(good.clone(), &changes);
    let told = async |token: &str| {
        let examined = issuers.examine("corp", Some(token), now()).await.unwrap();
        let text = serde_json::to_string(&examined).unwrap();
        assert!(!text.contains(token), "the token is shown: {text}");
        examined.token
    };
    let token = signer.token(&good);
    let steps = told(&token).await;
    assert!(failed(&steps).is_none() && steps.iter().all(|step| step.state == State::Good), "{steps:?}");
    assert_eq!(steps.len(), 22);

    // Each breaks its own step and, where it can, one behind it: the first counts, here as in a request.
    for (token, step) in [
        ("x".repeat(9000), Step::Length),
        ("no-jwt-at-all".to_owned(), Step::Form),
        (signer.token(&claims(json!({ "iss": "https://evil.example", "exp": 1 }))), Step::Issuer),
        (signer.token(&claims(json!({ "iss": null }))), Step::Issuer),
        (
            signer.token_with(&json!({ "kid": "one", "typ": "at+jwt", "alg": "RS512" }), &good),
            Step::Algorithm,
        ),
        (
            signer.token_with(&json!({ "kid": "one", "typ": "dpop+jwt" }), &claims(json!({ "exp": 1 }))),
            Step::Type,
        ),
        (other.token(&good), Step::Key),
        (
            other.token_with(&json!({ "kid": "one", "typ": "at+jwt" }), &claims(json!({ "exp": 1 }))),
            Step::Signature,
        ),
        (signer.token(&claims(json!({ "exp": NOW - 60, "nbf": NOW + 600, "sub": null }))), Step::Expiry),
        (signer.token(&claims(json!({ "nbf": NOW + 600, "iat": NOW + 600 }))), Step::NotBefore),
        (signer.token(&claims(json!({ "iat": NOW + 100, "sub": null }))), Step::IssuedAt),
        (signer.token(&claims(json!({ "exp": NOW + 200_000, "sub": null }))), Step::Lifetime),
        (signer.token(&claims(json!({ "sub": null, "aud": 7 }))), Step::Subject),
        (signer.token(&claims(json!({ "aud": 7, "nonce": "n" }))), Step::AudienceClaim),
        (signer.token(&claims(json!({ "nonce": "n", "aud": "other" }))), Step::Kind),
        (signer.token(&claims(json!({ "scope": 7, "cnf": {}, "aud": "other" }))), Step::Names),
        (signer.token(&claims(json!({ "cnf": { "jku": "x" }, "aud": "other" }))), Step::Binding),
        (signer.token(&claims(json!({ "aud": "other" }))), Step::Audience),
    ] {
        assert_eq!(failed(&told(&token).await).as_deref(), Some(step.name()), "{token}");
    }
}

#[tokio::test]
async fn what_the_issuer_demands_is_told_where_it_fails() {
    let signer = Signer::new(Algorithm::Es256, "one");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let more = "require = { tenant = \"a\" }\nclients = [\"cli\"]\nsender_constrained = \"required\"\nkid_missing = \"refuse\"\n";
    let issuers = Issuers::new(vec![settings(&issuer.url, more)]).unwrap();
    let claims = |changes: Value| with(with(good_claims(&issuer.url), &json!({ "tenant": "a" })), &changes);
    for (token, step) in [
        (signer.token_with(&json!({ "typ": "at+jwt" }), &claims(json!({}))), Step::KeyId),
        (signer.token(&claims(json!({ "tenant": "b", "client_id": "other" }))), Step::Claims),
        (signer.token(&claims(json!({ "client_id": "other", "scope": 7 }))), Step::Client),
        (signer.token(&claims(json!({}))), Step::Bound),
    ] {
        let examined = issuers.examine("corp", Some(&token), now()).await.unwrap();
        assert_eq!(failed(&examined.token).as_deref(), Some(step.name()), "{:?}", examined.token);
        assert!(!examined.ok);
    }
}

#[tokio::test]
async fn an_issuer_is_looked_at_whole() {
    let (es, rs) = (Signer::new(Algorithm::Es256, "one"), Signer::new(Algorithm::Rs256, "two"));
    let issuer = FakeIssuer::with_keys(&[&es, &rs]).await;
    let issuers = Issuers::new(vec![settings(&issuer.url, "algorithms = \"ES256\"")]).unwrap();
    let examined = issuers.examine("corp", None, now()).await.unwrap();
    assert!(examined.ok && examined.token.is_empty() && examined.held.is_none(), "{examined:?}");
    let used: Vec<_> =
        examined.keys.iter().map(|key| (key.kid.as_deref(), key.algorithm.as_deref())).collect();
    assert_eq!(used, [(Some("one"), Some("ES256")), (Some("two"), None)]);
    assert_eq!(examined.endpoints[0].name, "jwks_uri");
    // A server of hyper's dates its answers; ours is the same clock.
    assert!(examined.clock_ahead_ms.is_some_and(|ms| ms.abs() < 5000), "{examined:?}");
    assert!(issuers.examine("other", None, now()).await.is_none());

    // What serves is told apart from what is published.
    issuers.warm().await;
    let held = issuers.examine("corp", None, now()).await.unwrap().held.unwrap();
    assert!(held.keys == 1 && held.error.is_none());
    assert!(held.fetched.is_some_and(|at| UNIX_EPOCH.elapsed().unwrap().as_secs() - at < 60));

    // Its document says another name; its keys are none of ours; it is gone.
    issuer.page(
        "/.well-known/openid-configuration",
        200,
        &json!({ "issuer": "https://evil.example" }).to_string(),
    );
    let examined = issuers.examine("corp", None, now()).await.unwrap();
    assert_eq!((state(&examined.checks, "discovery"), examined.ok), (State::Bad, false));
    let document = json!({ "issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url) });
    issuer.page("/.well-known/openid-configuration", 200, &document.to_string());
    issuer.publish(&[&rs]);
    let examined = issuers.examine("corp", None, now()).await.unwrap();
    assert_eq!(
        (state(&examined.checks, "discovery"), state(&examined.checks, "keys")),
        (State::Good, State::Bad)
    );
    drop(issuer);
    let examined = issuers.examine("corp", None, now()).await.unwrap();
    assert!(!examined.ok && state(&examined.checks, "clock") == State::Skipped, "{examined:?}");
}
