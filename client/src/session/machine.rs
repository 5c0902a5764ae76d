//! Takes how a program proves to the issuer which client it is: a secret (RFC 6749, 2.3.1), a key (`private_key_jwt`), or a token that the
//! platform it runs on gave it (RFC 7523, 2.2). Gives what goes with a request to the issuer, and a token by client credentials (RFC 6749,
//! 4.4). Every file is read anew for each request, so that what was exchanged there is used at once.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use oauth2::basic::BasicClient;
use oauth2::{ClientId, ClientSecret, Scope, TokenUrl};
use postern_base::http_client::HttpClient;
use postern_base::secret::{Secret, SecretRef};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use super::now;
use crate::issuer::{self, Granted, IssuerError, Prover};

/// RFC 7523, 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// An assertion is made for one request; the issuer's clock may differ by nearly this much. In seconds.
const ASSERTION_LIFE: u64 = 60;

/// Where a program finds what proves that it is a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Machine {
    SecretFile(PathBuf),
    /// PEM.
    Key(PathBuf),
    /// A JWT of the platform's.
    TokenFile(PathBuf),
}

/// What goes with one request.
#[derive(Debug)]
pub(crate) enum Proof {
    /// In `Authorization: Basic`, both parts form-encoded.
    Secret(Secret),
    /// In the form.
    Assertion(Secret),
}

impl Proof {
    /// The fields of the form.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let assertion = match self {
            Self::Secret(_) => None,
            Self::Assertion(jwt) => Some(jwt.expose()),
        };
        assertion
            .into_iter()
            .flat_map(|jwt| [("client_assertion_type", ASSERTION_TYPE), ("client_assertion", jwt)])
    }
}

impl Machine {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::SecretFile(path) | Self::Key(path) | Self::TokenFile(path) => path,
        }
    }

    /// What proves to this endpoint that one is `client_id`.
    pub(crate) fn prove(&self, client_id: &str, endpoint: &Url) -> Result<Proof, IssuerError> {
        let failed = |reason: String| IssuerError::Credentials(reason);
        let text = SecretRef::File(self.path().to_owned()).load().map_err(|e| failed(e.to_string()))?;
        match self {
            Self::SecretFile(_) => Ok(Proof::Secret(text)),
            Self::TokenFile(_) => Ok(Proof::Assertion(Secret::new(text.expose().trim()))),
            Self::Key(path) => {
                let claims = json!({
                    "iss": client_id, "sub": client_id, "aud": endpoint, "iat": now(), "exp": now() + ASSERTION_LIFE,
                    "jti": BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>()),
                });
                let jwt = signed(text.expose().as_bytes(), &claims).ok_or_else(|| {
                    failed(format!(
                        "{} holds no private key of a kind that can sign: RSA, P-256, P-384 or Ed25519 in PEM (PKCS#8)",
                        path.display()
                    ))
                })?;
                Ok(Proof::Assertion(Secret::new(jwt)))
            }
        }
    }
}

/// Signed by the first algorithm that the key fits.
fn signed(pem: &[u8], claims: &Value) -> Option<String> {
    type Read = fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>;
    let kinds: [(Read, Algorithm); 4] = [
        (EncodingKey::from_ec_pem, Algorithm::ES256),
        (EncodingKey::from_ec_pem, Algorithm::ES384),
        (EncodingKey::from_rsa_pem, Algorithm::RS256),
        (EncodingKey::from_ed_pem, Algorithm::EdDSA),
    ];
    kinds.into_iter().find_map(|(read, algorithm)| {
        let key = read(pem).ok()?;
        encode(&Header::new(algorithm), claims, &key).ok()
    })
}

/// What a program asks a token for.
pub(crate) struct Asked<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) client_id: &'a str,
    pub(crate) endpoint: &'a Url,
    pub(crate) scopes: &'a [String],
    /// `resource` and `audience`, where they are wanted.
    pub(crate) targets: Vec<(&'static str, String)>,
}

impl Asked<'_> {
    pub(crate) async fn grant(&self, http: &HttpClient, prover: &Prover) -> Result<Granted, IssuerError> {
        let proof = self.machine.prove(self.client_id, self.endpoint)?;
        let mut client = BasicClient::new(ClientId::new(self.client_id.to_owned()))
            .set_token_uri(TokenUrl::from_url(self.endpoint.clone()));
        if let Proof::Secret(secret) = &proof {
            client = client.set_client_secret(ClientSecret::new(secret.expose().to_owned()));
        }
        let mut request =
            client.exchange_client_credentials().add_scopes(self.scopes.iter().cloned().map(Scope::new));
        let targets = self.targets.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in proof.fields().chain(targets) {
            request = request.add_extra_param(name, Cow::Borrowed(value));
        }
        let answer = request.request_async(&issuer::sender(http, prover)).await?;
        Granted::new(&answer, prover)
    }
}

#[cfg(test)]
mod tests;
