//! An issuer that signs whatever a test wants said: takes claims, gives good access tokens. Its documents are static files behind the
//! stand's nginx; it has no users and no flows. For what a real provider cannot be asked for: many users, another client's token for the
//! same user, lives to the second.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::stand::Stand;

/// Signs with a key of its own.
#[derive(Debug)]
pub struct Mint {
    iss: String,
    audience: String,
    key: EcdsaKeyPair,
}

impl Mint {
    /// Publishes what an issuer publishes.
    pub fn publish(stand: &Stand) -> Result<Self> {
        let iss = format!("{}/files/mint", stand.nginx.url());
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let root = stand.path("nginx/html/files/mint");
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
        let (x, y) = key.public_key().as_ref()[1..].split_at_checked(32).context("not a P-256 key")?;
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        let jwk = json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "mint", "x": x, "y": y });
        std::fs::write(root.join("jwks"), json!({ "keys": [jwk] }).to_string())?;
        Ok(Self { iss, audience: stand.url.clone(), key })
    }

    pub fn iss(&self) -> &str {
        &self.iss
    }

    /// Takes the place of the stand's issuer in relay.toml, where it bears the same name, `corp`.
    pub async fn replace(&self, stand: &Stand) -> Result<()> {
        let named = |iss: &str| format!("issuer = \"{iss}\"");
        stand.edit("relay.toml", &named(stand.issuer.iss()), &named(&self.iss))?;
        stand.relay_command(&["reload"]).await?.expect_code(0).map(drop)
    }

    /// A token of one of finance's people; `more` adds claims or changes them.
    pub fn token(&self, user: &str, life: Duration, more: &Value) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut claims = json!({
            "iss": self.iss,
            "sub": format!("sub-of-{user}"),
            "preferred_username": user,
            "aud": self.audience,
            "client_id": "postern-cli",
            "iat": now.as_secs(),
            "exp": (now + life).as_secs(),
            "jti": format!("{:032x}", rand::random::<u128>()),
            "groups": ["finance"],
        });
        for (name, value) in more.as_object().context("claims are an object")? {
            claims[name] = value.clone();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "typ": "at+jwt", "kid": "mint" });
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A token's id, as audit lines show it.
pub fn token_id(token: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let hex: Vec<String> = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    hex.concat()
}
