mod hostile;
mod knobs;
mod random;
pub(super) mod support;
mod vendors;

use std::time::Duration;

use serde_json::{Value, json};

use self::support::{FakeIssuer, NOW, Signer, at, good_claims, now, settings, with};
use super::*;

fn issuers(issuer: &FakeIssuer, more: &str) -> Issuers {
    Issuers::new(vec![settings(&issuer.url, more)]).unwrap()
}

async fn code(issuers: &Issuers, token: &str) -> &'static str {
    issuers
        .authenticate(&Presented::bearer(token), Accept::default(), now())
        .await
        .err()
        .map_or("accepted", |e| e.code())
}

/// Requests are served in tasks, on any runtime.
fn is_send<F: Future + Send>(future: F) -> F {
    future
}

#[tokio::test]
async fn good_tokens_of_every_algorithm_are_accepted() {
    for algorithm in
        [Algorithm::Rs256, Algorithm::Ps512, Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa]
    {
        let signer = Signer::new(algorithm, "k");
        let issuer = FakeIssuer::with_keys(&[&signer]).await;
        let issuers = issuers(&issuer, &format!("algorithms = [\"{algorithm}\"]"));
        let token = signer.token(&good_claims(&issuer.url));
        let presented = Presented::bearer(&token);
        let judging = is_send(issuers.authenticate(&presented, Accept::default(), now()));
        let principal = judging.await.unwrap();
        assert_eq!(
            (principal.issuer().as_str(), principal.iss(), principal.subject()),
            ("corp", issuer.url.as_str(), "ada")
        );
        assert_eq!((principal.token_id(), principal.expires()), (token_id(&token), NOW + 300));
    }
    assert_eq!(token_id("abc").to_string(), "ba7816bf8f01cfea");
}

#[tokio::test]
async fn a_signatures_twin_has_the_same_id() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "");
    let token = signer.token(&good_claims(&issuer.url));
    let twin = support::twin(&token);
    assert_ne!(token, twin);
    assert_eq!(token_id(&token), token_id(&twin));
    for text in [&token, &twin] {
        let presented = Presented::bearer(text);
        let principal = issuers.authenticate(&presented, Accept::default(), now()).await.unwrap();
        assert_eq!(principal.token_id(), token_id(&token));
    }
    let other = signer.token(&with(good_claims(&issuer.url), &json!({ "jti": "other" })));
    assert_ne!(token_id(&other), token_id(&token));
}

#[tokio::test]
async fn a_caller_is_its_own_issuers_and_no_namesakes() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let before = issuers(&issuer, "");
    let token = signer.token(&good_claims(&issuer.url));
    let caller = before.authenticate(&Presented::bearer(&token), Accept::default(), now()).await.unwrap();
    let corp = caller.issuer();
    let other = before.rebuild(vec![settings("https://other.example.com", "")]).unwrap();
    let found = other.accepts(&caller, Accept::default());
    assert!(matches!(found, Err(TokenError::IssuerNotAccepted(_))), "{found:?}");
    assert!(!other.judges_like(&before, corp) && other.version(corp) != before.version(corp));
    let also = format!("also = [\"{}\"]", issuer.url);
    let alias = before.rebuild(vec![settings("https://other.example.com", &also)]).unwrap();
    assert_eq!(alias.accepts(&caller, Accept::default()), Ok(()));

    let same = before.rebuild(vec![settings(&issuer.url, "")]).unwrap();
    assert!(same.judges_like(&before, corp) && same.version(corp) == before.version(corp));
    for knob in ["forbid = [\"nonce\"]", "clients = [\"laptop\"]", "require = { tier = \"1\" }"] {
        let stricter = before.rebuild(vec![settings(&issuer.url, knob)]).unwrap();
        assert!(!stricter.judges_like(&before, corp), "{knob}");
        assert_ne!(stricter.version(corp), before.version(corp), "{knob}");
    }
    assert!(!same.judges_like(&before, &"partners".parse().unwrap()));
}

#[tokio::test]
async fn services_choose_audience_and_issuers() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "");
    let strings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    let names = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<IssuerName>>();
    let token = |aud: Value| signer.token(&with(good_claims(&issuer.url), &json!({ "aud": aud })));
    let (relay, billing, both) =
        (token(json!("postern")), token(json!("billing")), token(json!(["x", "billing", "postern"])));
    // Twice, so that the second answer comes from memory where the first was good.
    for _ in 0..2 {
        for (token, audience, names, expected) in [
            (&relay, None, None, "accepted"),
            (&relay, Some(strings(&["billing"])), None, "wrong_audience"),
            (&billing, None, None, "wrong_audience"),
            (&billing, Some(strings(&["wiki", "billing"])), Some(names(&["corp", "partners"])), "accepted"),
            (&billing, Some(strings(&[])), None, "wrong_audience"),
            (&both, None, Some(names(&["corp"])), "accepted"),
            (&both, Some(strings(&["billing"])), None, "accepted"),
            // A good token of an issuer that is not taken here; and one that is not even good.
            (&relay, Some(strings(&["billing"])), Some(names(&["partners"])), "issuer_not_accepted"),
            (&relay, None, Some(names(&[])), "issuer_not_accepted"),
            (&billing, Some(strings(&["billing"])), Some(names(&["partners"])), "wrong_audience"),
        ] {
            let accept = Accept { audience: audience.as_deref(), issuers: names.as_deref() };
            let code = issuers
                .authenticate(&Presented::bearer(token), accept, now())
                .await
                .err()
                .map_or("accepted", |e| e.code());
            assert_eq!(code, expected, "{accept:?}");
        }
    }
}

#[tokio::test]
async fn memory_looks_at_expiry_and_at_the_keys() {
    let (old, new) = (Signer::new(Algorithm::Es256, "old"), Signer::new(Algorithm::Es256, "new"));
    let issuer = FakeIssuer::with_keys(&[&old]).await;
    let issuers = issuers(&issuer, "");
    let judge = |token: &str, now| {
        let token = token.to_owned();
        let issuers = &issuers;
        async move { issuers.authenticate(&Presented::bearer(&token), Accept::default(), now).await }
    };
    let token = old.token(&with(good_claims(&issuer.url), &json!({ "exp": NOW + 100 })));
    let first = judge(&token, now()).await.unwrap();
    let again = judge(&token, at(129.0)).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "remembered");
    assert_eq!(judge(&token, at(130.0)).await.unwrap_err(), TokenError::Expired);
    assert_eq!(
        judge(&token, at(130.0)).await.unwrap_err(),
        TokenError::Expired,
        "also after it was forgotten"
    );

    // The issuer takes its key back: what it signed is worth nothing from the moment we learn of it.
    let token = old.token(&good_claims(&issuer.url));
    judge(&token, at(1.0)).await.unwrap();
    issuer.publish(&[&new]);
    let fresh = new.token(&good_claims(&issuer.url));
    assert_eq!(judge(&fresh, at(4.0)).await.unwrap_err().code(), "unknown_key", "5 s have not passed");
    judge(&fresh, at(5.0)).await.unwrap();
    assert_eq!(judge(&token, at(5.0)).await.unwrap_err().code(), "unknown_key");
    assert_eq!(issuer.asked("/keys"), 2);
}

#[tokio::test]
async fn an_outage_stops_nobody_whose_token_is_good() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "");
    let url = issuer.url.clone();
    let known = signer.token(&good_claims(&url));
    issuers.authenticate(&Presented::bearer(&known), Accept::default(), now()).await.unwrap();
    drop(issuer);
    issuers.authenticate(&Presented::bearer(&known), Accept::default(), at(60.0)).await.unwrap();
    let fresh = signer.token(&with(good_claims(&url), &json!({ "exp": NOW + 90_000, "iat": NOW + 80_000 })));
    issuers.authenticate(&Presented::bearer(&fresh), Accept::default(), at(80_000.0)).await.unwrap();
    let rotated = Signer::new(Algorithm::Es256, "next").token(&good_claims(&url));
    let refusal =
        issuers.authenticate(&Presented::bearer(&rotated), Accept::default(), at(200.0)).await.unwrap_err();
    assert!(refusal.is_unavailable(), "the key may be good, so the caller should try again: {refusal}");
    // Longer than `stale`, also for what is remembered: then closed.
    let late = signer.token(&with(good_claims(&url), &json!({ "exp": NOW + 90_000, "iat": NOW + 86_300 })));
    issuers.authenticate(&Presented::bearer(&late), Accept::default(), at(86_399.0)).await.unwrap();
    let refusal =
        issuers.authenticate(&Presented::bearer(&late), Accept::default(), at(86_401.0)).await.unwrap_err();
    assert_eq!(refusal, TokenError::Unavailable("corp".parse().unwrap()));
}

#[tokio::test]
async fn floods_of_unknown_keys_and_issuers_cost_one_fetch() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "");
    issuers.warm().await;
    assert_eq!(issuer.asked("/keys"), 1);
    // `warm` goes by the clock on the wall; these tests' time lies years from it.
    let claims = good_claims(&issuer.url);
    let flood: Vec<String> = (0..300)
        .map(|n| signer.token_with(&json!({ "kid": format!("unknown-{n}"), "typ": "at+jwt" }), &claims))
        .collect();
    let judged = flood.iter().map(|token| code(&issuers, token));
    assert!(futures_util::future::join_all(judged).await.iter().all(|code| *code == "unknown_key"));
    assert_eq!(issuer.asked("/keys"), 2);
}

#[tokio::test]
async fn a_reload_keeps_the_keys_and_nothing_else() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let before = issuers(&issuer, "");
    let url = issuer.url.clone();
    let token = signer.token(&good_claims(&url));
    before.authenticate(&Presented::bearer(&token), Accept::default(), now()).await.unwrap();
    drop(issuer);

    let same = before.rebuild(vec![settings(&url, "leeway = \"10s\"")]).unwrap();
    same.authenticate(&Presented::bearer(&token), Accept::default(), now()).await.unwrap();
    assert_eq!(
        code(&before.rebuild(vec![settings(&url, "token_type = \"JWT\"")]).unwrap(), &token).await,
        "wrong_type"
    );
    assert_eq!(
        code(&before.rebuild(vec![settings("https://other.example.com", "")]).unwrap(), &token).await,
        "unknown_issuer"
    );
    let elsewhere = format!("jwks = {{ uri = \"{url}/other\" }}");
    assert_eq!(
        code(&before.rebuild(vec![settings(&url, &elsewhere)]).unwrap(), &token).await,
        "issuer_unavailable"
    );
    before.authenticate(&Presented::bearer(&token), Accept::default(), now()).await.unwrap();
}

#[test]
fn names_and_issuers_are_given_once() {
    let entry = |name: &str, iss: &str| {
        let mut settings = settings(iss, "");
        settings.name = name.parse().unwrap();
        settings
    };
    let one = || entry("corp", "https://id.example.com");
    for (other, at) in [
        (entry("corp", "https://id.example.net"), "issuers.1.name"),
        (entry("partners", "https://id.example.com"), "issuers.1.issuer"),
    ] {
        let problem = Issuers::new(vec![one(), other.clone()]).err().unwrap();
        assert_eq!(problem.at.join("."), at);
        assert!(Issuers::new(vec![one()]).unwrap().rebuild(vec![one(), other]).is_err());
    }
    // Aliases are names as well.
    let aliased = |name: &str, also: &str| {
        let mut settings = settings("https://id.example.org", &format!("also = \"{also}\""));
        settings.name = name.parse().unwrap();
        settings
    };
    let problem = Issuers::new(vec![one(), aliased("partners", "https://id.example.com")]).err().unwrap();
    assert_eq!(problem.at.join("."), "issuers.1.also.0");
    let problem = Issuers::new(vec![aliased("partners", "https://id.example.com"), one()]).err().unwrap();
    assert_eq!(problem.at.join("."), "issuers.1.issuer");
    let both = Issuers::new(vec![one(), entry("partners", "https://id.example.com/")]).unwrap();
    assert_eq!(both.settings().count(), 2);
    assert_eq!(both.by_name("partners").unwrap().issuer, "https://id.example.com/");
    assert!(both.by_name("nobody").is_none());
}

#[tokio::test]
async fn health_tells_what_is_known() {
    let issuer = FakeIssuer::with_keys(&[&Signer::new(Algorithm::Es256, "k")]).await;
    let silent = settings("http://127.0.0.1:1", "");
    let mut silent = silent;
    silent.name = "silent".parse().unwrap();
    let issuers = Issuers::new(vec![settings(&issuer.url, ""), silent]).unwrap();
    let unknown = &issuers.health()[0];
    assert!(!unknown.is_usable(SystemTime::now()) && unknown.error.is_none());
    issuers.warm().await;
    let health = issuers.health();
    assert!(health[0].is_usable(SystemTime::now()) && health[0].keys == 1 && health[0].error.is_none());
    assert!(!health[0].is_usable(SystemTime::now() + Duration::from_hours(25)));
    assert_eq!(health[1].name.as_str(), "silent");
    assert!(health[1].fetched.is_none() && health[1].error.is_some());
}
