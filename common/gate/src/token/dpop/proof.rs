//! Takes the text of a DPoP proof (RFC 9449 4.2); gives its key, its thumbprint and its claims, parsed strictly and not yet believed;
//! refuses every other shape, algorithms not listed, and keys that are not public or do not fit.

use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::ProofError;
use crate::token::error::Quoted;
use crate::token::json;
use crate::token::key::{Algorithm, Key};

/// A proof with an RSA key of 8192 bits fits; more would be work for nothing.
const PROOF_BYTES: usize = 4 * 1024;
/// A jti is hashed, so its length costs only that; nobody needs more.
const ID_BYTES: usize = 256;
/// Members that only private or symmetric keys have (RFC 7518 6.2.2, 6.3.2, 6.4.1; RFC 8037 2).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A proof taken apart, its signature not yet looked at.
pub(super) struct Signed<'a> {
    /// Of its key (RFC 7638).
    pub(super) thumbprint: [u8; 32],
    key: Key,
    claims: Map<String, Value>,
    /// What the signature is over: the first two parts as they came.
    covered: &'a str,
    signature: &'a str,
}

impl<'a> Signed<'a> {
    pub(super) fn parse(jwt: &'a str, algorithms: &[Algorithm]) -> Result<Self, ProofError> {
        if jwt.len() > PROOF_BYTES {
            return Err(ProofError::TooLong);
        }
        let shape = || ProofError::Malformed("it does not have three parts");
        let (covered, signature) = jwt.rsplit_once('.').ok_or_else(shape)?;
        let (header, payload) = covered.split_once('.').ok_or_else(shape)?;
        let header = object(header, "its header is not strict base64url and JSON")?;
        let (algorithm, jwk) = head(&header, algorithms)?;
        let members = jwk.as_object().ok_or(ProofError::Key)?;
        if PRIVATE.iter().any(|name| members.contains_key(*name)) {
            return Err(ProofError::PrivateKey);
        }
        let key = Key::new(jwk, &[algorithm]).ok_or(ProofError::Key)?;
        let thumbprint = thumbprint(members).ok_or(ProofError::Key)?;
        let claims = object(payload, "its claims are not strict base64url and JSON")?;
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(ProofError::Malformed("its signature is missing or not base64url"));
        }
        Ok(Self { thumbprint, key, claims, covered, signature })
    }

    /// Whether its key signed it.
    pub(super) fn is_genuine(&self) -> bool {
        self.key.verifies(self.covered, self.signature)
    }

    /// A claim that must be there and be text.
    pub(super) fn text(&self, name: &'static str) -> Result<&str, ProofError> {
        self.claims.get(name).and_then(Value::as_str).ok_or(ProofError::Claim(name))
    }

    /// The `jti`.
    pub(super) fn id(&self) -> Result<&str, ProofError> {
        let id = self.text("jti")?;
        if (1..=ID_BYTES).contains(&id.len()) { Ok(id) } else { Err(ProofError::Claim("jti")) }
    }

    /// The `iat`, since the epoch.
    pub(super) fn issued(&self) -> Result<Duration, ProofError> {
        let seconds = self.claims.get("iat").and_then(Value::as_f64);
        let issued = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        issued.ok_or(ProofError::Claim("iat"))
    }

    /// The server's nonce; one that is no text is none.
    pub(super) fn nonce(&self) -> Option<&str> {
        self.claims.get("nonce").and_then(Value::as_str)
    }
}

/// The algorithm and the key that a header names.
fn head<'h>(
    header: &'h Map<String, Value>,
    algorithms: &[Algorithm],
) -> Result<(Algorithm, &'h Value), ProofError> {
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(ProofError::Critical);
    }
    let text = |name: &str| match header.get(name) {
        None => Ok(""),
        Some(value) => value.as_str().ok_or(ProofError::Malformed("alg and typ must be strings")),
    };
    let (typ, alg) = (text("typ")?, text("alg")?);
    if typ != "dpop+jwt" {
        return Err(ProofError::Type(Quoted::new(typ)));
    }
    let algorithm = Algorithm::named(alg).filter(|algorithm| algorithms.contains(algorithm));
    let algorithm = algorithm.ok_or_else(|| ProofError::Algorithm(Quoted::new(alg)))?;
    Ok((algorithm, header.get("jwk").ok_or(ProofError::Key)?))
}

fn object(part: &str, refusal: &'static str) -> Result<Map<String, Value>, ProofError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| ProofError::Malformed(refusal))?;
    json::object(&bytes).ok_or(ProofError::Malformed(refusal))
}

/// SHA-256 over the members that make the key, in their order (RFC 7638 3; RFC 8037 2). Their values were decoded as base64url, or are
/// names we know: nothing in them needs escaping.
fn thumbprint(jwk: &Map<String, Value>) -> Option<[u8; 32]> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let members: &[&str] = match text("kty")? {
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let mut hash = digest::Context::new(&SHA256);
    for (at, name) in members.iter().enumerate() {
        for piece in [if at == 0 { "{\"" } else { ",\"" }, name, "\":\"", text(name)?, "\""] {
            hash.update(piece.as_bytes());
        }
    }
    hash.update(b"}");
    hash.finish().as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// SHA-256 thumbprints of keys that RFCs give: RFC 7638 3.1, RFC 8037 A.3, RFC 9449 4.1 with 6.1.
    #[test]
    fn thumbprints_are_those_of_the_rfcs() {
        let rsa = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi\
                   FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c\
                   7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF4\
                   4-csFCur-kEgU8awapJzKnqDKgw";
        for (jwk, expected) in [
            (
                json!({ "kty": "RSA", "n": rsa, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29" }),
                "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
            ),
            (
                json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
                "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            ),
            (
                json!({
                    "kty": "EC", "crv": "P-256", "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
                    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
                }),
                "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
            ),
        ] {
            let found = thumbprint(jwk.as_object().unwrap()).unwrap();
            assert_eq!(URL_SAFE_NO_PAD.encode(found), expected);
        }
    }
}
