//! Proofs that an attacker or a mistaken program sends, each refused for its own reason; and any text at all.

use proptest::prelude::*;

use super::*;
use crate::cost;

#[test]
fn hostile_proofs_are_refused_each_for_its_reason() {
    let (caller, rsa) = (Prover::new(Algorithm::Es256), Prover::new(Algorithm::Rs256));
    let thief = Prover::new(Algorithm::Es256);
    let proofs = proofs(NonceUse::Optional);
    let good = caller.claiming(&json!({ "jti": "kept" }));
    let parts: Vec<&str> = good.split('.').collect();
    let (head, claims) =
        (with(caller.header(), &json!({ "alg": "ES256" })).to_string(), caller.claims().to_string());
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let (jwk, header) = (caller.header()["jwk"].clone(), |changes: Value| caller.headed(&changes));
    let claiming = |changes: Value| caller.claiming(&changes);
    let keyed = |changes: Value| caller.headed(&json!({ "jwk": with(jwk.clone(), &changes) }));
    let rsa_jwk = rsa.header()["jwk"].clone();
    for (proof, expected) in [
        // No proof at all.
        (String::new(), "proof_malformed"),
        ("x".to_owned(), "proof_malformed"),
        ("..".to_owned(), "proof_malformed"),
        ("a".repeat(4097), "proof_too_long"),
        (claiming(json!({ "padding": "a".repeat(4000) })), "proof_too_long"),
        (format!("{}.{}", parts[0], parts[1]), "proof_malformed"),
        (format!("{}.{}.", parts[0], parts[1]), "proof_malformed"),
        (format!("{good}.{}", parts[2]), "proof_malformed"),
        (format!("{good}, {good}"), "proof_malformed"),
        (format!("{good},{good}"), "proof_malformed"),
        (format!(" {good}"), "proof_malformed"),
        (format!("{good}="), "proof_malformed"),
        (format!("{}=.{}.{}", parts[0], parts[1], parts[2]), "proof_malformed"),
        (caller.signer.sign(&format!("{head} x"), &claims), "proof_malformed"),
        (caller.signer.sign(&head, &format!("{claims}{{}}")), "proof_malformed"),
        (caller.signer.sign(&head, "[]"), "proof_malformed"),
        (caller.signer.sign(&head, &claims.replacen('{', "{\"htm\":\"POST\",", 1)), "proof_malformed"),
        (caller.signer.sign(&head, &claims.replacen('{', "{\"\\u0068tm\":\"GET\",", 1)), "proof_malformed"),
        (caller.signer.sign(&head.replacen('{', "{\"typ\":\"dpop+jwt\",", 1), &claims), "proof_malformed"),
        (
            caller.signer.sign(
                &head,
                &claims.replacen('{', &format!("{{\"a\":{}{},", "[".repeat(40), "]".repeat(40)), 1),
            ),
            "proof_malformed",
        ),
        // Another kind of JWT: the access token itself, an ID token, a client's assertion.
        (header(json!({ "typ": "at+jwt" })), "proof_type"),
        (header(json!({ "typ": "JWT" })), "proof_type"),
        (header(json!({ "typ": null })), "proof_type"),
        (header(json!({ "typ": "" })), "proof_type"),
        (header(json!({ "typ": "dpop+jwt " })), "proof_type"),
        (header(json!({ "typ": 1 })), "proof_malformed"),
        (header(json!({ "crit": ["exp"] })), "proof_critical_extension"),
        (header(json!({ "b64": false })), "proof_critical_extension"),
        // The algorithm is ours to choose.
        (header(json!({ "alg": "none" })), "proof_algorithm"),
        (header(json!({ "alg": "HS256" })), "proof_algorithm"),
        (header(json!({ "alg": "es256" })), "proof_algorithm"),
        (header(json!({ "alg": "" })), "proof_algorithm"),
        (header(json!({ "alg": "ES384" })), "proof_algorithm"),
        (header(json!({ "alg": "RS512" })), "proof_algorithm"),
        (header(json!({ "alg": ["ES256"] })), "proof_malformed"),
        (format!("{}.{}.", encode(r#"{"alg":"none","typ":"dpop+jwt"}"#), parts[1]), "proof_algorithm"),
        // The key: there, public, fit for the algorithm.
        (header(json!({ "jwk": null })), "proof_key"),
        (header(json!({ "jwk": null, "kid": "caller", "x5c": ["QUJD"] })), "proof_key"),
        (header(json!({ "jwk": jwk.to_string() })), "proof_key"),
        (header(json!({ "jwk": [jwk] })), "proof_key"),
        (header(json!({ "jwk": {} })), "proof_key"),
        (header(json!({ "jwk": { "kty": "oct", "k": "QUJD" } })), "proof_private_key"),
        (header(json!({ "jwk": { "kty": "oct" } })), "proof_key"),
        (keyed(json!({ "d": "QUJD" })), "proof_private_key"),
        (keyed(json!({ "d": "" })), "proof_private_key"),
        (keyed(json!({ "kty": "RSA" })), "proof_key"),
        (keyed(json!({ "kty": "ec" })), "proof_key"),
        (keyed(json!({ "crv": "P-384" })), "proof_key"),
        (keyed(json!({ "crv": "secp256k1" })), "proof_key"),
        (keyed(json!({ "alg": "RS256" })), "proof_key"),
        (keyed(json!({ "use": "enc" })), "proof_key"),
        (keyed(json!({ "key_ops": ["sign"] })), "proof_key"),
        (keyed(json!({ "x": "QUJD" })), "proof_key"),
        (keyed(json!({ "x": format!("{}=", jwk["x"].as_str().unwrap()) })), "proof_key"),
        (header(json!({ "jwk": rsa_jwk })), "proof_key"),
        (
            header(json!({ "alg": "RS256", "jwk": with(rsa_jwk.clone(), &json!({ "dp": "QUJD" })) })),
            "proof_private_key",
        ),
        (
            header(json!({ "alg": "RS256", "jwk": with(rsa_jwk, &json!({ "n": "qqqqqqqqqqqq" })) })),
            "proof_key",
        ),
        // Another key than the token's, whoever's signature it is.
        (thief.claiming(&json!({})), "wrong_key"),
        (rsa.claiming(&json!({})), "wrong_key"),
        (keyed(json!({ "x": jwk["y"], "y": jwk["x"] })), "wrong_key"),
        (thief.headed(&json!({ "jwk": jwk })), "proof_bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], encode("not a signature")), "proof_bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode([0; 64])), "proof_bad_signature"),
        (
            format!("{}.{}.{}", parts[0], encode(&caller.claims().to_string()), parts[2]),
            "proof_bad_signature",
        ),
        // Another request.
        (claiming(json!({ "htm": "POST" })), "proof_method"),
        (claiming(json!({ "htm": "get" })), "proof_method"),
        (claiming(json!({ "htm": "GET " })), "proof_method"),
        (claiming(json!({ "htm": null })), "proof_claim"),
        (claiming(json!({ "htm": ["GET"] })), "proof_claim"),
        (claiming(json!({ "htu": null })), "proof_claim"),
        (claiming(json!({ "htu": [URI] })), "proof_claim"),
        (claiming(json!({ "htu": "" })), "proof_address"),
        (claiming(json!({ "htu": "/billing/v1/invoices/7" })), "proof_address"),
        (claiming(json!({ "htu": "https://relay.example.com/billing/v1/invoices/8" })), "proof_address"),
        (claiming(json!({ "htu": "https://relay.example.com/billing/v1/invoices" })), "proof_address"),
        (claiming(json!({ "htu": "https://relay.example.com/" })), "proof_address"),
        (claiming(json!({ "htu": "https://other.example.com/billing/v1/invoices/7" })), "proof_address"),
        (claiming(json!({ "htu": URI.replace("https", "http") })), "proof_address"),
        (claiming(json!({ "htu": URI.replace(".com", ".com:8443") })), "proof_address"),
        (claiming(json!({ "htu": "https://127.0.0.1:8443/v1/invoices/7" })), "proof_address"),
        // Another token.
        (claiming(json!({ "ath": null })), "proof_claim"),
        (claiming(json!({ "ath": 1 })), "proof_claim"),
        (claiming(json!({ "ath": "" })), "proof_token"),
        (claiming(json!({ "ath": URL_SAFE_NO_PAD.encode(hash("another")) })), "proof_token"),
        (claiming(json!({ "ath": format!("{}=", URL_SAFE_NO_PAD.encode(hash(TOKEN))) })), "proof_token"),
        (claiming(json!({ "ath": TOKEN })), "proof_token"),
        // Another minute.
        (claiming(json!({ "iat": NOW - 61 })), "proof_stale"),
        (claiming(json!({ "iat": 0 })), "proof_stale"),
        (claiming(json!({ "iat": NOW + 31 })), "proof_early"),
        (claiming(json!({ "iat": 1e18 })), "proof_early"),
        (claiming(json!({ "iat": null })), "proof_claim"),
        (claiming(json!({ "iat": NOW.to_string() })), "proof_claim"),
        (claiming(json!({ "iat": -1 })), "proof_claim"),
        (claiming(json!({ "iat": 1e300 })), "proof_claim"),
        // No name by which it could be known again.
        (claiming(json!({ "jti": null })), "proof_claim"),
        (claiming(json!({ "jti": "" })), "proof_claim"),
        (claiming(json!({ "jti": 7 })), "proof_claim"),
        (claiming(json!({ "jti": "a".repeat(257) })), "proof_claim"),
    ] {
        assert_eq!(caller.judge(&proofs, &proof, now()), expected, "{proof}");
    }
    // Nothing of all that spent the good one; and its jti is spent for other proofs of its key, not for other keys.
    assert_eq!(caller.judge(&proofs, &good, now()), "taken");
    assert_eq!(
        caller.judge(&proofs, &claiming(json!({ "jti": "kept", "iat": NOW + 1 })), now()),
        "proof_replayed"
    );
    assert_eq!(thief.judge(&proofs, &thief.claiming(&json!({ "jti": "kept" })), now()), "taken");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_is_judged_without_a_panic(text in "\\PC{0,80}(\\.\\PC{0,80}){0,4}", header in "\\PC{0,80}", claims in "\\PC{0,80}") {
        let proofs = proofs(NonceUse::Never);
        let encoded = format!("{}.{}.QUJD", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        for jwt in [text.as_str(), &encoded] {
            let proof = Proof { jwt, method: "GET", uri: URI };
            prop_assert!(proofs.judge(&proof, &[0; 32], &[0; 32], now()).is_err());
        }
    }
}

proptest! {
    #[test]
    fn a_changed_byte_spoils_a_proof(place in any::<proptest::sample::Index>(), byte in 0x20u8..0x7f) {
        thread_local!(static CALLER: Prover = Prover::new(Algorithm::EdDsa));
        CALLER.with(|caller| {
            let proofs = proofs(NonceUse::Never);
            let mut bytes = caller.claiming(&json!({})).into_bytes();
            let place = place.index(bytes.len());
            prop_assume!(bytes[place] != byte);
            bytes[place] = byte;
            prop_assert_ne!(caller.judge(&proofs, std::str::from_utf8(&bytes).unwrap(), now()), "taken");
            Ok(())
        })?;
    }
}

/// As [`crate::token`]'s tokens: the cost of a refusal is bounded, whatever comes as a proof.
#[test]
fn no_proof_takes_long_to_refuse() {
    let (caller, thief) = (Prover::new(Algorithm::Es256), Prover::new(Algorithm::Es256));
    let (proofs, bound) = (proofs(NonceUse::Optional), caller.thumbprint());
    let refused = |jwt: &str| {
        let proof = Proof { jwt, method: "GET", uri: URI };
        assert!(proofs.judge(&proof, &bound, &hash(TOKEN), now()).is_err(), "{jwt}");
    };
    let forged = thief.headed(&json!({ "jwk": caller.header()["jwk"] }));
    let limit = cost::LIMIT + cost::least(|| refused(&forged));
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let number = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
    let rsa = |n: usize, e: usize| {
        let jwk = json!({ "kty": "RSA", "n": number(n), "e": number(e) });
        thief.headed(&json!({ "alg": "RS256", "jwk": jwk }))
    };
    for heavy in [
        ".".repeat(4096),
        "e30.".repeat(1024),
        format!("{}.e30.QUJD", encode(&"[".repeat(3000))),
        format!("{}.e30.QUJD", encode(&"{\"a\":".repeat(500))),
        // Keys that cost much to look at; those of strangers cost no signature.
        rsa(1024, 3),
        rsa(512, 512),
        rsa(2000, 3),
        caller.claiming(&json!({ "htu": format!("{URI}/{}", "%2e/".repeat(500)) })),
        caller.claiming(&json!({ "htu": format!("{URI}/{}", "a/../".repeat(400)) })),
        caller.claiming(&json!({ "iat": "9".repeat(2000) })),
        caller.claiming(&json!({ "jti": "\u{1}".repeat(300) })),
        caller.claiming(&json!({ "htm": "GET ".repeat(500) })),
    ] {
        assert!(cost::is_within(limit, || refused(&heavy)), "{heavy}");
    }
    let header = with(caller.header(), &json!({ "alg": "ES256" })).to_string();
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..4200), claims in "\\PC{0,2000}")| {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(cost::is_within(limit, || refused(&text)), "{:?}", text);
        for proof in [caller.signer.sign(&text, &claims), caller.signer.sign(&header, &claims)] {
            prop_assert!(cost::is_within(limit, || refused(&proof)), "{:?} {:?}", text, claims);
        }
    });
}
