//! Takes a login and a key or a certificate; gives tokens bound to it, and DPoP proofs by the key (RFC 9449, RFC 8705).

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::clients::{public_jwk, sign};
use super::{CLI, Issuer, Login, Tokens, form, pairs};
use crate::http::{Answer, Http, empty, request};
use crate::pki::CertFiles;

/// The public client whose tokens are bound to the certificate that it shows.
const CLI_MTLS: &str = "postern-cli-mtls";

/// A key that a caller makes for itself and proves with every request.
#[derive(Debug)]
pub struct ProofKey {
    key: EcdsaKeyPair,
    jwk: Value,
    /// What the relay wants in proofs.
    nonce: Option<String>,
}

impl ProofKey {
    pub fn generate() -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        Ok(Self { jwk: public_jwk(&key), key, nonce: None })
    }

    /// One that answers the relay with the nonce that it asks for in the first minute after its start.
    pub async fn for_relay(http: &Http, url: &str) -> Result<Self> {
        let asked =
            request("GET", &format!("{url}/.postern/services"), None).header("authorization", "DPoP x");
        let nonce = http.send(asked.body(empty())?).await?.header("dpop-nonce").to_owned();
        Ok(Self { nonce: (!nonce.is_empty()).then_some(nonce), ..Self::generate()? })
    }

    /// RFC 7638: what `cnf.jkt` says of this key.
    pub fn thumbprint(&self) -> String {
        let text = |name: &str| self.jwk[name].as_str().unwrap_or_default();
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, text("x"), text("y"));
        URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()))
    }

    /// A good proof for one request, made now; with a token it says which.
    pub fn proof(&self, method: &str, uri: &str, token: Option<&str>, nonce: Option<&str>) -> Result<String> {
        self.proof_with(method, uri, token, |_, claims| {
            if let Some(nonce) = nonce {
                claims["nonce"] = json!(nonce);
            }
        })
    }

    /// A proof whose header and claims `change` edits before they are signed.
    pub fn proof_with(
        &self,
        method: &str,
        uri: &str,
        token: Option<&str>,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let jti = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let mut header = json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": self.jwk });
        let mut claims = json!({ "jti": jti, "htm": method, "htu": uri, "iat": now });
        if let Some(token) = token {
            claims["ath"] = json!(URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes())));
            if let Some(nonce) = &self.nonce {
                claims["nonce"] = json!(nonce);
            }
        }
        change(&mut header, &mut claims);
        sign(&self.key, header, claims)
    }
}

impl Issuer {
    /// Authorization code with PKCE and a proof: the tokens are bound to the key (RFC 9449 5).
    pub async fn login_bound(&self, login: &Login, key: &ProofKey) -> Result<Tokens> {
        let fields = self.authorize(CLI, login).await?;
        let asked = self.token_request(&fields, key, None).await?;
        // An issuer that wants a nonce says which, and keeps the code for the next try (RFC 9449 8).
        let nonce = asked.header("dpop-nonce").to_owned();
        if asked.status == 400 && asked.text().contains("use_dpop_nonce") {
            return Tokens::of(&self.token_request(&fields, key, Some(&nonce)).await?);
        }
        Tokens::of(&asked)
    }

    async fn token_request(
        &self,
        fields: &[(&'static str, String)],
        key: &ProofKey,
        nonce: Option<&str>,
    ) -> Result<Answer> {
        let url = self.endpoint("/token");
        let proof = key.proof("POST", url.as_str(), None, nonce)?;
        let builder = request("POST", url.as_str(), None).header("dpop", proof);
        self.http.send(form(builder, &pairs(fields))?).await
    }

    /// Authorization code with PKCE, showing a certificate at the end: the tokens are bound to it (RFC 8705 4).
    pub async fn login_certified(&self, login: &Login, certificate: &CertFiles) -> Result<Tokens> {
        let fields = self.authorize(CLI_MTLS, login).await?;
        Tokens::of(&self.post_as(certificate, "/token", &pairs(&fields)).await?)
    }

    /// Whether DPoP proofs at the issuer need a nonce from now on.
    pub async fn demand_nonces(&self, demanded: bool) -> Result<()> {
        self.control(&format!("/__test/live?dpopNonce={}", u8::from(demanded))).await.map(drop)
    }
}
