//! How the relay proves who asks, in each of five ways.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;

/// A file with these words, for as long as the directory is there.
fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn secrets_and_tokens_go_where_they_belong() {
    let dir = tempfile::tempdir().unwrap();
    let secret = file(&dir, "secret", "se+cr et:%/&=~\n");
    let id = "https://relay.example.com/rs";

    let basic = format!("auth = \"basic\", client_id = \"{id}\", client_secret = {{ file = \"{secret}\" }}");
    let (issuer, issuers) = asked(&basic).await;
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    let (authorization, form) = issuer.said();
    let both = "https%3A%2F%2Frelay.example.com%2Frs:se%2Bcr+et%3A%25%2F%26%3D%7E";
    assert_eq!(authorization.unwrap(), format!("Basic {}", STANDARD.encode(both)));
    assert_eq!(form.len(), 2, "{form:?}");
    assert_eq!((form["token"].as_str(), form["token_type_hint"].as_str()), ("opaque", "access_token"));

    let post = format!("auth = \"post\", client_id = \"{id}\", client_secret = {{ file = \"{secret}\" }}");
    let (issuer, issuers) = asked(&post).await;
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    let (authorization, form) = issuer.said();
    assert_eq!(authorization, None);
    assert_eq!((form["client_id"].as_str(), form["client_secret"].as_str()), (id, "se+cr et:%/&=~"));

    let token = file(&dir, "token", "my-own-token");
    let (issuer, issuers) = asked(&format!("auth = \"bearer\", token = {{ file = \"{token}\" }}")).await;
    assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
    assert_eq!(issuer.said().0.unwrap(), "Bearer my-own-token");
}

#[tokio::test]
async fn assertions_are_signed_for_the_issuer_and_for_once() {
    let dir = tempfile::tempdir().unwrap();
    for algorithm in [Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa, Algorithm::Rs256] {
        let signer = Signer::new(algorithm, "k");
        let key = file(&dir, "key", &signer.pem());
        let how = format!(
            "auth = \"private_key_jwt\", client_id = \"relay\", key = \"{key}\", kid = \"k\", cache = \"0s\""
        );
        let (issuer, issuers) = asked(&how).await;
        let mut ids = Vec::new();
        for _ in 0..2 {
            assert_eq!(code(&issuers, "opaque", now()).await, "accepted");
            let (authorization, form) = issuer.said();
            assert_eq!((authorization, form["client_id"].as_str()), (None, "relay"));
            assert!(form["client_assertion_type"].ends_with(":jwt-bearer"));
            let parts: Vec<&str> = form["client_assertion"].split('.').collect();
            let part = |at: usize| -> Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[at]).unwrap()).unwrap()
            };
            assert_eq!((&part(0)["alg"], &part(0)["kid"]), (&json!(algorithm.to_string()), &json!("k")));
            let claims = part(1);
            assert_eq!(
                (&claims["iss"], &claims["sub"], &claims["aud"]),
                (&json!("relay"), &json!("relay"), &json!(issuer.url))
            );
            assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
            assert!(signer.signed(&format!("{}.{}", parts[0], parts[1]), parts[2]));
            ids.push(claims["jti"].clone());
        }
        assert_ne!(ids[0], ids[1]);
    }
}

#[tokio::test]
async fn what_cannot_prove_anything_is_found_at_the_start_and_never_asks() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, garbage) = (dir.path().join("missing").display().to_string(), file(&dir, "garbage", "abc"));
    for (how, why) in [
        (
            format!("client_id = \"r\", auth = \"basic\", client_secret = {{ file = \"{missing}\" }}"),
            "secret file",
        ),
        (
            format!("auth = \"bearer\", token = {{ file = \"{}\" }}", file(&dir, "two", "a\nb")),
            "no header may",
        ),
        (format!("client_id = \"r\", auth = \"private_key_jwt\", key = \"{missing}\""), "secret file"),
        (
            format!("client_id = \"r\", auth = \"private_key_jwt\", key = \"{garbage}\""),
            "no key that can sign",
        ),
        (
            format!("client_id = \"r\", auth = \"mtls\", cert = \"{missing}\", key = \"{garbage}\""),
            "certificate file",
        ),
        (format!("client_id = \"r\", auth = \"mtls\", cert = \"{garbage}\", key = \"{garbage}\""), "not PEM"),
    ] {
        let settings = settings("https://id.example.com", &table("auto", &how));
        let issuers = Issuers::new(vec![settings]).unwrap();
        let text = format!("{:?}", issuers.check_secrets().unwrap_err());
        assert!(text.contains("introspect") && text.contains(why), "{how}: {text}");
        assert!(!text.contains("abc"), "{text}");
        assert_eq!(code(&issuers, "opaque", now()).await, "introspection_unavailable", "{how}");
    }
}
