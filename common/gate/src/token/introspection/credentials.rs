//! Takes how a configuration says that the relay proves who it is to an issuer; gives what to send: Basic, a secret in the body, a signed
//! assertion, a TLS certificate, or a bearer token. Reads secrets and keys once, and refuses those that do not work before they are needed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use postern_base::http_client::Identity;
use postern_base::secret::{Secret, SecretError, SecretRef};
use serde_json::json;
use url::form_urlencoded::byte_serialize;

use super::request::sensitive;
use crate::token::settings::Authentication;

/// RFC 7523 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How long an assertion is good: it is used at once, but clocks differ.
const ASSERTION_LIFE: u64 = 60;

/// Why the relay cannot prove who it is. Names the place, never the value.
#[derive(Debug, thiserror::Error)]
pub(in crate::token) enum CredentialsError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("certificate file {path}: {source}")]
    Certificate { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is no key that can sign: use PKCS#8 PEM of an RSA (2048 bits or more), P-256, P-384 or Ed25519 key"
    )]
    Key { path: PathBuf },
    #[error("{0}")]
    Unfit(String),
    #[error("the secret holds what no header may")]
    NoField,
    #[error("the key does not sign")]
    Unsigned,
}

pub(super) enum Credentials {
    /// Basic or bearer: all of the Authorization field.
    Header(HeaderValue),
    Post {
        client_id: String,
        secret: Secret,
    },
    Assertion {
        client_id: String,
        audience: String,
        header: Box<Header>,
        key: EncodingKey,
    },
    Certificate {
        client_id: String,
        identity: Identity,
    },
}

/// Where the proof goes.
pub(super) enum Field {
    Header(HeaderValue),
    Form(Vec<(&'static str, String)>),
}

impl Credentials {
    /// `issuer` is for whom assertions are.
    pub(super) fn load(how: &Authentication, issuer: &str) -> Result<Self, CredentialsError> {
        let header = |text: &str| sensitive(text).map(Self::Header).ok_or(CredentialsError::NoField);
        match how {
            Authentication::Basic { client_id, secret } => header(&basic(client_id, &secret.load()?)),
            Authentication::Bearer { token } => header(&format!("Bearer {}", token.load()?.expose())),
            Authentication::Post { client_id, secret } => {
                Ok(Self::Post { client_id: client_id.clone(), secret: secret.load()? })
            }
            Authentication::PrivateKeyJwt { client_id, key, kid } => {
                let pem = private(key)?;
                let (algorithm, key) =
                    signer(pem.expose()).ok_or_else(|| CredentialsError::Key { path: key.clone() })?;
                let mut header = Header::new(algorithm);
                header.kid.clone_from(kid);
                let (client_id, audience) = (client_id.clone(), issuer.to_owned());
                Ok(Self::Assertion { client_id, audience, header: Box::new(header), key })
            }
            Authentication::Mtls { client_id, cert, key } => {
                let chain_pem = std::fs::read(cert)
                    .map_err(|source| CredentialsError::Certificate { path: cert.clone(), source })?;
                let identity = Identity { chain_pem, key_pem: private(key)? };
                Ok(Self::Certificate { client_id: client_id.clone(), identity })
            }
        }
    }

    pub(super) fn field(&self) -> Result<Field, CredentialsError> {
        let client = |client_id: &String| ("client_id", client_id.clone());
        Ok(match self {
            Self::Header(value) => Field::Header(value.clone()),
            Self::Post { client_id, secret } => {
                Field::Form(vec![client(client_id), ("client_secret", secret.expose().to_owned())])
            }
            Self::Assertion { client_id, audience, header, key } => {
                let assertion = assertion(client_id, audience, header, key)?;
                let kind = ("client_assertion_type", ASSERTION_TYPE.to_owned());
                Field::Form(vec![client(client_id), kind, ("client_assertion", assertion)])
            }
            Self::Certificate { client_id, .. } => Field::Form(vec![client(client_id)]),
        })
    }

    pub(super) fn is_certificate(&self) -> bool {
        self.identity().is_some()
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Certificate { identity, .. } => Some(identity),
            Self::Header(_) | Self::Post { .. } | Self::Assertion { .. } => None,
        }
    }
}

/// RFC 6749 2.3.1: id and secret are form-urlencoded before they are joined, so that either may hold a colon.
fn basic(client_id: &str, secret: &Secret) -> String {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let both = Secret::new(format!("{}:{}", encoded(client_id), encoded(secret.expose())));
    format!("Basic {}", STANDARD.encode(both.expose()))
}

fn private(path: &Path) -> Result<Secret, CredentialsError> {
    Ok(SecretRef::File(path.to_owned()).load()?)
}

/// The key with the algorithm that it is for: the first one that works with it.
fn signer(pem: &str) -> Option<(Algorithm, EncodingKey)> {
    let pem = pem.as_bytes();
    let all = [
        (Algorithm::ES256, EncodingKey::from_ec_pem(pem)),
        (Algorithm::ES384, EncodingKey::from_ec_pem(pem)),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(pem)),
        (Algorithm::RS256, EncodingKey::from_rsa_pem(pem)),
    ];
    let works = |algorithm: Algorithm, key: &EncodingKey| {
        jsonwebtoken::encode(&Header::new(algorithm), &json!({}), key).is_ok()
    };
    all.into_iter()
        .find_map(|(algorithm, key)| key.ok().filter(|key| works(algorithm, key)).map(|key| (algorithm, key)))
}

fn assertion(
    client_id: &str,
    audience: &str,
    header: &Header,
    key: &EncodingKey,
) -> Result<String, CredentialsError> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| CredentialsError::Unsigned)?;
    let now = postern_base::clock::seconds(SystemTime::now());
    let claims = json!({
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "jti": URL_SAFE_NO_PAD.encode(id),
        "iat": now,
        "exp": now + ASSERTION_LIFE,
    });
    jsonwebtoken::encode(header, &claims, key).map_err(|_| CredentialsError::Unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_encodes_both_as_forms_do() {
        let of = |id, secret| basic(id, &Secret::new(secret));
        assert_eq!(of("relay", "secret"), format!("Basic {}", STANDARD.encode("relay:secret")));
        let odd = "https%3A%2F%2Frelay.example.com%2Frs:se%2Bcr+et%3A%25%2F%26%3D%7E";
        let encoded = of("https://relay.example.com/rs", "se+cr et:%/&=~");
        assert_eq!(encoded, format!("Basic {}", STANDARD.encode(odd)));
    }
}
