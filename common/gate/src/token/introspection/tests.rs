use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;
use crate::principal::Principal;
use crate::token::tests::support::{FakeIssuer, NOW, Signer, at, now, settings, with};
use crate::token::{Accept, Algorithm, Issuers, Presented, token_id};

mod proofs;
mod several;

const ASK: &str = "/introspect";

/// An issuer that is asked, with this in its `introspect` table.
pub(super) async fn asked(more: &str) -> (FakeIssuer, Issuers) {
    let issuer = FakeIssuer::start().await;
    let document =
        json!({ "issuer": issuer.url, "introspection_endpoint": format!("{}{ASK}", issuer.url) }).to_string();
    issuer.page("/.well-known/openid-configuration", 200, &document);
    answers(&issuer, &json!({}));
    let issuers = Issuers::new(vec![settings(&issuer.url, &table("introspect", more))]).unwrap();
    (issuer, issuers)
}

/// Secrets come from a file that surely is there: this one.
pub(super) fn table(check: &str, more: &str) -> String {
    let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let how = if more.contains("auth") {
        String::new()
    } else {
        format!("client_id = \"relay\", auth = \"post\", client_secret = {{ file = \"{this}\" }}, ")
    };
    format!("check = \"{check}\"\nintrospect = {{ {how}{more} }}")
}

/// From now on the issuer says of every token that it is active, with these members changed.
pub(super) fn answers(issuer: &FakeIssuer, changes: &Value) {
    let good = json!({
        "active": true, "sub": "ada", "aud": "postern", "iss": issuer.url, "exp": NOW + 300, "iat": NOW,
        "client_id": "cli", "scope": "a b", "token_type": "Bearer",
    });
    issuer.page(ASK, 200, &with(good, changes).to_string());
}

async fn judge(issuers: &Issuers, token: &str, now: SystemTime) -> Result<Arc<Principal>, TokenError> {
    issuers.authenticate(&Presented::bearer(token), Accept::default(), now).await
}

async fn code(issuers: &Issuers, token: &str, now: SystemTime) -> &'static str {
    judge(issuers, token, now).await.err().map_or("accepted", |e| e.code())
}

#[tokio::test]
async fn the_issuers_word_is_judged_like_claims() {
    let (issuer, issuers) = asked("cache = \"30s\"").await;
    let principal = judge(&issuers, "opaque", now()).await.unwrap();
    assert_eq!((principal.subject(), principal.client(), principal.scopes().len()), ("ada", Some("cli"), 2));
    assert_eq!((principal.token_id(), principal.iss()), (token_id("opaque"), issuer.url.as_str()));
    assert_eq!(principal.asked_again_at(), Some(at(30.0)));
    assert_eq!(issuer.said().1["token"], "opaque");
    for (n, (changes, expected)) in [
        (json!({ "active": false }), "inactive"),
        // Whose word it is is known; that an answer names somebody else is not believed.
        (json!({ "iss": null }), "accepted"),
        (json!({ "iss": "https://other.example.com" }), "unknown_issuer"),
        (json!({ "iss": 7 }), "bad_claim"),
        (json!({ "aud": null }), "missing_claim"),
        (json!({ "aud": "https://other.example.com" }), "wrong_audience"),
        (json!({ "sub": null }), "missing_claim"),
        (json!({ "exp": null }), "missing_claim"),
        (json!({ "exp": NOW - 60 }), "expired"),
        (json!({ "nbf": NOW + 60 }), "not_yet_valid"),
        (json!({ "token_type": null }), "accepted"),
        (json!({ "token_type": "bearer" }), "accepted"),
        (json!({ "token_type": "refresh_token" }), "id_token"),
        (json!({ "typ": "Refresh" }), "id_token"),
        (json!({ "nonce": "n" }), "id_token"),
        (json!({ "cnf": { "jkt": "x" } }), "bound_token"),
        (json!({ "cnf": { "jkt": "A".repeat(43) } }), "bound_as_bearer"),
    ]
    .into_iter()
    .enumerate()
    {
        answers(&issuer, &changes);
        assert_eq!(code(&issuers, &format!("token-{n}"), now()).await, expected, "{changes}");
    }
}

#[tokio::test]
async fn answers_without_subject_or_audience_need_settings_that_say_what_stands_for_them() {
    let issuer = FakeIssuer::start().await;
    answers(&issuer, &json!({ "sub": null, "aud": null, "iss": null }));
    let table = table("introspect", &format!("endpoint = \"{}{ASK}\"", issuer.url));
    let more = format!(
        "{table}\nsubject_from = [\"sub\", \"client_id\"]\naudience_claim = [\"aud\", \"client_id\"]"
    );
    let mut settings = settings(&issuer.url, &more);
    settings.audience = vec!["cli".to_owned()];
    let issuers = Issuers::new(vec![settings]).unwrap();
    assert_eq!(judge(&issuers, "opaque", now()).await.unwrap().subject(), "cli");
}

#[tokio::test]
async fn good_answers_are_believed_for_a_while_and_never_beyond_expiry() {
    let (issuer, issuers) = asked("cache = \"30s\", negative = \"10s\"").await;
    answers(&issuer, &json!({ "exp": NOW + 40 }));
    for (second, expected, asked) in [
        (0.0, "accepted", 1),
        (29.9, "accepted", 1),
        (30.0, "accepted", 2),
        // From here on the token's expiry comes first: the leeway for clocks is not added to what the issuer said.
        (39.9, "accepted", 2),
        (40.0, "accepted", 3),
        (40.1, "accepted", 4),
        // The clock was set back: what was learned later says nothing about now.
        (-20.0, "accepted", 5),
    ] {
        assert_eq!(code(&issuers, "opaque", at(second)).await, expected, "{second}");
        assert_eq!(issuer.asked(ASK), asked, "{second}");
    }
    // Some write all numbers as text.
    answers(&issuer, &json!({ "exp": (NOW + 10).to_string() }));
    assert_eq!(judge(&issuers, "text", now()).await.unwrap().asked_again_at(), Some(at(10.0)));
    answers(&issuer, &json!({ "active": false }));
    assert_eq!(code(&issuers, "opaque", at(-50.0)).await, "inactive", "revoked");
    for (second, asked) in [(0.0, 8), (9.9, 8), (10.0, 9)] {
        assert_eq!(code(&issuers, "other", at(second)).await, "inactive", "{second}");
        assert_eq!(issuer.asked(ASK), asked, "{second}");
    }
}

#[tokio::test]
async fn a_confirmation_asks_again_but_not_for_the_proof() {
    let (issuer, issuers) = asked("cache = \"30s\"").await;
    answers(&issuer, &json!({ "cnf": { "jkt": "A".repeat(43) } }));
    assert_eq!(code(&issuers, "opaque", now()).await, "bound_as_bearer");
    let again = issuers.confirm("opaque", Accept::default(), at(31.0)).await.unwrap();
    assert_eq!((again.asked_again_at(), issuer.asked(ASK)), (Some(at(61.0)), 2));
    answers(&issuer, &json!({ "active": false }));
    let gone = issuers.confirm("opaque", Accept::default(), at(62.0)).await.unwrap_err();
    assert_eq!(gone, TokenError::Inactive);
}

#[tokio::test]
async fn however_many_ask_about_a_token_one_question_is_under_way() {
    let (issuer, issuers) = asked("cache = \"0s\"").await;
    issuer.hold(true);
    let mut all = Box::pin(join_all((0..200).map(|_| judge(&issuers, "opaque", now()))));
    let held = timeout(Duration::from_millis(100), &mut all).await;
    assert!(held.is_err() && issuer.asked(ASK) <= 1);
    issuer.hold(false);
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!(issuer.asked(ASK), 1);
    // Nothing is remembered, so each question is a new one.
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    assert_eq!(issuer.asked(ASK), 2);
}

#[tokio::test]
async fn callers_that_leave_do_not_end_the_question() {
    let (issuer, issuers) = asked("cache = \"30s\"").await;
    issuer.hold(true);
    for _ in 0..50 {
        let left = timeout(Duration::from_millis(1), judge(&issuers, "opaque", now())).await;
        assert!(left.is_err());
    }
    issuer.hold(false);
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    assert_eq!(issuer.asked(ASK), 1);
}

#[tokio::test]
async fn answers_that_say_nothing_plainly_are_never_a_pass() {
    let good = json!({ "active": true, "sub": "ada", "aud": "postern", "exp": NOW + 300 }).to_string();
    for (status, body, expected) in [
        (200, "<html>active: true</html>".to_owned(), "introspection_unavailable"),
        (200, String::new(), "introspection_unavailable"),
        (200, "[true]".to_owned(), "introspection_unavailable"),
        (200, json!({ "sub": "ada" }).to_string(), "introspection_unavailable"),
        (200, good.replace("true", "\"true\""), "introspection_unavailable"),
        (200, good.replace("true", "1"), "introspection_unavailable"),
        (200, good.replace('{', "{\"active\":false,"), "introspection_unavailable"),
        (200, format!("{good} {good}"), "introspection_unavailable"),
        (200, " ".repeat(1 << 21), "introspection_unavailable"),
        (201, good.clone(), "introspection_unavailable"),
        (302, good.clone(), "introspection_unavailable"),
        (400, json!({ "error": "unsupported_token_type" }).to_string(), "introspection_unsupported"),
        (401, good.clone(), "introspection_unavailable"),
        (403, good.clone(), "introspection_unavailable"),
        (404, good.clone(), "introspection_unavailable"),
        (429, good.clone(), "introspection_unavailable"),
        (500, good.clone(), "introspection_unavailable"),
    ] {
        let (issuer, issuers) = asked("").await;
        issuer.page(ASK, status, &body);
        let error = judge(&issuers, "opaque", now()).await.unwrap_err();
        assert_eq!((error.code(), error.is_unavailable()), (expected, true), "{status} {body:.60}");
        assert!(!issuers.health()[0].is_usable(now()), "{status} {body:.60}");
        assert_eq!(issuer.asked("/elsewhere"), 0, "redirects are not followed");
        // Nothing of it is remembered.
        answers(&issuer, &json!({}));
        assert_eq!(code(&issuers, "opaque", now()).await, "accepted", "{status} {body:.60}");
        assert!(issuers.health()[0].is_usable(now()));
    }
}

/// In real time: with the clock stopped, an answer on its way would look like a time-out.
#[tokio::test]
async fn an_issuer_that_hangs_holds_nobody_for_long_and_opens_the_breaker() {
    let (issuer, issuers) = asked("").await;
    assert_eq!(code(&issuers, "first", now()).await, "accepted");
    issuer.hold(true);
    let began = Instant::now();
    let many = join_all((0..200).map(async |n| code(&issuers, &format!("token-{n}"), now()).await)).await;
    assert!(many.iter().all(|code| *code == "introspection_unavailable"), "{many:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    // Those who come while it is open are refused at once, and cost the issuer nothing.
    let (began, asked) = (Instant::now(), issuer.asked(ASK));
    assert_eq!(code(&issuers, "other", now()).await, "introspection_unavailable");
    assert!(began.elapsed() < Duration::from_millis(100) && issuer.asked(ASK) == asked);
    // What it said before is still good, and when it is well again one question finds out.
    assert_eq!(code(&issuers, "first", now()).await, "accepted");
    issuer.hold(false);
    let began = Instant::now();
    while code(&issuers, "other", now()).await != "accepted" {
        assert!(began.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn only_an_issuer_that_is_unwell_opens_the_breaker() {
    for (status, opens) in [(500, true), (503, true), (401, false), (400, false), (404, false), (429, false)]
    {
        let (issuer, issuers) = asked("").await;
        issuer.page(ASK, status, "{}");
        for n in 0..20 {
            judge(&issuers, &format!("token-{n}"), now()).await.unwrap_err();
        }
        assert_eq!(issuer.asked(ASK), if opens { 5 } else { 20 }, "{status}");
    }
}

#[tokio::test]
async fn who_is_gone_and_comes_back_is_found_again() {
    let (issuer, issuers) = asked("").await;
    let address = issuer.url.clone();
    drop(issuer);
    assert_eq!(code(&issuers, "opaque", now()).await, "introspection_unavailable");
    let issuer = FakeIssuer::start_at(address.strip_prefix("http://").unwrap()).await;
    let document = json!({ "issuer": issuer.url, "introspection_endpoint": format!("{}{ASK}", issuer.url) });
    issuer.page("/.well-known/openid-configuration", 200, &document.to_string());
    answers(&issuer, &json!({}));
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
}

#[tokio::test]
async fn an_endpoint_that_moved_is_found_again() {
    let (issuer, issuers) = asked("").await;
    issuers.warm().await;
    assert_eq!(issuer.asked("/.well-known/openid-configuration"), 1);
    issuer.page(ASK, 404, "gone");
    let moved =
        json!({ "issuer": issuer.url, "introspection_endpoint": format!("{}/elsewhere", issuer.url) });
    issuer.page("/.well-known/openid-configuration", 200, &moved.to_string());
    issuer.page("/elsewhere", 200, &json!({ "active": false }).to_string());
    assert_eq!(code(&issuers, "opaque", now()).await, "introspection_unavailable");
    // What questions found out is not forgotten because the address is known.
    assert!(!issuers.health()[0].is_usable(now()));
    assert_eq!(code(&issuers, "opaque", now()).await, "inactive");
    issuers.warm().await;
    assert!(issuers.health()[0].is_usable(now()));
    issuer.page("/elsewhere", 403, "");
    assert_eq!(code(&issuers, "other", now()).await, "introspection_unavailable");
    issuers.warm().await;
    assert!(!issuers.health()[0].is_usable(now()));
}

#[tokio::test]
async fn a_reload_remembers_what_was_said() {
    let (issuer, issuers) = asked("cache = \"30s\"").await;
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    let same: Vec<_> = issuers.settings().cloned().collect();
    let issuers = issuers.rebuild(same).unwrap();
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    assert_eq!(issuer.asked(ASK), 1);
    let other = settings(&issuer.url, &table("introspect", "cache = \"29s\""));
    let issuers = issuers.rebuild(vec![other]).unwrap();
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    assert_eq!(issuer.asked(ASK), 2);
}

#[tokio::test]
async fn memory_has_a_bound() {
    let (issuer, issuers) = asked("cache = \"30s\"").await;
    answers(&issuer, &json!({ "padding": "x".repeat(900_000) }));
    for n in 0..20 {
        assert_eq!(code(&issuers, &format!("token-{n}"), now()).await, "accepted");
    }
    let asked = issuers.all[0].asked.as_ref().unwrap();
    asked.answers.run_pending_tasks();
    assert!(asked.answers.weighted_size() <= REMEMBERED, "{}", asked.answers.weighted_size());
}

#[tokio::test]
async fn jwts_are_told_from_opaque_tokens_without_their_dots() {
    let signer = Signer::new(Algorithm::Es256, "k");
    for (check, jwt_is_asked_about) in [("auto", false), ("introspect", true)] {
        let issuer = FakeIssuer::with_keys(&[&signer]).await;
        answers(&issuer, &json!({}));
        let table = table(check, &format!("endpoint = \"{}{ASK}\"", issuer.url));
        let issuers = Issuers::new(vec![settings(&issuer.url, &table)]).unwrap();
        let jwt = signer.token(&crate::token::tests::support::good_claims(&issuer.url));
        assert_eq!(code(&issuers, &jwt, now()).await, "accepted");
        assert_eq!(issuer.asked(ASK), usize::from(jwt_is_asked_about), "{check}");
        let before = issuer.asked(ASK);
        for opaque in ["ya29.a.b", "a.b", "eyJ.x.y", "abc"] {
            assert_eq!(code(&issuers, opaque, now()).await, "accepted", "{check} {opaque}");
        }
        assert_eq!(issuer.asked(ASK), before + 4);
        // A JWT of nobody known here is sent to nobody.
        let foreign = signer.token(&json!({ "iss": "https://other.example.com" }));
        assert_eq!(code(&issuers, &foreign, now()).await, "unknown_issuer");
        let mut cut = jwt.clone();
        cut.truncate(jwt.len() / 4);
        assert_eq!(code(&issuers, &cut, now()).await, "malformed", "{cut}");
        assert_eq!(issuer.asked(ASK), before + 4, "{check}");
    }
}
