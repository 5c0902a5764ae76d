//! Takes the text of a token; gives header and claims, parsed strictly and not yet believed; refuses everything but a compact JWS
//! (RFC 7515 3.1) of an algorithm we know, without extensions. Of the header only `alg`, `kid` and `typ` are read: keys and addresses
//! of keys that a token brings along are never looked at.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::error::{Quoted, TokenError};
use super::json;
use super::key::Algorithm;

/// A token taken apart, its signature not yet looked at.
pub(super) struct Jws<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) typ: Option<String>,
    pub(super) claims: Map<String, Value>,
    /// What the signature is over: the first two parts as they came.
    pub(super) signed: &'a str,
    pub(super) signature: &'a str,
}

impl<'a> Jws<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        let (mut jws, payload) = Self::head(token)?;
        jws.claims = object(payload, "its claims are not strict base64url and JSON")?;
        Ok(jws)
    }

    /// All but the claims, which are the second part.
    pub(super) fn head(token: &'a str) -> Result<(Self, &'a str), TokenError> {
        let shape = || TokenError::Malformed("it does not have three parts");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(shape)?;
        let (header, payload) = signed.split_once('.').ok_or_else(shape)?;
        let mut header = object(header, "its header is not strict base64url and JSON")?;
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(TokenError::Critical);
        }
        let mut text = |name: &str| match header.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenError::Malformed("alg, kid and typ must be strings")),
        };
        let (alg, kid, typ) = (text("alg")?, text("kid")?, text("typ")?);
        let alg = alg.ok_or(TokenError::Malformed("its header names no algorithm"))?;
        let algorithm = Algorithm::named(&alg).ok_or_else(|| TokenError::Algorithm(Quoted::new(&alg)))?;
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(TokenError::Malformed("its signature is missing or not base64url"));
        }
        Ok((Self { algorithm, kid, typ, claims: Map::new(), signed, signature }, payload))
    }
}

fn object(part: &str, refusal: &'static str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed(refusal))?;
    json::object(&bytes).ok_or(TokenError::Malformed(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str, claims: &str, signature: &str) -> String {
        format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    fn refusal(token: &str) -> &'static str {
        Jws::parse(token).err().map_or("accepted", |e| e.code())
    }

    #[test]
    fn a_compact_jws_is_taken_apart() {
        let text = token(
            r#"{"alg":"ES256","kid":"k","typ":"at+jwt","jku":"https://evil.example"}"#,
            "{\"a\":1}",
            "QUJD",
        );
        let jws = Jws::parse(&text).unwrap();
        assert_eq!(
            (jws.algorithm, jws.kid.as_deref(), jws.typ.as_deref()),
            (Algorithm::Es256, Some("k"), Some("at+jwt"))
        );
        assert_eq!(jws.claims.len(), 1);
        assert_eq!(format!("{}.{}", jws.signed, jws.signature), text);
    }

    #[test]
    fn other_shapes_are_refused() {
        let good = token(r#"{"alg":"RS256"}"#, "{}", "QUJD");
        assert_eq!(refusal(&good), "accepted");
        let parts: Vec<&str> = good.split('.').collect();
        let (h, p) = (parts[0], parts[1]);
        for (bad, why) in [
            (String::new(), "malformed"),
            ("opaque".to_owned(), "malformed"),
            ("a.b".to_owned(), "malformed"),
            (format!("{h}.{p}"), "malformed"),
            (format!("{h}.{p}."), "malformed"),
            (format!("{h}.{p}.QUJD.QUJD"), "malformed"),
            (format!("{h}.{p}.QUJD.QUJD.QUJD"), "malformed"),
            (format!(" {good}"), "malformed"),
            (format!("{good}\n"), "malformed"),
            (format!("{h}=.{p}.QUJD"), "malformed"),
            (format!("{h}.{p}.QUJDRA=="), "malformed"),
            (format!("{h}.{p}.QUI/"), "malformed"),
            // The same bytes, but for bits that the encoding leaves unused.
            (format!("{h}.{p}.QUJDRB"), "malformed"),
            (token("{}", "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":1}"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":["RS256"]}"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256","alg":"RS256"}"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256","kid":7}"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256","typ":null}"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256"} x"#, "{}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256"}"#, "{\"sub\":1,\"sub\":1}", "QUJD"), "malformed"),
            (token(r#"{"alg":"RS256"}"#, "[]", "QUJD"), "malformed"),
            (token(r#"{"alg":"none"}"#, "{}", ""), "algorithm"),
            (token(r#"{"alg":"NONE"}"#, "{}", "QUJD"), "algorithm"),
            (token(r#"{"alg":"HS256"}"#, "{}", "QUJD"), "algorithm"),
            (token(r#"{"alg":"rs256"}"#, "{}", "QUJD"), "algorithm"),
            (token(r#"{"alg":"ES512"}"#, "{}", "QUJD"), "algorithm"),
            (token(r#"{"alg":"RSA-OAEP"}"#, "{}", "QUJD"), "algorithm"),
            (token(r#"{"alg":"RS256","crit":["exp"]}"#, "{}", "QUJD"), "critical_extension"),
            (token(r#"{"alg":"RS256","crit":[]}"#, "{}", "QUJD"), "critical_extension"),
            (token(r#"{"alg":"RS256","b64":true}"#, "{}", "QUJD"), "critical_extension"),
        ] {
            assert_eq!(refusal(&bad), why, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}(\\.\\PC{0,80}){0,4}") {
            let _ = Jws::parse(&text);
        }
        #[test]
        fn any_header_and_claims_are_read_or_refused(header in "\\PC{0,80}", claims in "\\PC{0,80}") {
            let _ = Jws::parse(&token(&header, &claims, "QUJD"));
        }
    }
}
