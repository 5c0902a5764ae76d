//! Takes a directory and the tests' authority; gives what the test issuer's confidential clients prove themselves with, and their tokens:
//! by secret, by signed assertion, by certificate. Also what only such clients may do: exchange, revoke; and whether the relay, as one, is to ask
//! about opaque tokens.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::{Answer, BATCH, CLI, Issuer, Tokens, forge, form};
use crate::http::{Http, request};
use crate::pki::{CertFiles, Pki, write_private};

/// The confidential client that exchanges tokens (RFC 8693).
const EXCHANGER: (&str, &str) = ("relay-exchange", "relay-exchange-secret");
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const EXCHANGE_GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Keys and certificates of the confidential clients of `tests/idp/clients.mjs`, as files.
#[derive(Debug)]
pub struct ClientKeys {
    /// The secret of `relay`, as a file.
    pub relay_secret: PathBuf,
    /// The secret of `https://relay.example.com/rs` and of `relay-post`, which has every character that needs care.
    pub odd_secret: PathBuf,
    /// PEM of the private key (ES256) of `relay-jwt` and `nightly-jwt`.
    pub assertion_key: PathBuf,
    /// Of `relay-tls`: its subject is registered.
    pub relay_tls: CertFiles,
    /// Of `relay-self-signed`: the certificate itself is registered.
    pub relay_self_signed: CertFiles,
    /// Of `nightly-tls`, whose tokens are bound to it.
    pub nightly_tls: CertFiles,
    /// What the issuer is told: public keys by client.
    pub(super) public: PathBuf,
    key: EcdsaKeyPair,
}

/// A client of machines, by how it proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// `nightly-batch`, by Basic.
    Basic,
    /// `nightly-post`, in the body.
    Post,
    /// `nightly-jwt`, by `private_key_jwt`.
    Assertion,
    /// `nightly-tls`, by certificate; its tokens are bound to that.
    Certificate,
}

impl ClientKeys {
    pub(super) fn create(dir: &Path, pki: &Pki) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let assertion_key = dir.join("client-assertion.key");
        write_private(&assertion_key, &pem("PRIVATE KEY", key.to_pkcs8v1()?.as_ref()))?;
        let jwk = public_jwk(&key);

        let own = KeyPair::generate()?;
        let certificate = CertificateParams::default().self_signed(&own)?;
        let relay_self_signed =
            CertFiles { cert: dir.join("relay-self-signed.pem"), key: dir.join("relay-self-signed.key") };
        write_private(&relay_self_signed.key, &own.serialize_pem())?;
        std::fs::write(&relay_self_signed.cert, certificate.pem())?;
        let point = rcgen::PublicKeyData::der_bytes(&own);
        let mut shown = point_jwk(point);
        shown["x5c"] = json!([STANDARD.encode(certificate.der())]);

        let (relay_secret, odd_secret) = (dir.join("relay.secret"), dir.join("odd.secret"));
        write_private(&relay_secret, "relay-secret\n")?;
        write_private(&odd_secret, "se+cr et:%/&=~\n")?;

        let public = dir.join("client-keys.json");
        let keys = json!({
            "relay-jwt": { "keys": [jwk] },
            "nightly-jwt": { "keys": [jwk] },
            "relay-self-signed": { "keys": [shown] },
        });
        std::fs::write(&public, keys.to_string())?;
        Ok(Self {
            relay_secret,
            odd_secret,
            assertion_key,
            relay_tls: pki.client("relay-tls")?,
            relay_self_signed,
            nightly_tls: pki.client("nightly-tls")?,
            public,
            key,
        })
    }

    /// A client assertion (RFC 7523 2.2), good for a minute and for one use.
    pub fn assertion(&self, client: &str, audience: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let jti = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let claims = json!({
            "iss": client, "sub": client, "aud": audience, "jti": jti, "iat": now, "exp": now + 60,
        });
        sign(&self.key, json!({ "alg": "ES256" }), claims)
    }
}

/// A JWS by a P-256 key; header and claims are JSON, or what somebody else takes for it.
pub fn sign(key: &EcdsaKeyPair, header: impl Display, claims: impl Display) -> Result<String> {
    forge::encode(header, claims, |input| Ok(key.sign(&SystemRandom::new(), input)?.as_ref().to_vec()))
}

/// What a JWKS says of a P-256 key.
pub fn public_jwk(key: &EcdsaKeyPair) -> Value {
    point_jwk(key.public_key().as_ref())
}

/// Of an uncompressed point on P-256: a 4, then both coordinates.
fn point_jwk(point: &[u8]) -> Value {
    let (x, y) = point[1..].split_at(32);
    json!({ "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Issuer {
    /// Where the issuer asks for a client certificate.
    pub fn mtls_endpoint(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.mtls_port)
    }

    /// Posts a form to where the issuer asks for a certificate.
    pub(super) async fn post_as(
        &self,
        certificate: &CertFiles,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Answer> {
        let http = Http::h1_as(self.roots.clone(), certificate)?;
        http.send(form(request("POST", &self.mtls_endpoint(path), None), fields)?).await
    }

    /// Whether access tokens for the relay that are given from now on are opaque.
    pub async fn opaque(&self, yes: bool) -> Result<()> {
        self.control(&format!("/__test/live?opaque={}", u8::from(yes))).await.map(drop)
    }

    /// From now on it binds no token to a key, and says so.
    pub async fn bearer_only(&self) -> Result<()> {
        self.control("/__test/live?dpop=0").await.map(drop)
    }

    /// From now on it is like a vendor of `tests/idp/vendors.mjs`, or knows none of that name; gives the issuer that it is then.
    pub async fn stand_in(&self, vendor: &str) -> Result<String> {
        let told = self.control(&format!("/__test/stand-in?vendor={vendor}")).await?;
        Ok(told["issuer"].as_str().context("it does not say which issuer it is")?.to_owned())
    }

    /// A machine's own token for `resource` ([`Issuer::resource`], or one of `provider.mjs`).
    pub async fn machine(&self, machine: Machine, scope: &str, resource: &str) -> Result<String> {
        let mut fields = vec![("grant_type", "client_credentials"), ("scope", scope), ("resource", resource)];
        let assertion;
        let answer = match machine {
            Machine::Basic => self.post("/token", &fields, Some(BATCH)).await?,
            Machine::Post => {
                fields.extend([("client_id", "nightly-post"), ("client_secret", "nightly-post-secret")]);
                self.post("/token", &fields, None).await?
            }
            Machine::Assertion => {
                assertion = self.clients.assertion("nightly-jwt", self.iss())?;
                fields.extend([
                    ("client_assertion", assertion.as_str()),
                    ("client_assertion_type", ASSERTION_TYPE),
                ]);
                self.post("/token", &fields, None).await?
            }
            Machine::Certificate => {
                fields.push(("client_id", "nightly-tls"));
                self.post_as(&self.clients.nightly_tls, "/token", &fields).await?
            }
        };
        Ok(Tokens::of(&answer)?.access)
    }

    /// Exchanges a person's access token for one for `resource` (RFC 8693); the answer, good or bad, is the caller's to judge.
    pub async fn exchange(&self, token: &str, resource: &str) -> Result<Answer> {
        let fields = [
            ("grant_type", EXCHANGE_GRANT),
            ("subject_token", token),
            ("subject_token_type", ACCESS_TOKEN),
            ("resource", resource),
        ];
        self.post("/token", &fields, Some(EXCHANGER)).await
    }

    /// Revokes a token that a person's client was given (RFC 7009).
    pub async fn revoke(&self, token: &str) -> Result<()> {
        let fields = [("client_id", CLI), ("token", token)];
        self.post("/token/revocation", &fields, None)
            .await?
            .expect_status(200)
            .context("revocation")
            .map(drop)
    }
}
