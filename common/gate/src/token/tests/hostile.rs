//! Tokens that an attacker or a mistaken program sends, each refused for its own reason.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// The same bytes, but for bits that the encoding leaves unused: the last letter of 64 bytes holds only two.
fn unused_bits(signature: &str) -> String {
    let (most, last) = signature.split_at(signature.len() - 1);
    let other = match last {
        "A" => 'B',
        "Q" => 'R',
        "g" => 'h',
        _ => 'x',
    };
    format!("{most}{other}")
}

/// Both halves of a signature as the order of P-256: zero, to who forgets to look.
fn order_of_p256() -> [u8; 64] {
    let half = b"\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51";
    let mut both = [0; 64];
    both[..32].copy_from_slice(half);
    both[32..].copy_from_slice(half);
    both
}

/// A good signature in the form that certificates have (X.690), not JWS (RFC 7518 3.4).
fn der(signature: &str) -> String {
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let integer = |half: &[u8]| [&[2, 33, 0], half].concat();
    let body = [integer(&bytes[..32]), integer(&bytes[32..])].concat();
    let length = u8::try_from(body.len()).unwrap();
    URL_SAFE_NO_PAD.encode([&[0x30, length], body.as_slice()].concat())
}

#[tokio::test]
async fn hostile_tokens_are_refused_each_for_its_reason() {
    let (es, rsa, ed) = (
        Signer::new(Algorithm::Es256, "es"),
        Signer::new(Algorithm::Rs256, "rsa"),
        Signer::new(Algorithm::EdDsa, "ed"),
    );
    let stranger = Signer::new(Algorithm::Es256, "es");
    let issuer = FakeIssuer::with_keys(&[&es, &rsa, &ed]).await;
    let evil = FakeIssuer::with_keys(&[&stranger]).await;
    let issuers = issuers(&issuer, "algorithms = [\"RS256\", \"ES256\"]");
    let claims = good_claims(&issuer.url);
    let good = es.token(&claims);
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed =
        |header: Value| es.token_with(&with(json!({ "kid": "es", "typ": "at+jwt" }), &header), &claims);
    let claiming = |changes: Value| es.token(&with(claims.clone(), &changes));
    let text = claims.to_string();
    let head = r#"{"alg":"ES256","kid":"es","typ":"at+jwt"}"#;

    // The public key as an HMAC secret, in the forms an attacker would try.
    let hmac_signed = |secret: &[u8], kid: &str| {
        let head = format!(r#"{{"alg":"HS256","kid":"{kid}","typ":"at+jwt"}}"#);
        let signed = format!("{}.{}", encode(&head), encode(&text));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let modulus = URL_SAFE_NO_PAD.decode(rsa.jwk()["n"].as_str().unwrap()).unwrap();

    let (mut refused, mut wrong) = (0, Vec::new());
    for (token, expected) in [
        (good.clone(), "accepted"),
        (rsa.token(&claims), "accepted"),
        // Not a JWS at all.
        ("x".repeat(8193), "too_long"),
        (String::new(), "malformed"),
        ("opaque-token-with.two.dots".to_owned(), "malformed"),
        (format!("{}.{}", parts[0], parts[1]), "malformed"),
        (format!("{}.{}.", parts[0], parts[1]), "malformed"),
        (format!("{good}.{}", parts[2]), "malformed"),
        (format!("{}=.{}.{}", parts[0], parts[1], parts[2]), "malformed"),
        (format!("{good} "), "malformed"),
        (format!("{good}\n"), "malformed"),
        (format!("Bearer {good}"), "malformed"),
        (good.replace('.', ".."), "malformed"),
        (good.replace('.', "\u{ff0e}"), "malformed"),
        // Other serialisations (RFC 7515 7.2), and an encrypted token (RFC 7516 7.1).
        (
            json!({ "payload": parts[1], "protected": parts[0], "signature": parts[2] }).to_string(),
            "malformed",
        ),
        (
            format!(
                "{}.{}.{}.{}.{}",
                encode(r#"{"alg":"dir","enc":"A256GCM"}"#),
                "",
                "aXY",
                "Y2lwaGVy",
                "dGFn"
            ),
            "algorithm",
        ),
        // The same bytes in another alphabet, with padding, or with bits that the encoding leaves unused.
        (format!("{}.{}.{}+/", parts[0], parts[1], &parts[2][..84]), "malformed"),
        (format!("{}.{}.{}==", parts[0], parts[1], parts[2]), "malformed"),
        (format!("{}.{}.{}", parts[0], parts[1], unused_bits(parts[2])), "malformed"),
        (es.sign("[]", &text), "malformed"),
        (es.sign("null", &text), "malformed"),
        (es.sign(head, "[]"), "malformed"),
        (es.sign(head, "\"ada\""), "malformed"),
        (es.sign(&head.replacen('{', r#"{"alg":"none","#, 1), &text), "malformed"),
        (es.sign(&head.replacen('{', r#"{"kid":"rsa","#, 1), &text), "malformed"),
        (es.sign(&format!("\u{feff}{head}"), &text), "malformed"),
        (es.sign(head, &text.replace("ada", "\\ud800")), "malformed"),
        (es.sign(head, &text.replace("1800000300", "1e999")), "malformed"),
        (es.sign(head, &text.replace("1800000300", "01800000300")), "malformed"),
        (es.sign(head, &text.replacen('{', "{/**/", 1)), "malformed"),
        (es.sign(head, &text.replace('}', ",}")), "malformed"),
        (es.sign(&format!("{head} x"), &text), "malformed"),
        (es.sign(head, &format!("{text}{{}}")), "malformed"),
        (es.sign(head, &text.replacen('{', "{\"sub\":\"bob\",", 1)), "malformed"),
        (es.sign(head, &text.replacen('{', "{\"\\u0073ub\":\"bob\",", 1)), "malformed"),
        (
            es.sign(head, &text.replacen('{', &format!("{{\"a\":{}{},", "[".repeat(40), "]".repeat(40)), 1)),
            "malformed",
        ),
        (es.sign(head, &text.replace('"', "'")), "malformed"),
        (es.sign(head, &text.replace("ada", "a\\u0000da")), "malformed"),
        // The algorithm is the issuer's to choose.
        (format!("{}.{}.", encode(r#"{"alg":"none","typ":"at+jwt"}"#), parts[1]), "algorithm"),
        (format!("{}.{}.{}", encode(r#"{"alg":"none","typ":"at+jwt"}"#), parts[1], parts[2]), "algorithm"),
        (signed(json!({ "alg": "nOnE" })), "algorithm"),
        (hmac_signed(&modulus, "rsa"), "algorithm"),
        (hmac_signed(rsa.jwk()["n"].as_str().unwrap().as_bytes(), "rsa"), "algorithm"),
        (hmac_signed(rsa.jwk().to_string().as_bytes(), "es"), "algorithm"),
        (ed.token(&claims), "algorithm"),
        (signed(json!({ "alg": "PS256" })), "algorithm"),
        (signed(json!({ "alg": "es256" })), "algorithm"),
        (signed(json!({ "alg": "ES256K" })), "algorithm"),
        (signed(json!({ "alg": "ES512" })), "algorithm"),
        (signed(json!({ "alg": "dir" })), "algorithm"),
        (signed(json!({ "alg": "" })), "algorithm"),
        (signed(json!({ "alg": ["ES256"] })), "malformed"),
        (signed(json!({ "alg": { "ES256": true } })), "malformed"),
        // A key of another kind, or of that name elsewhere.
        (es.token_with(&json!({ "alg": "RS256", "kid": "rsa", "typ": "at+jwt" }), &claims), "bad_signature"),
        (es.token_with(&json!({ "alg": "RS256", "kid": "es", "typ": "at+jwt" }), &claims), "unknown_key"),
        (stranger.token(&claims), "bad_signature"),
        (signed(json!({ "kid": "new" })), "unknown_key"),
        (signed(json!({ "kid": "../../etc/passwd" })), "unknown_key"),
        (signed(json!({ "kid": "' OR 1=1 --" })), "unknown_key"),
        (signed(json!({ "kid": "" })), "unknown_key"),
        (signed(json!({ "kid": "ES" })), "unknown_key"),
        (signed(json!({ "kid": 1 })), "malformed"),
        (signed(json!({ "kid": ["es"] })), "malformed"),
        (rsa.token_with(&json!({ "kid": "es", "typ": "at+jwt", "alg": "ES256" }), &claims), "bad_signature"),
        (stranger.token_with(&json!({ "typ": "at+jwt" }), &claims), "unknown_key"),
        (es.token_with(&json!({ "typ": "at+jwt" }), &claims), "accepted"),
        (format!("{}.{}.{}", parts[0], encode(&text.replace("ada", "root")), parts[2]), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], encode("not a signature")), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode([0; 64])), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode([255; 64])), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode(order_of_p256())), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], &parts[2][..84]), "bad_signature"),
        (format!("{}.{}.AA{}", parts[0], parts[1], parts[2]), "bad_signature"),
        (format!("{}.{}.{}", parts[0], parts[1], der(parts[2])), "bad_signature"),
        (
            format!("{}.{}.{}", parts[0], encode(&text), rsa.token(&claims).rsplit('.').next().unwrap()),
            "bad_signature",
        ),
        // Keys that the token brings along, and extensions.
        (
            stranger.token_with(&json!({ "kid": "es", "typ": "at+jwt", "jwk": stranger.jwk() }), &claims),
            "bad_signature",
        ),
        (
            stranger.token_with(
                &json!({ "kid": "x", "typ": "at+jwt", "jku": format!("{}/keys", evil.url) }),
                &claims,
            ),
            "unknown_key",
        ),
        (
            stranger.token_with(
                &json!({ "kid": "x", "typ": "at+jwt", "x5u": format!("{}/keys", evil.url), "x5c": ["QUJD"] }),
                &claims,
            ),
            "unknown_key",
        ),
        (signed(json!({ "jku": format!("{}/keys", evil.url) })), "accepted"),
        (signed(json!({ "crit": ["exp"], "exp": NOW })), "critical_extension"),
        (signed(json!({ "b64": false })), "critical_extension"),
        (signed(json!({ "b64": true })), "critical_extension"),
        (signed(json!({ "crit": [] })), "critical_extension"),
        (signed(json!({ "crit": "b64" })), "critical_extension"),
        // The type.
        (signed(json!({ "typ": "JWT" })), "wrong_type"),
        (signed(json!({ "typ": null })), "wrong_type"),
        (signed(json!({ "typ": "" })), "wrong_type"),
        (signed(json!({ "typ": "at+jwt2" })), "wrong_type"),
        (signed(json!({ "typ": "dpop+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "logout+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "secevent+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "token-introspection+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "postern-assertion+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "text/at+jwt" })), "wrong_type"),
        (signed(json!({ "typ": "at+jwt " })), "wrong_type"),
        (signed(json!({ "typ": "application/application/at+jwt" })), "wrong_type"),
        (signed(json!({ "typ": 1 })), "malformed"),
        (signed(json!({ "typ": "Application/AT+jwt" })), "accepted"),
        // The issuer, exactly.
        (claiming(json!({ "iss": null })), "missing_claim"),
        (claiming(json!({ "iss": [issuer.url] })), "bad_claim"),
        (claiming(json!({ "iss": format!("{}/", issuer.url) })), "unknown_issuer"),
        (claiming(json!({ "iss": issuer.url.to_uppercase() })), "unknown_issuer"),
        (claiming(json!({ "iss": format!("{} ", issuer.url) })), "unknown_issuer"),
        (claiming(json!({ "iss": format!("{}#", issuer.url) })), "unknown_issuer"),
        (claiming(json!({ "iss": format!("{}/../", issuer.url) })), "unknown_issuer"),
        (claiming(json!({ "iss": issuer.url.replace("127.0.0.1", "localhost") })), "unknown_issuer"),
        (claiming(json!({ "iss": issuer.url.replace("127.0.0.1", "127.1") })), "unknown_issuer"),
        (claiming(json!({ "iss": "corp" })), "unknown_issuer"),
        (claiming(json!({ "iss": "" })), "unknown_issuer"),
        (claiming(json!({ "iss": 7 })), "bad_claim"),
        (claiming(json!({ "iss": { "url": issuer.url } })), "bad_claim"),
        (stranger.token(&good_claims(&evil.url)), "unknown_issuer"),
        // The audience.
        (claiming(json!({ "aud": "other" })), "wrong_audience"),
        (claiming(json!({ "aud": [] })), "wrong_audience"),
        (claiming(json!({ "aud": ["Postern", "postern "] })), "wrong_audience"),
        (claiming(json!({ "aud": null })), "missing_claim"),
        (claiming(json!({ "aud": "postern.evil.example" })), "wrong_audience"),
        (claiming(json!({ "aud": "postern,other" })), "wrong_audience"),
        (claiming(json!({ "aud": ["postern", 1] })), "bad_claim"),
        (claiming(json!({ "aud": [["postern"]] })), "bad_claim"),
        (claiming(json!({ "aud": true })), "bad_claim"),
        (claiming(json!({ "aud": { "postern": "postern" } })), "bad_claim"),
        // Time, and what else must be there.
        (claiming(json!({ "exp": NOW - 31 })), "expired"),
        (claiming(json!({ "exp": null })), "missing_claim"),
        (claiming(json!({ "exp": "never" })), "bad_claim"),
        (claiming(json!({ "exp": (NOW + 60).to_string() })), "bad_claim"),
        (claiming(json!({ "exp": -1 })), "bad_claim"),
        (claiming(json!({ "exp": true })), "bad_claim"),
        (claiming(json!({ "exp": 1e300 })), "bad_claim"),
        (claiming(json!({ "exp": [NOW + 60] })), "bad_claim"),
        (claiming(json!({ "exp": 0 })), "expired"),
        (claiming(json!({ "nbf": "now" })), "bad_claim"),
        (claiming(json!({ "iat": {} })), "bad_claim"),
        (claiming(json!({ "iat": NOW - 864_000 })), "lives_too_long"),
        (claiming(json!({ "exp": 1_800_000_100.25 })), "accepted"),
        (claiming(json!({ "nbf": NOW + 3600 })), "not_yet_valid"),
        (claiming(json!({ "iat": NOW + 3600, "exp": NOW + 7200 })), "issued_in_future"),
        (claiming(json!({ "exp": NOW + 864_000 })), "lives_too_long"),
        (claiming(json!({ "sub": null })), "missing_claim"),
        (claiming(json!({ "sub": { "name": "ada" } })), "bad_claim"),
        (claiming(json!({ "sub": "" })), "bad_claim"),
        (claiming(json!({ "sub": 0 })), "bad_claim"),
        (claiming(json!({ "client_id": ["cli"] })), "bad_claim"),
        (claiming(json!({ "scope": { "a": true } })), "bad_claim"),
        (claiming(json!({ "groups": [{ "name": "admins" }] })), "bad_claim"),
        (claiming(json!({ "roles": 7 })), "bad_claim"),
        (claiming(json!({ "acr": ["mfa"] })), "bad_claim"),
        (claiming(json!({ "auth_time": "yesterday" })), "bad_claim"),
        // Groups that are kept elsewhere, so that a rule against one of them would not see it.
        (claiming(json!({ "_claim_names": { "groups": "s" } })), "claim_elsewhere"),
        (claiming(json!({ "hasgroups": true })), "claim_elsewhere"),
        // Bound to a key, shown without it; or bound in a way that nobody here knows.
        (
            claiming(json!({ "cnf": { "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" } })),
            "bound_as_bearer",
        ),
        (
            claiming(json!({ "cnf": { "x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2" } })),
            "bound_token",
        ),
        (
            claiming(json!({ "cnf": { "x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0" } })),
            "no_certificate",
        ),
        (claiming(json!({ "cnf": { "kid": "es" } })), "bound_token"),
        (claiming(json!({ "cnf": {} })), "bound_token"),
        (claiming(json!({ "cnf": "none" })), "bad_claim"),
        // ID tokens.
        (claiming(json!({ "nonce": "n" })), "id_token"),
        (claiming(json!({ "at_hash": "h" })), "id_token"),
        (claiming(json!({ "c_hash": "h" })), "id_token"),
        (claiming(json!({ "token_use": "id" })), "id_token"),
        (signed(json!({ "typ": "id_token" })), "wrong_type"),
        // What is wrong inside is not told while the signature is.
        (stranger.token(&with(claims.clone(), &json!({ "exp": 1 }))), "bad_signature"),
        (stranger.token(&with(claims.clone(), &json!({ "aud": "other" }))), "bad_signature"),
    ] {
        let code = code(&issuers, &token).await;
        if code != expected {
            wrong.push(format!("{expected}, but {code}: {token}"));
        }
        refused += usize::from(code != "accepted");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(refused >= 80, "{refused} kinds");
    assert_eq!(
        evil.asked("/keys") + evil.asked("/.well-known/openid-configuration"),
        0,
        "no token causes a fetch"
    );
    assert_eq!(issuer.asked("/keys"), 1);
}

#[tokio::test]
async fn refusals_show_little_of_the_token() {
    let issuer = FakeIssuer::with_keys(&[]).await;
    let issuers = issuers(&issuer, "");
    let signer = Signer::new(Algorithm::Es256, "k");
    let claims = with(good_claims("https://evil.example/\r\n\u{1b}[31m"), &json!({ "sub": "ada-secret" }));
    let shown = issuers
        .authenticate(&Presented::bearer(&signer.token(&claims)), Accept::default(), now())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        shown.contains(r"evil.example/\r\n\u{1b}[31m") && shown.is_ascii() && !shown.contains("secret"),
        "{shown}"
    );
    let token =
        signer.token_with(&json!({ "kid": "é".repeat(500), "typ": "at+jwt" }), &good_claims(&issuer.url));
    let shown = issuers
        .authenticate(&Presented::bearer(&token), Accept::default(), now())
        .await
        .unwrap_err()
        .to_string();
    assert!(shown.len() < 600 && shown.contains("\\u{e9}"), "{shown}");
}
