//! Tokens that nobody would think of: whatever comes, nothing panics and nothing but the good token is accepted.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;
use crate::cost;

/// One issuer for all cases.
struct Target {
    runtime: tokio::runtime::Runtime,
    issuers: Issuers,
    token: String,
    signer: Signer,
    url: String,
    _issuer: FakeIssuer,
}

impl Target {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let signer = Signer::new(Algorithm::Es256, "k");
        let issuer = runtime.block_on(FakeIssuer::with_keys(&[&signer]));
        let issuers = issuers(&issuer, "");
        let token = signer.token(&good_claims(&issuer.url));
        let url = issuer.url.clone();
        let target = Self { runtime, issuers, token, signer, url, _issuer: issuer };
        target.judge(&target.token).unwrap();
        target
    }

    fn judge(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        self.runtime.block_on(self.issuers.authenticate(&Presented::bearer(token), Accept::default(), now()))
    }
}

#[test]
fn mutated_and_random_tokens_are_refused_without_a_panic() {
    let target = Target::new();
    // Letters of the encoding, mostly: others are refused at the first look.
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_-_.=+/é";
    let letter = prop::sample::select(letters.chars().collect::<Vec<_>>());
    let mutations = proptest::collection::vec((any::<prop::sample::Index>(), letter), 1..4);
    proptest!(|(mutations in mutations, random in "\\PC{0,300}", junk in "[A-Za-z0-9_.-]{0,400}")| {
        let mut mutated: Vec<char> = target.token.chars().collect();
        for (index, character) in mutations {
            *index.get_mut(&mut mutated) = character;
        }
        let mutated: String = mutated.into_iter().collect();
        if mutated != target.token {
            prop_assert!(target.judge(&mutated).is_err(), "{}", mutated);
        }
        prop_assert!(target.judge(&random).is_err());
        prop_assert!(target.judge(&junk).is_err());
    });
}

#[test]
fn any_claims_that_an_issuer_signs_are_judged_without_a_panic() {
    let target = Target::new();
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-z]{1,6}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    });
    let name = prop::sample::select(vec![
        "exp",
        "nbf",
        "iat",
        "sub",
        "aud",
        "scope",
        "roles",
        "groups",
        "client_id",
        "acr",
        "auth_time",
        "_claim_names",
        "token_use",
        "typ",
    ]);
    proptest!(|(name in name, value in value)| {
        let mut claims = good_claims(&target.url);
        claims[name] = value;
        let _ = target.judge(&target.signer.token(&claims));
    });
}

/// The cost of a refusal is bounded, whatever comes: 1 ms beside the signature's own (security.md 4 and 7).
#[test]
fn no_token_takes_long_to_refuse() {
    let target = Target::new();
    let refused = |token: &str| assert!(target.judge(token).is_err());
    let claims = good_claims(&target.url);
    let forged = Signer::new(Algorithm::Es256, "k").token(&claims);
    let limit = cost::LIMIT + cost::least(|| refused(&forged));
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = forged.split('.').next().unwrap();
    let around = |claims: &str| format!("{header}.{}.QUJD", encode(claims));
    let mut heavy = vec![
        ".".repeat(8192),
        "e30.".repeat(2048),
        format!(
            "{}.e30.QUJD",
            encode(&format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"}}", "\\u0001".repeat(900)))
        ),
        around(&"[".repeat(6000)),
        around(&format!("{{\"a\":{}", "{\"a\":".repeat(1000))),
        around(&Value::Object((0..700).map(|n| (n.to_string(), n.into())).collect()).to_string()),
        around(&format!("{{\"iss\":\"{}\"}}", "\\u00e9".repeat(950))),
        around(&format!("{{\"exp\":{}}}", "9".repeat(5900))),
    ];
    // And what an issuer signs: everything is looked at then.
    let many: Vec<String> = (0..1200).map(|n| format!("g{n}")).collect();
    for changes in [
        json!({ "groups": many.join(","), "exp": 1 }),
        json!({ "groups": many[..900], "aud": "other" }),
        json!({ "scope": many.join(" "), "aud": many[..100] }),
    ] {
        heavy.push(target.signer.token(&with(claims.clone(), &changes)));
    }
    for token in &heavy {
        assert!(cost::is_within(limit, || refused(token)), "{token}");
    }
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..8200), claims in "\\PC{0,4000}")| {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(cost::is_within(limit, || refused(&text)), "{:?}", text);
        let token = around(&claims);
        prop_assert!(cost::is_within(limit, || refused(&token)), "{:?}", claims);
        // Signed by the issuer, so that everything is looked at.
        let token = target.signer.sign(&claims, &text);
        prop_assert!(cost::is_within(limit, || refused(&token)), "{:?} {:?}", claims, text);
    });
}
