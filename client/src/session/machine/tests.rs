//! Programs that prove themselves to an issuer that is made up here.

use std::sync::Arc;

use http::StatusCode;

use super::*;
use crate::session::dpop::ProofKey;
use crate::session::pass::Nonce;
use crate::testing::{Fake, Seen, json as answer, opened};

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

async fn ask(machine: &Machine, issuer: &Fake, prover: &Prover) -> Result<Granted, IssuerError> {
    let endpoint: Url = issuer.url("/token").parse().unwrap();
    let asked = Asked {
        machine,
        client_id: "nightly batch",
        endpoint: &endpoint,
        scopes: &["invoices:read".into(), "invoices:write".into()],
        targets: vec![("resource", "https://relay.example.com".into())],
    };
    asked.grant(&issuer.client(), prover).await
}

fn granting(_: &Seen) -> http::Response<bytes::Bytes> {
    answer(200, &json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 60 }))
}

#[tokio::test]
async fn a_secret_goes_as_basic_and_is_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::SecretFile(file(&dir, "secret", "se+cr et:%\n"));
    let issuer = Fake::http(granting).await;
    ask(&machine, &issuer, &Prover::default()).await.unwrap();
    file(&dir, "secret", "other");
    ask(&machine, &issuer, &Prover::default()).await.unwrap();
    let seen = issuer.seen();
    // Base64 of `nightly+batch:se%2Bcr+et%3A%25` (RFC 6749, 2.3.1), and of the same with `other`.
    assert_eq!(seen[0].header("authorization"), Some("Basic bmlnaHRseStiYXRjaDpzZSUyQmNyK2V0JTNBJTI1"));
    assert_eq!(seen[1].header("authorization"), Some("Basic bmlnaHRseStiYXRjaDpvdGhlcg=="));
    assert_eq!(seen[0].form("grant_type").unwrap(), "client_credentials");
    assert_eq!(seen[0].form("scope").unwrap(), "invoices:read invoices:write");
    assert_eq!(seen[0].form("resource").unwrap(), "https://relay.example.com");
    assert_eq!(seen[0].form("client_secret"), None);
}

#[tokio::test]
async fn a_key_signs_an_assertion_that_is_good_once() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Fake::http(granting).await;
    let kinds = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "ES256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "ES384"),
        (&rcgen::PKCS_ED25519, "EdDSA"),
    ];
    for (kind, algorithm) in kinds {
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let machine = Machine::Key(file(&dir, "key.pem", &key.serialize_pem()));
        for _ in 0..2 {
            ask(&machine, &issuer, &Prover::default()).await.unwrap();
        }
        let seen = issuer.seen();
        let sent: Vec<_> =
            seen[seen.len() - 2..].iter().map(|s| s.form("client_assertion").unwrap()).collect();
        let parts = |jwt: &str| -> (Value, Value) {
            let mut parts = jwt.split('.').map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap());
            let mut next = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
            (next(), next())
        };
        let ((header, claims), (_, other)) = (parts(&sent[0]), parts(&sent[1]));
        assert_eq!(header["alg"], algorithm);
        assert_eq!(
            (claims["iss"].as_str(), claims["sub"].as_str()),
            (Some("nightly batch"), Some("nightly batch"))
        );
        assert_eq!(claims["aud"], issuer.url("/token"));
        assert_ne!(claims["jti"], other["jti"]);
        assert_eq!(seen[0].form("client_assertion_type").unwrap(), ASSERTION_TYPE);
        assert_eq!(
            (seen[0].header("authorization"), seen[0].form("client_id")),
            (None, Some("nightly batch".into()))
        );
    }
    let machine =
        Machine::Key(file(&dir, "key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"));
    let error = ask(&machine, &issuer, &Prover::default()).await.err().unwrap();
    assert!(error.is_of_client() && error.to_string().contains("PKCS#8"), "{error}");
}

#[tokio::test]
async fn a_workload_token_is_the_assertion_as_it_stands_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::TokenFile(file(&dir, "token", "a.b.c\n"));
    let issuer = Fake::http(granting).await;
    ask(&machine, &issuer, &Prover::default()).await.unwrap();
    file(&dir, "token", "d.e.f");
    ask(&machine, &issuer, &Prover::default()).await.unwrap();
    let sent: Vec<_> = issuer.seen().iter().map(|seen| seen.form("client_assertion").unwrap()).collect();
    assert_eq!(sent, ["a.b.c", "d.e.f"]);
    std::fs::remove_file(machine.path()).unwrap();
    let error = ask(&machine, &issuer, &Prover::default()).await.err().unwrap();
    assert!(error.is_of_client() && error.to_string().contains("token"), "{error}");
}

#[tokio::test]
async fn a_token_endpoint_that_wants_a_nonce_gets_it_and_a_bound_token_needs_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::SecretFile(file(&dir, "secret", "s"));
    let issuer = Fake::http(|seen| {
        let Some(proof) = seen.header("dpop") else {
            return answer(200, &json!({ "access_token": "a", "token_type": "DPoP" }));
        };
        let (_, claims) = opened(proof);
        assert_eq!(claims["htm"], "POST");
        assert!(claims["htu"].as_str().unwrap().ends_with("/token") && claims.get("ath").is_none());
        let mut given = if claims["nonce"] == "n1" {
            answer(200, &json!({ "access_token": "a", "token_type": "DPoP", "expires_in": 60 }))
        } else {
            answer(400, &json!({ "error": "use_dpop_nonce" }))
        };
        given.headers_mut().insert("dpop-nonce", http::HeaderValue::from_static("n1"));
        given
    })
    .await;
    let nonce = Nonce::default();
    let prover = || Prover::new(Some(Arc::new(ProofKey::generate().unwrap())), nonce.clone());
    let granted = ask(&machine, &issuer, &prover()).await.unwrap();
    assert!(granted.access(0).bound);
    assert_eq!(issuer.seen().len(), 2);
    ask(&machine, &issuer, &prover()).await.unwrap();
    assert_eq!(issuer.seen().len(), 3, "the nonce is remembered");
    assert!(matches!(ask(&machine, &issuer, &Prover::default()).await, Err(IssuerError::Nonsense(_))));
    let silent =
        Fake::http(|_| answer(StatusCode::BAD_REQUEST.as_u16(), &json!({ "error": "use_dpop_nonce" }))).await;
    let refused = ask(&machine, &silent, &prover()).await.err().unwrap();
    assert_eq!(refused.to_string(), "the issuer says use_dpop_nonce");
    assert_eq!(silent.seen().len(), 1, "without a nonce there is nothing to try again with");
}
