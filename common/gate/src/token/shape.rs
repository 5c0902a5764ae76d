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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Only its issuer knows what it means.
    Opaque,
    Jwt,
}

pub(super) fn shape(token: &str) -> Shape {
    let header = token.split('.').next().and_then(object);
    // A header with `enc` is that of an encrypted token (RFC 7516 4.1.2): there is no signature to look at, and its claims are for
    // the issuer's own eyes.
    let is_jwt = header.is_some_and(|header| header.contains_key("alg") && !header.contains_key("enc"));
    if is_jwt { Shape::Jwt } else { Shape::Opaque }
}

/// Whose a JWT says it is.
pub(super) fn iss(token: &str) -> Option<String> {
    match token.split('.').nth(1).and_then(object)?.remove("iss") {
        Some(Value::String(iss)) => Some(iss),
        _ => None,
    }
}

/// What a token is told from others by: of a JWT all but its last part, the signature or tag that what is before it must have; any other
/// token as it is.
pub(super) fn covered(token: &str) -> &str {
    let header = token.split('.').next().and_then(object);
    match token.rsplit_once('.') {
        Some((covered, _)) if header.is_some_and(|header| header.contains_key("alg")) => covered,
        _ => token,
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&LENIENT.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    fn of(header: &str, rest: &str) -> (Shape, Option<String>) {
        let token = format!("{}{rest}", URL_SAFE_NO_PAD.encode(header));
        (shape(&token), iss(&token))
    }

    #[test]
    fn a_jwt_is_known_by_its_header() {
        let claims = format!(".{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"iss":"https://id.example.com"}"#));
        let jwt = (Shape::Jwt, Some("https://id.example.com".to_owned()));
        assert_eq!(of(r#"{"alg":"ES256"}"#, &claims), jwt);
        // Flawed ones are still JWTs: the room for JWTs refuses them.
        for flawed in
            [r#"{"alg":"none"}"#, r#"{"alg":1}"#, r#"{"alg":"a","alg":"b"}"#, r#" {"alg":"HS256","crit":[]}"#]
        {
            assert_eq!(of(flawed, &claims), jwt, "{flawed}");
        }
        for rest in ["", ".", "..", ".x.y", ".bm90IGpzb24.y", ".W10.y", ".eyJpc3MiOjF9.y"] {
            assert_eq!(of(r#"{"alg":"ES256"}"#, rest), (Shape::Jwt, None), "{rest}");
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
            assert_eq!(of(header, ".e30.c2ln").0, Shape::Opaque, "{header}");
        }
    }

    #[test]
    fn a_jwt_is_what_its_signature_is_over() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#);
        let signed = format!("{header}.e30");
        for signature in ["QUJD", "QUJE", "QUJD=", ""] {
            assert_eq!(covered(&format!("{signed}.{signature}")), signed, "{signature}");
        }
        let encrypted = format!("{}.k.i.c", URL_SAFE_NO_PAD.encode(r#"{"alg":"dir","enc":"A256GCM"}"#));
        assert_eq!(covered(&format!("{encrypted}.t")), encrypted);
        for whole in ["", "abc", "a.b.c", "v2.local.abc", "W10.e30.c2ln", &header] {
            assert_eq!(covered(whole), whole);
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_shape(text in "\\PC{0,200}") {
            let _ = (shape(&text), iss(&text), covered(&text));
        }
    }
}
