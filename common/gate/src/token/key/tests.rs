use super::*;
use crate::token::tests::support::{Signer, with};
use serde_json::json;

const ALL: [Algorithm; 9] = [
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Es256,
    Algorithm::Es384,
    Algorithm::EdDsa,
];

#[test]
fn each_algorithm_checks_its_own_signatures_and_no_other() {
    for algorithm in ALL {
        assert_eq!(Algorithm::named(&algorithm.to_string()), Some(algorithm));
        let owner = Signer::new(algorithm, "k");
        let key = Key::new(&owner.jwk(), &ALL).unwrap();
        assert_eq!((key.algorithm(), key.kid()), (algorithm, Some("k")));
        let token = owner.sign("{}", "{}");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        assert!(key.verifies(signed, signature), "{algorithm}");
        assert!(
            !key.verifies("other", signature) && !key.verifies(signed, "QUJD") && !key.verifies(signed, "!")
        );
        let other = Key::new(&Signer::new(algorithm, "k").jwk(), &ALL).unwrap();
        assert!(!other.verifies(signed, signature), "{algorithm}");
    }
    for name in ["none", "HS256", "rs256", "ES512", "RSA-OAEP", ""] {
        assert_eq!(Algorithm::named(name), None, "{name}");
    }
}

#[test]
fn one_key_has_one_algorithm() {
    let jwk = with(Signer::new(Algorithm::Ps256, "k").jwk(), &json!({ "alg": null }));
    let fits = |allowed: &[Algorithm]| Key::new(&jwk, allowed).map(|key| key.algorithm());
    assert_eq!(fits(&ALL), Some(Algorithm::Rs256));
    assert_eq!(fits(&[Algorithm::Es256, Algorithm::Ps256, Algorithm::Rs256]), Some(Algorithm::Ps256));
    assert_eq!(fits(&[Algorithm::Es256]), None);
    let stated = with(jwk.clone(), &json!({ "alg": "PS384" }));
    assert_eq!(Key::new(&stated, &ALL).unwrap().algorithm(), Algorithm::Ps384);
    assert!(Key::new(&stated, &[Algorithm::Rs256]).is_none());
}

#[test]
fn unfit_keys_are_left_out() {
    let ec = Signer::new(Algorithm::Es256, "e").jwk();
    let rsa = Signer::new(Algorithm::Rs256, "r").jwk();
    let ed = Signer::new(Algorithm::EdDsa, "d").jwk();
    let small = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let huge = URL_SAFE_NO_PAD.encode([0xff; 1025]);
    for (base, changes, fit) in [
        (&ec, json!({}), true),
        (&ec, json!({ "use": null, "alg": null, "kid": null }), true),
        (&ec, json!({ "use": "enc" }), false),
        (&ec, json!({ "use": "x" }), false),
        (&ec, json!({ "key_ops": ["verify"] }), true),
        (&ec, json!({ "key_ops": ["deriveKey"] }), false),
        (&ec, json!({ "key_ops": [] }), false),
        (&ec, json!({ "alg": "ES384" }), false),
        (&ec, json!({ "alg": "RS256" }), false),
        (&ec, json!({ "alg": "ECDH-ES" }), false),
        (&ec, json!({ "crv": "P-384" }), false),
        (&ec, json!({ "crv": "P-521" }), false),
        (&ec, json!({ "crv": "secp256k1" }), false),
        (&ec, json!({ "x": "AAAA" }), false),
        (&ec, json!({ "y": null }), false),
        (&ec, json!({ "kty": "oct", "k": "QUJD" }), false),
        (&ec, json!({ "kty": "RSA" }), false),
        (&ec, json!({ "kid": 7 }), false),
        (&rsa, json!({}), true),
        (&rsa, json!({ "alg": "ES256" }), false),
        (&rsa, json!({ "alg": "HS256" }), false),
        (&rsa, json!({ "alg": "RSA-OAEP" }), false),
        (&rsa, json!({ "n": small }), false),
        (&rsa, json!({ "n": huge }), false),
        (&rsa, json!({ "n": "" }), false),
        (&rsa, json!({ "e": null }), false),
        (&ed, json!({}), true),
        (&ed, json!({ "crv": "X25519" }), false),
        (&ed, json!({ "crv": "Ed448" }), false),
        (&ed, json!({ "x": "AAAA" }), false),
    ] {
        assert_eq!(Key::new(&with(base.clone(), &changes), &ALL).is_some(), fit, "{changes}");
    }
    for odd in
        [json!(null), json!([]), json!("x"), json!({}), json!({ "kty": "oct", "k": "QUJD", "alg": "HS256" })]
    {
        assert!(Key::new(&odd, &ALL).is_none(), "{odd}");
    }
}
