//! DPoP proofs: the input as it comes, and its two lines as header and claims of a proof that the token's own key signed. What is taken
//! is for this request and this token, and taken once.

#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use postern_fuzz::gate::{Gate, Key, NOW, good_claims, halves};
use postern_gate::token::{Presented, Proof, Scheme};

const URI: &str = "https://relay.example.com/billing/v1/invoices/7";
/// Of the caller's key (RFC 7638).
const THUMBPRINT: &str = "atZR63tNG3W2GhPpVleKnfrw1N7N6LAqOe5grE2SBR4";

static GATE: LazyLock<Gate> = LazyLock::new(Gate::new);
static KEY: LazyLock<Key> = LazyLock::new(Key::caller);
static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let claims = good_claims(&format!(r#","cnf":{{"jkt":"{THUMBPRINT}"}}"#));
    Key::issuer().sign(br#"{"alg":"EdDSA","kid":"k","typ":"at+jwt"}"#, &claims)
});

fn check() {
    let (header, claims) = halves(include_bytes!("../../corpus/proof/good"));
    assert!(judge(&KEY.sign(header, claims)), "a good proof is taken");
}

fuzz_target!(init: check(), |data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        judge(text);
    }
    let (header, claims) = halves(data);
    judge(&KEY.sign(header, claims));
});

/// Whether it was taken.
fn judge(jwt: &str) -> bool {
    let issuers = GATE.taking_proofs();
    let proof = Proof { jwt, method: "GET", uri: URI };
    let presented = Presented { scheme: Scheme::Dpop, token: &TOKEN, proof: Some(proof), certificate: None };
    if GATE.judge_by(&issuers, &presented).is_err() {
        return false;
    }
    assert!(GATE.judge_by(&issuers, &presented).is_err(), "taken twice");
    let claims = jwt.split('.').nth(1).map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["htm"], "GET");
    let age = NOW as f64 - claims["iat"].as_f64().unwrap();
    assert!((-30.0..=60.0).contains(&age), "{age}");
    for other in [
        Proof { method: "POST", ..proof },
        Proof { uri: "https://relay.example.com/billing/v1/invoices/8", ..proof },
    ] {
        let elsewhere = Presented { proof: Some(other), ..presented };
        assert!(GATE.judge_by(&GATE.taking_proofs(), &elsewhere).is_err(), "good for another request");
    }
    true
}
