//! C2SP Wycheproof's vectors for JWS and JWK, where they are at hand: they are not ours to copy.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::*;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    group: String,
    tc_id: u64,
    comment: String,
    key: Value,
    jws: String,
    result: String,
}

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
fn signatures_are_judged_as_wycheproof_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/wycheproof_jws.json");
    let Ok(text) = std::fs::read(&path) else {
        println!("skipped: {} is not here", path.display());
        return;
    };
    let vectors: Vec<Vector> = serde_json::from_slice(&text).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for Vector { group, tc_id, comment, key, jws, result } in vectors {
        let published = key.get("keys").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![key]);
        let symmetric = published.iter().any(|key| key["kty"] == "oct");
        // What we do not do although it would be valid: ES512, and one key for two algorithms (its alg says PS256, the token PS384).
        let unsupported = published.iter().any(|key| key["crv"] == "P-521") || comment == "Figure20";
        let keys = published.iter().filter_map(|key| Key::new(key, &ALL)).collect();
        let set = KeySet { generation: 1, fetched: at(0.0), keys };
        let good = Jws::head(&jws).is_ok_and(|(jws, _)| set.verify(&jws) == Verdict::Good);
        let expected = result == "valid" && !symmetric && !unsupported;
        assert_eq!(good, expected, "{group} {tc_id} {comment}: {result}");
        if good { accepted += 1 } else { refused += 1 }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 30 && refused > 300, "{accepted} {refused}");
}
