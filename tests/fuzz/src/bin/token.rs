//! Tokens: the input as it comes, and its two lines as header and claims of a token that its issuer signed. What is accepted is the
//! issuer's, for us and in date, and written in the one way there is.

#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use postern_fuzz::gate::{Gate, ISSUER, Key, NOW, halves};
use postern_gate::token::Presented;

static GATE: LazyLock<Gate> = LazyLock::new(Gate::new);
static KEY: LazyLock<Key> = LazyLock::new(Key::issuer);

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        judge(text);
    }
    let (header, claims) = halves(data);
    judge(&KEY.sign(header, claims));
});

fn judge(token: &str) {
    let Ok(caller) = GATE.judge(&Presented::bearer(token)) else { return };
    let parts: Vec<_> = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
    assert_eq!(
        KEY.sign(&parts[0], &parts[1]),
        token,
        "signatures are made one way, so tokens are spelled one way"
    );
    let header: serde_json::Value = serde_json::from_slice(&parts[0]).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&parts[1]).unwrap();
    assert_eq!(header["alg"], "EdDSA");
    assert!(header.get("crit").is_none() && header.get("b64").is_none());
    assert_eq!(claims["iss"], ISSUER);
    assert!(claims["exp"].as_f64().unwrap() + 30.0 > NOW as f64);
    assert!(caller.expires() + 30 > NOW && caller.iss() == ISSUER && !caller.subject().is_empty());
    assert!(caller.audience().iter().any(|audience| audience == "postern"));
    assert!(caller.binding().is_none(), "a bound token came as a plain one");
}
