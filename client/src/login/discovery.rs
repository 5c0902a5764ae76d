//! Takes an issuer's URL; gives its endpoints; refuses a document that names another issuer. Ours, not the library's: that one demands
//! fields which plain OAuth servers (RFC 8414) need not have.

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use postern_base::http_client::{HttpClient, HttpClientError};
use serde::Deserialize;
use url::Url;

use super::LoginError;
use crate::issuer::IssuerError;
use crate::output::text::escape;
use crate::session::dpop::ALGORITHM;

/// What a client needs of the metadata (OpenID Connect Discovery, RFC 8414).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) issuer: String,
    pub(crate) token_endpoint: Url,
    #[serde(default)]
    pub(crate) authorization_endpoint: Option<Url>,
    #[serde(default)]
    pub(crate) device_authorization_endpoint: Option<Url>,
    #[serde(default)]
    pub(crate) revocation_endpoint: Option<Url>,
    #[serde(default)]
    pub(crate) jwks_uri: Option<Url>,
    /// RFC 9207: every answer in the browser carries `iss`.
    #[serde(default)]
    pub(crate) authorization_response_iss_parameter_supported: bool,
    /// RFC 9449, 5.1: what proofs may be signed with; none where it binds no tokens.
    #[serde(default)]
    pub(crate) dpop_signing_alg_values_supported: Vec<String>,
}

impl Metadata {
    /// Whether its tokens can be bound to a key of ours.
    pub(crate) fn binds_tokens(&self) -> bool {
        self.dpop_signing_alg_values_supported.iter().any(|algorithm| algorithm == ALGORITHM)
    }
}

/// OpenID Connect puts its path behind the issuer's, RFC 8414 between host and path.
fn addresses(issuer: &Url) -> [String; 2] {
    let origin = issuer.origin().ascii_serialization();
    let path = issuer.path().trim_end_matches('/');
    [
        format!("{origin}{path}/.well-known/openid-configuration"),
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
    ]
}

/// The first of the issuer's documents that can be read.
pub(crate) async fn discover(issuer: &str, http: &HttpClient) -> Result<Metadata, LoginError> {
    let failed = |reason: String| LoginError::Discovery { issuer: escape(issuer), reason };
    let url = Url::parse(issuer).map_err(|e| failed(e.to_string()))?;
    let mut first = None;
    for address in addresses(&url) {
        match fetch(&address, http).await {
            Ok(metadata) if metadata.issuer == issuer => return Ok(metadata),
            Ok(metadata) => {
                let other = escape(&metadata.issuer);
                return Err(failed(format!("its metadata says that it is {other:?}")));
            }
            Err(error) => first.get_or_insert(error),
        };
    }
    Err(match first {
        Some(NoMetadata::Unreachable(reason)) => IssuerError::Unreachable(reason).into(),
        Some(NoMetadata::Bad(reason)) => failed(reason),
        None => failed(String::new()),
    })
}

/// Whose fault it is that there is none: nobody's for long, or whoever runs the issuer's.
enum NoMetadata {
    Unreachable(String),
    Bad(String),
}

async fn fetch(address: &str, http: &HttpClient) -> Result<Metadata, NoMetadata> {
    let bad = NoMetadata::Bad;
    let request = Request::get(address)
        .header(ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|e| bad(e.to_string()))?;
    let answer = http.send(request).await.map_err(|error| {
        let reason = escape(&error.to_string());
        match error {
            HttpClientError::Transport { .. } | HttpClientError::Timeout { .. } => {
                NoMetadata::Unreachable(reason)
            }
            HttpClientError::TooLarge { .. } | HttpClientError::Insecure(_) | HttpClientError::Roots(_) => {
                bad(reason)
            }
        }
    })?;
    if answer.status() != StatusCode::OK {
        return Err(bad(format!("{address} answers with status {}", answer.status())));
    }
    // Some servers answer 200 with a page of HTML here.
    serde_json::from_slice(answer.body()).map_err(|e| bad(format!("{address}: {}", escape(&e.to_string()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_keep_the_issuers_path() {
        let of = |issuer: &str| addresses(&Url::parse(issuer).unwrap());
        assert_eq!(
            of("https://id.example.com/realms/corp"),
            [
                "https://id.example.com/realms/corp/.well-known/openid-configuration",
                "https://id.example.com/.well-known/oauth-authorization-server/realms/corp"
            ]
        );
        assert_eq!(
            of("https://id.example.com/")[0],
            "https://id.example.com/.well-known/openid-configuration"
        );
    }
}
