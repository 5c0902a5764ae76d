//! What an issuer's entry can say, through the whole gate: each key changes what is accepted, and nothing else.

use super::*;

/// What becomes of the good token with these changes, under these lines.
async fn judged(more: &str, header: Value, claims: Value) -> &'static str {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, more);
    let header = with(json!({ "kid": "k", "typ": "at+jwt" }), &header);
    let token = signer.token_with(&header, &with(good_claims(&issuer.url), &claims));
    code(&issuers, &token).await
}

#[tokio::test]
async fn every_key_has_its_effect() {
    let alias = "https://alias.example.com";
    let none = || json!({});
    for (more, header, claims, without, with_it) in [
        (
            "also = \"https://alias.example.com\"",
            none(),
            json!({ "iss": alias }),
            "unknown_issuer",
            "accepted",
        ),
        ("kid_missing = \"refuse\"", json!({ "kid": null }), none(), "accepted", "no_key_id"),
        ("kid_missing = \"refuse\"", none(), none(), "accepted", "accepted"),
        ("algorithms = \"RS256\"", none(), none(), "accepted", "algorithm"),
        ("token_type = [\"\", \"JWT\"]", json!({ "typ": null }), none(), "wrong_type", "accepted"),
        ("token_type = [\"\", \"JWT\"]", json!({ "typ": "jwt" }), none(), "wrong_type", "accepted"),
        ("token_type = [\"\", \"JWT\"]", none(), none(), "accepted", "wrong_type"),
        (
            "audience_claim = \"client_id\"",
            none(),
            json!({ "aud": null, "client_id": "postern" }),
            "missing_claim",
            "accepted",
        ),
        ("audience_claim = \"client_id\"", none(), none(), "accepted", "wrong_audience"),
        ("clients = \"web\"", none(), none(), "accepted", "client_not_accepted"),
        ("client_from = \"azp\"\nclients = \"web\"", none(), json!({ "azp": "web" }), "accepted", "accepted"),
        ("subject_from = \"oid\"", none(), none(), "accepted", "missing_claim"),
        ("subject_from = \"oid\"", none(), json!({ "oid": "1", "sub": null }), "missing_claim", "accepted"),
        ("require = { token_use = \"access\" }", none(), none(), "accepted", "required_claim"),
        (
            "require = { token_use = \"access\" }",
            none(),
            json!({ "token_use": "access" }),
            "accepted",
            "accepted",
        ),
        ("forbid = \"act.sub\"", none(), json!({ "act": { "sub": "x" } }), "accepted", "forbidden_claim"),
        ("max_lifetime = \"4m\"", none(), none(), "accepted", "lives_too_long"),
        ("leeway = \"1s\"", none(), json!({ "exp": NOW - 2 }), "accepted", "expired"),
        ("sender_constrained = \"required\"", none(), none(), "accepted", "not_bound"),
        ("groups_from = []", none(), json!({ "groups": 7 }), "bad_claim", "accepted"),
        (
            "provider = \"keycloak\"",
            json!({ "typ": "JWT" }),
            json!({ "typ": "Bearer" }),
            "wrong_type",
            "accepted",
        ),
        ("provider = \"keycloak\"\nrequire = {}", none(), none(), "accepted", "accepted"),
    ] {
        assert_eq!(
            judged("", header.clone(), claims.clone()).await,
            without,
            "without {more}: {header} {claims}"
        );
        assert_eq!(
            judged(more, header.clone(), claims.clone()).await,
            with_it,
            "with {more}: {header} {claims}"
        );
    }
}

#[tokio::test]
async fn one_issuer_has_one_identity_under_all_its_names() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "also = [\"https://a.example.com\", \"https://b.example.com/\"]");
    for iss in [issuer.url.as_str(), "https://a.example.com", "https://b.example.com/"] {
        let token = signer.token(&with(good_claims(&issuer.url), &json!({ "iss": iss })));
        let caller =
            issuers.authenticate(&Presented::bearer(&token), Accept::default(), now()).await.unwrap();
        assert_eq!((caller.iss(), caller.issuer().as_str()), (issuer.url.as_str(), "corp"), "{iss}");
    }
    let token = signer.token(&with(good_claims(&issuer.url), &json!({ "iss": "https://b.example.com" })));
    assert_eq!(code(&issuers, &token).await, "unknown_issuer", "exactly");
}

#[tokio::test]
async fn key_sets_without_names_and_algorithms_work() {
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
        let (first, second) = (Signer::new(algorithm, "a"), Signer::new(algorithm, "b"));
        let issuer = FakeIssuer::with_keys(&[]).await;
        let keys = [&first, &second]
            .map(|signer| with(signer.jwk(), &json!({ "kid": null, "alg": null, "use": null })));
        issuer.page("/keys", 200, &json!({ "keys": keys }).to_string());
        let issuers = issuers(&issuer, "");
        let claims = good_claims(&issuer.url);
        for token in [second.token(&claims), second.token_with(&json!({ "typ": "at+jwt" }), &claims)] {
            assert_eq!(code(&issuers, &token).await, "accepted", "{algorithm}");
        }
        let stranger = Signer::new(algorithm, "a").token(&claims);
        assert_eq!(code(&issuers, &stranger).await, "unknown_key", "{algorithm}");
    }
}
