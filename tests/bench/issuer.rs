//! Takes an issuer's URL; gives what such an issuer would publish, as static documents (discovery and one ES256 key), and tokens signed
//! with that key. It has no users and refuses nobody: for measuring only.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Longer than any run, shorter than a relay's default `max_lifetime`.
const LIFE: Duration = Duration::from_hours(4);
const KID: &str = "bench-1";

pub(crate) struct Issuer {
    iss: String,
    audience: String,
    key: EcdsaKeyPair,
}

impl Issuer {
    /// Tokens will be for `audience`.
    pub(crate) fn new(iss: &str, audience: &str) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        Ok(Self { iss: iss.to_owned(), audience: audience.to_owned(), key })
    }

    /// Writes its documents below `root`, from where `iss` is served.
    pub(crate) fn publish(&self, root: &Path) -> Result<()> {
        let Self { iss, .. } = self;
        std::fs::create_dir_all(root.join(".well-known"))?;
        let discovery = json!({
            "issuer": iss,
            "jwks_uri": format!("{iss}/jwks"),
            "authorization_endpoint": format!("{iss}/authorize"),
            "token_endpoint": format!("{iss}/token"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        std::fs::write(root.join(".well-known/openid-configuration"), discovery.to_string())?;
        // An uncompressed point: 4, then the two coordinates.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at_checked(32).context("not a P-256 key")?;
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KID, "x": x, "y": y }] });
        Ok(std::fs::write(root.join("jwks"), keys.to_string())?)
    }

    pub(crate) fn name(&self) -> &str {
        &self.iss
    }

    pub(crate) fn audience(&self) -> &str {
        &self.audience
    }

    /// `count` tokens with this scope, no two alike.
    pub(crate) fn tokens(&self, scope: &str, count: u32) -> Result<Vec<String>> {
        (0..count).map(|_| self.token(scope)).collect()
    }

    /// An access token as RFC 9068 has it, with a scope and as many claims as usual.
    pub(crate) fn token(&self, scope: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let claims = json!({
            "iss": self.iss,
            "sub": "9f2c1d34-ada",
            "aud": self.audience,
            "client_id": "postern-cli",
            "preferred_username": "ada",
            "iat": now.as_secs(),
            "exp": (now + LIFE).as_secs(),
            "jti": format!("{:016x}", rand::random::<u64>()),
            "scope": scope,
            "groups": ["finance", "staff"],
        });
        self.sign(&json!({ "alg": "ES256", "typ": "at+jwt", "kid": KID }), &claims)
    }

    fn sign(&self, header: &Value, claims: &Value) -> Result<String> {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
