//! Makes and keeps the key that tokens are bound to (DPoP, RFC 9449); gives a proof for one request, or refuses to: its header is made
//! once, so that a proof costs one signature. The key leaves this room only for the vault.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{Token, now};

/// The one algorithm that proofs are signed with: every issuer that offers DPoP takes it.
pub(crate) const ALGORITHM: &str = "ES256";

/// A key that could not be made, read or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's key cannot be used")]
pub(crate) struct KeyError;

impl From<Unspecified> for KeyError {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// A P-256 key pair, kept as its PKCS#8 text in the vault.
pub(crate) struct ProofKey {
    pair: EcdsaKeyPair,
    kept: Token,
    /// The JOSE header, encoded, and the dot behind it.
    header: String,
    thumbprint: String,
}

/// What a proof is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub(crate) method: &'a str,
    /// Without query and fragment.
    pub(crate) uri: &'a str,
    /// The access token that it accompanies; none at a token endpoint.
    pub(crate) token: Option<&'a str>,
    /// The server's last nonce.
    pub(crate) nonce: Option<&'a str>,
}

/// RFC 9449, 4.2.
#[derive(Serialize)]
struct Claims<'a> {
    jti: &'a str,
    htm: &'a str,
    htu: &'a str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

impl ProofKey {
    pub(crate) fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let der = pair.to_pkcs8v1()?;
        let kept = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(der.as_ref()));
        Ok(Self::new(pair, Token::new(&kept)))
    }

    fn read(kept: Token) -> Result<Self, KeyError> {
        let der = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(kept.0.expose()).map_err(|_| KeyError)?);
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|_| KeyError)?;
        Ok(Self::new(pair, kept))
    }

    fn new(pair: EcdsaKeyPair, kept: Token) -> Self {
        // An uncompressed point: 4, then both coordinates.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y));
        // In the order that RFC 7638 hashes.
        let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let header = format!(r#"{{"typ":"dpop+jwt","alg":"{ALGORITHM}","jwk":{jwk}}}"#);
        let header = format!("{}.", BASE64_URL_SAFE_NO_PAD.encode(header));
        Self { pair, kept, header, thumbprint: hash(&jwk) }
    }

    /// `jkt`: what tokens that are bound to this key name (RFC 7638).
    pub(crate) fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The value of a `DPoP` field, good for one request.
    pub(crate) fn proof(&self, purpose: &Purpose<'_>) -> Result<HeaderValue, KeyError> {
        let claims = Claims {
            jti: &BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>()),
            htm: purpose.method,
            htu: purpose.uri,
            iat: now(),
            ath: purpose.token.map(hash),
            nonce: purpose.nonce,
        };
        let claims = serde_json::to_vec(&claims).map_err(|_| KeyError)?;
        let mut jwt = String::with_capacity(self.header.len() + 2 * claims.len() + 96);
        jwt.push_str(&self.header);
        BASE64_URL_SAFE_NO_PAD.encode_string(claims, &mut jwt);
        let signature = self.pair.sign(&SystemRandom::new(), jwt.as_bytes())?;
        jwt.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut jwt);
        HeaderValue::try_from(jwt).map_err(|_| KeyError)
    }
}

fn hash(text: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_ref()))
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProofKey({})", self.thumbprint)
    }
}

impl Serialize for ProofKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.kept.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ProofKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(Token::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::opened;

    #[test]
    fn a_proof_says_what_it_is_for_and_is_signed_by_the_key_in_it() {
        let key = ProofKey::generate().unwrap();
        let mut purpose = Purpose {
            method: "POST",
            uri: "https://relay.example.com/billing/v1",
            token: Some("t0"),
            nonce: None,
        };
        let proof = key.proof(&purpose).unwrap();
        let (header, claims) = opened(proof.to_str().unwrap());
        assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("dpop+jwt"), Some("ES256")));
        assert!(header["jwk"].get("d").is_none());
        assert_eq!((claims["htm"].as_str(), claims["htu"].as_str()), (Some("POST"), Some(purpose.uri)));
        // SHA-256 of "t0".
        assert_eq!(claims["ath"], "US8mraPD1jSsPGsSt7M8tQuwljw_bZkkJBYZyE7Hj_I");
        assert!(claims["iat"].as_u64().unwrap().abs_diff(now()) < 5 && claims.get("nonce").is_none());
        purpose = Purpose { token: None, nonce: Some("n1"), ..purpose };
        let (_, other) = opened(key.proof(&purpose).unwrap().to_str().unwrap());
        assert_ne!(claims["jti"], other["jti"]);
        assert_eq!((other.get("ath"), other["nonce"].as_str()), (None, Some("n1")));
    }

    #[test]
    fn a_key_reads_back_as_itself_and_shows_nothing() {
        let key = ProofKey::generate().unwrap();
        let text = serde_json::to_string(&key).unwrap();
        let back: ProofKey = serde_json::from_str(&text).unwrap();
        assert_eq!(back.thumbprint(), key.thumbprint());
        assert!(!format!("{key:?}").contains(key.kept.0.expose()));
        for bad in ["\"\"", "\"AAAA\"", "\"not base64!\"", "7"] {
            assert!(serde_json::from_str::<ProofKey>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let key = ProofKey::generate().unwrap();
        let (header, _) = opened(
            key.proof(&Purpose { method: "GET", uri: "u", token: None, nonce: None })
                .unwrap()
                .to_str()
                .unwrap(),
        );
        let jwk = &header["jwk"];
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        assert_eq!(key.thumbprint(), hash(canonical));
    }
}
