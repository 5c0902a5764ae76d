//! Tells JWTs from other tokens: not by their dots, which opaque tokens may have too, but by a first part that is a JSON object with
//! `alg`. Believes nothing of either; reads leniently, so that a JWT with a flaw is still refused as a JWT and sent to nobody.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde_json::{Map, Value};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Only its issuer knows what it means.
    Opaque,
    /// A JWT, and whose it says it is.
    Jwt { iss: Option<String> },
}

pub(super) fn shape(token: &str) -> Shape {
    let mut parts = token.split('.');
    let header = parts.next().and_then(object);
    // A header with `enc` is that of an encrypted token (RFC 7516 4.1.2): there is no signature to look at, and its claims are for
    // the issuer's own eyes.
    if !header.is_some_and(|header| header.contains_key("alg") && !header.contains_key("enc")) {
        return Shape::Opaque;
    }
    let claims = parts.next().and_then(object);
    let iss = claims.as_ref().and_then(|claims| claims.get("iss")).and_then(Value::as_str);
    Shape::Jwt { iss: iss.map(str::to_owned) }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&LENIENT.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    fn of(header: &str, rest: &str) -> Shape {
        shape(&format!("{}{rest}", URL_SAFE_NO_PAD.encode(header)))
    }

    #[test]
    fn a_jwt_is_known_by_its_header() {
        let claims = format!(".{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"iss":"https://id.example.com"}"#));
        let jwt = Shape::Jwt { iss: Some("https://id.example.com".to_owned()) };
        assert_eq!(of(r#"{"alg":"ES256"}"#, &claims), jwt);
        // Flawed ones are still JWTs: the room for JWTs refuses them.
        for flawed in
            [r#"{"alg":"none"}"#, r#"{"alg":1}"#, r#"{"alg":"a","alg":"b"}"#, r#" {"alg":"HS256","crit":[]}"#]
        {
            assert_eq!(of(flawed, &claims), jwt, "{flawed}");
        }
        for rest in ["", ".", "..", ".x.y", ".bm90IGpzb24.y", ".W10.y", ".eyJpc3MiOjF9.y"] {
            assert_eq!(of(r#"{"alg":"ES256"}"#, rest), Shape::Jwt { iss: None }, "{rest}");
        }
    }

    #[test]
    fn everything_else_is_opaque() {
        for opaque in [
            "",
            "abc",
            "a.b.c",
            "ya29.a0Af.x_y-z",
            "...",
            "eyJ",
            "v2.local.abc",
            "W10.e30.c2ln",
            "ImFsZyI.x.y",
        ] {
            assert_eq!(shape(opaque), Shape::Opaque, "{opaque}");
        }
        for header in ["{}", r#"{"typ":"JWT"}"#, r#"["alg"]"#, r#"{"alg":"dir","enc":"A256GCM"}"#] {
            assert_eq!(of(header, ".e30.c2ln"), Shape::Opaque, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_shape(text in "\\PC{0,200}") {
            let _ = shape(&text);
        }
    }
}
