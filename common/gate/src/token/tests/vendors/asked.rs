//! Issuers that are asked about tokens: the answers that they give, judged as their examples say. That they are asked, and asked well,
//! is for the tests of introspection.

use postern_base::secret::SecretRef;

use super::*;
use crate::token::claims::{Said, judge};

/// An answer of the shape that this issuer gives.
struct Answers {
    issuers: Issuers,
    answer: Value,
}

impl Answers {
    fn new(vendor: &str, answer: Value) -> Self {
        let file = example(vendor);
        let secret = file.introspect.as_ref().and_then(|introspect| introspect.client_secret.as_ref());
        assert!(matches!(secret, Some(SecretRef::Credential(_))), "the file itself holds no secret");
        let settings = file.settings(Path::new("/nowhere")).unwrap();
        assert!(settings.takes_opaque() && !settings.has_keys());
        Self {
            issuers: Issuers::new(vec![settings]).unwrap(),
            answer: with(answer, &json!({ "active": true })),
        }
    }

    fn judge(&self, changes: &Value) -> Result<String, &'static str> {
        let Value::Object(claims) = with(self.answer.clone(), changes) else { unreachable!() };
        let settings = self.issuers.settings().next().unwrap();
        let judged = judge(claims, Said::WhenAsked, settings, token_id(""), now()).and_then(|proved| {
            let caller = Principal::new(proved);
            self.issuers.accepts(&caller, Accept::default())?;
            Ok(said_of(&caller))
        });
        judged.map_err(|e| e.code())
    }
}

#[test]
fn dex() {
    let answers = Answers::new(
        "dex",
        json!({
            "client_id": "postern-cli", "sub": "CgNhZGE", "exp": NOW + 300, "iat": NOW, "nbf": NOW, "username": "ada",
            "aud": ["postern", "postern-cli"], "iss": "https://dex.example.com", "token_type": "Bearer", "token_use": "access_token",
            "ext": { "azp": "postern-cli", "groups": ["finance", "a b"], "email": "ada@example.com" },
        }),
    );
    assert_eq!(answers.judge(&json!({})).unwrap(), "CgNhZGE as ada by postern-cli, groups finance|a b");
    let alone = json!({ "username": null, "ext": {} });
    assert_eq!(answers.judge(&alone).unwrap(), "CgNhZGE as CgNhZGE by postern-cli");
    for (changes, code) in [
        (json!({ "token_use": "refresh_token" }), "id_token"),
        (json!({ "token_use": null }), "required_claim"),
        // Meant for the client alone: nobody asked for the relay's scope.
        (json!({ "aud": "postern-cli" }), "wrong_audience"),
        (json!({ "exp": NOW - 60 }), "expired"),
    ] {
        assert_eq!(answers.judge(&changes).unwrap_err(), code, "{changes}");
    }
}

/// By its signature a token of Dex's is never taken: nothing in it tells it from an ID token.
#[tokio::test]
async fn dex_by_signature() {
    let signer = Signer::new(Algorithm::Rs256, "k1");
    let issuer = FakeIssuer::with_keys(&[&signer]).await;
    let issuers = issuers(&issuer, "provider = \"dex\"\ncheck = \"jwt\"\nrequire = {}\ntoken_type = \"\"");
    let claims = json!({
        "iss": issuer.url, "sub": "CgNhZGE", "aud": "postern", "exp": NOW + 300, "iat": NOW, "at_hash": "h", "groups": ["finance"],
    });
    for changes in [
        json!({}),
        json!({ "at_hash": null }),
        json!({ "nonce": "n" }),
        json!({ "aud": ["postern", "cli"], "azp": "cli" }),
    ] {
        let token = signer.token_with(&json!({ "kid": "k1" }), &with(claims.clone(), &changes));
        assert_eq!(code(&issuers, &token).await, "id_token", "{changes}");
    }
}

#[test]
fn google() {
    let client = "1234567890-example.apps.googleusercontent.com";
    let ada = "principal://iam.googleapis.com/locations/global/workforcePools/corp/subject/ada";
    // All 64-bit numbers are text.
    let answers = Answers::new(
        "google",
        json!({
            "client_id": client, "exp": (NOW + 300).to_string(), "iat": NOW.to_string(), "iss": "https://sts.googleapis.com/",
            "scope": "https://www.googleapis.com/auth/cloud-platform", "sub": "ada", "username": ada,
        }),
    );
    let all = format!("ada as {ada} by {client}, scopes https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(answers.judge(&json!({})).unwrap(), all);
    for (changes, code) in [
        (json!({ "client_id": "another.apps.googleusercontent.com" }), "wrong_audience"),
        (json!({ "client_id": null }), "missing_claim"),
        (json!({ "sub": null }), "missing_claim"),
        (json!({ "exp": "0" }), "expired"),
        (json!({ "exp": "soon" }), "bad_claim"),
    ] {
        assert_eq!(answers.judge(&changes).unwrap_err(), code, "{changes}");
    }
}

#[test]
fn generic_opaque() {
    let answers = Answers::new(
        "generic-opaque",
        json!({
            "scope": "invoices:read", "client_id": "partner-portal", "username": "ada", "token_type": "Bearer", "exp": NOW + 300,
        }),
    );
    // Without sub, iss and aud.
    assert_eq!(answers.judge(&json!({})).unwrap(), "ada as ada by partner-portal, scopes invoices:read");
    let whole = json!({ "sub": "u1", "aud": ["postern"], "iat": NOW, "nbf": NOW, "username": null });
    assert_eq!(answers.judge(&whole).unwrap(), "u1 as u1 by partner-portal, scopes invoices:read");
    assert_eq!(
        answers.judge(&json!({ "sub": null, "iat": null })).unwrap(),
        answers.judge(&json!({})).unwrap()
    );
    for (changes, code) in [
        (json!({ "client_id": "another" }), "client_not_accepted"),
        (json!({ "client_id": "another", "aud": "postern" }), "client_not_accepted"),
        (json!({ "client_id": null }), "missing_claim"),
        (json!({ "aud": "another" }), "wrong_audience"),
        (json!({ "username": null }), "missing_claim"),
        (json!({ "exp": null }), "missing_claim"),
        (json!({ "exp": NOW + 864_000 }), "lives_too_long"),
        (json!({ "nbf": NOW + 3600 }), "not_yet_valid"),
        (json!({ "token_type": "refresh_token" }), "id_token"),
    ] {
        assert_eq!(answers.judge(&changes).unwrap_err(), code, "{changes}");
    }
}
