//! Takes claims; gives them signed with ES256; the key is made at the start and lives in memory alone.

use anyhow::anyhow;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::params::Refusal;

/// One signing key and the key set that is published for it.
pub(super) struct Key {
    private: EncodingKey,
    id: String,
    set: Value,
}

impl Key {
    pub(super) fn generate() -> anyhow::Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| anyhow!("no key could be made"))?;
        let private = pair.to_pkcs8v1().map_err(|_| anyhow!("the key could not be encoded"))?;
        // Uncompressed: 04, then x and y of 32 bytes each.
        let public = pair.public_key().as_ref();
        let (x, y) = public
            .strip_prefix(&[4])
            .and_then(|point| point.split_at_checked(32))
            .ok_or_else(|| anyhow!("the public key has an unknown form"))?;
        let id = base64url(&hash(public)[..8]);
        let set = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y),
            "kid": id, "use": "sig", "alg": "ES256",
        }] });
        Ok(Self { private: EncodingKey::from_ec_der(private.as_ref()), id, set })
    }

    /// The public half, as a JWK set (RFC 7517).
    pub(super) fn set(&self) -> &Value {
        &self.set
    }

    /// `kind` is the header's `typ`.
    pub(super) fn sign(&self, kind: &str, claims: &Value) -> Result<String, Refusal> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some(kind.to_owned());
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.private)
            .map_err(|_| Refusal::new("server_error", "the token could not be signed"))
    }
}

pub(super) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

/// 256 bits from the operating system's generator, as text.
pub(super) fn unguessable() -> String {
    base64url(&rand::random::<[u8; 32]>())
}
