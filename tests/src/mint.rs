//! An issuer that signs whatever a test wants said: takes claims, gives good access tokens. Its documents are static files behind some
//! nginx; it has no users and no flows. For what a real provider cannot be asked for: many users, another client's token for the same
//! user, lives to the second, tokens that are wrong in one thing alone.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::issuer::{public_jwk, sign};
use crate::stand::Stand;

/// Signs with a key of its own.
#[derive(Debug)]
pub struct Mint {
    iss: String,
    audience: String,
    key: EcdsaKeyPair,
}

impl Mint {
    /// Publishes what an issuer publishes behind the stand's nginx; its tokens are for the stand's relay.
    pub fn publish(stand: &Stand) -> Result<Self> {
        let iss = format!("{}/files/mint", stand.nginx.url());
        Self::at(&stand.path("nginx/html/files/mint"), &iss, &stand.url)
    }

    /// Publishes below `root`, from where `iss` is served.
    pub fn at(root: &Path, iss: &str, audience: &str) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
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
        let mut jwk = public_jwk(&key);
        for (name, value) in [("use", "sig"), ("alg", "ES256"), ("kid", "mint")] {
            jwk[name] = json!(value);
        }
        std::fs::write(root.join("jwks"), json!({ "keys": [jwk] }).to_string())?;
        Ok(Self { iss: iss.to_owned(), audience: audience.to_owned(), key })
    }

    pub fn iss(&self) -> &str {
        &self.iss
    }

    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Takes the place of the stand's issuer in relay.toml, where it bears the same name, `corp`.
    pub async fn replace(&self, stand: &Stand) -> Result<()> {
        let named = |iss: &str| format!("issuer = \"{iss}\"");
        stand.edit("relay.toml", &named(stand.issuer.iss()), &named(&self.iss))?;
        stand.relay_command(&["reload"]).await?.expect_code(0).map(drop)
    }

    /// The header of its good tokens.
    pub fn header() -> Value {
        json!({ "alg": "ES256", "typ": "at+jwt", "kid": "mint" })
    }

    /// Good claims of one of finance's people; `more` adds some or changes them.
    pub fn claims(&self, user: &str, life: Duration, more: &Value) -> Result<Value> {
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
        Ok(claims)
    }

    /// A token with such claims.
    pub fn token(&self, user: &str, life: Duration, more: &Value) -> Result<String> {
        self.sign(Self::header(), self.claims(user, life, more)?)
    }

    /// Its signature on anything.
    pub fn sign(&self, header: impl Display, claims: impl Display) -> Result<String> {
        sign(&self.key, header, claims)
    }
}

/// The same token under the other signature that verifies: (r, n - s) for (r, s), which whoever has the token can work out.
pub fn twin(token: &str) -> Result<String> {
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
        0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').context("not a JWT")?;
    let mut signature = URL_SAFE_NO_PAD.decode(signature)?;
    let mut borrow = false;
    for (digit, s) in N.iter().zip(signature.iter_mut().skip(32)).rev() {
        let (less, first) = digit.overflowing_sub(*s);
        let (less, second) = less.overflowing_sub(u8::from(borrow));
        (*s, borrow) = (less, first || second);
    }
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A JWT's id, as audit lines show it: of what its signature is over.
pub fn token_id(token: &str) -> String {
    let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, signed.as_bytes());
    let hex: Vec<String> = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    hex.concat()
}
