//! Takes where an issuer's keys come from; gives the keys that are fit; refuses answers that are not what they should be. Nothing here
//! comes from a token: addresses are the operator's or the issuer's own document's.

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use postern_base::http_client::{HttpClient, HttpClientError, HttpClientOptions, is_loopback_host};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::key::Key;
use super::settings::KeySource;

/// Why an issuer's keys could not be had; for logs and health, never for callers.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Http(#[from] HttpClientError),
    #[error("{0}: answered {1} (redirects are not followed)")]
    Status(Uri, StatusCode),
    #[error("{0}: the answer is not what it should be: {1}")]
    Answer(Uri, String),
    #[error(
        "{0}: says it is issuer {1:?}: `issuer` in the configuration must be exactly that, or the address is wrong"
    )]
    OtherIssuer(Uri, String),
    #[error("issuer {0:?} has no valid address for its metadata")]
    Address(String),
    #[error("{0}: a public issuer's keys cannot be on loopback")]
    Loopback(String),
    #[error("did not end in time")]
    Late,
    #[error("was cut off")]
    Cut,
}

/// OpenID Connect Discovery 3, RFC 8414 2: the members that matter.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySetDocument {
    keys: Vec<Value>,
}

/// More than any issuer has at once.
const MAX_KEYS: usize = 100;

/// Fetches the keys; finds their address first unless the operator gave it.
pub(super) async fn fetch(source: &KeySource) -> Result<Vec<Key>, FetchError> {
    // Connections belong to the runtime that made them, and fetches are minutes apart: a client for each.
    let client = HttpClient::new(HttpClientOptions {
        extra_roots_pem: source.ca.clone(),
        allow_private: source.private,
        ..HttpClientOptions::default()
    })?;
    let uri = match &source.uri {
        Some(uri) => uri.clone(),
        None => discover(&client, &source.issuer).await?,
    };
    let document: KeySetDocument = get(&client, uri).await?;
    Ok(document.keys.iter().filter_map(|key| Key::new(key, &source.algorithms)).take(MAX_KEYS).collect())
}

/// Asks the OpenID Connect document, and where that is not to be had RFC 8414's.
async fn discover(client: &HttpClient, issuer: &str) -> Result<Uri, FetchError> {
    let [openid, oauth] = well_known(issuer).ok_or_else(|| FetchError::Address(issuer.to_owned()))?;
    match metadata(client, openid, issuer).await {
        // An issuer that is down is down at its other address too.
        Ok(uri) => Ok(uri),
        Err(down @ FetchError::Http(_)) => Err(down),
        Err(first) => metadata(client, oauth, issuer).await.map_err(|_| first),
    }
}

async fn metadata(client: &HttpClient, uri: Uri, issuer: &str) -> Result<Uri, FetchError> {
    let found: Metadata = get(client, uri.clone()).await?;
    if found.issuer != issuer {
        return Err(FetchError::OtherIssuer(uri, found.issuer));
    }
    let keys: Uri =
        found.jwks_uri.parse().map_err(|_| FetchError::Answer(uri, "jwks_uri is not a URL".to_owned()))?;
    let on_loopback = |host: Option<&str>| host.is_some_and(is_loopback_host);
    let issuer_on_loopback = Url::parse(issuer).is_ok_and(|url| on_loopback(url.host_str()));
    if on_loopback(keys.host()) && !issuer_on_loopback {
        return Err(FetchError::Loopback(found.jwks_uri));
    }
    Ok(keys)
}

/// The addresses of an issuer's metadata: OpenID Connect appends to the issuer's path, RFC 8414 (3.1) puts its own before it.
fn well_known(issuer: &str) -> Option<[Uri; 2]> {
    let url = Url::parse(issuer).ok()?;
    let path = url.path().trim_end_matches('/');
    let at = |path: String| {
        let mut url = url.clone();
        url.set_path(&path);
        url.as_str().parse().ok()
    };
    Some([
        at(format!("{path}/.well-known/openid-configuration"))?,
        at(format!("/.well-known/oauth-authorization-server{path}"))?,
    ])
}

async fn get<T: DeserializeOwned>(client: &HttpClient, uri: Uri) -> Result<T, FetchError> {
    let request = Request::get(uri.clone())
        .header(http::header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|e| FetchError::Answer(uri.clone(), e.to_string()))?;
    let answer = client.send(request).await?;
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status(uri, answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|e| FetchError::Answer(uri, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_sought_where_the_standards_say() {
        for (issuer, openid, oauth) in [
            (
                "https://id.example.com",
                "https://id.example.com/.well-known/openid-configuration",
                "https://id.example.com/.well-known/oauth-authorization-server",
            ),
            (
                "https://id.example.com/",
                "https://id.example.com/.well-known/openid-configuration",
                "https://id.example.com/.well-known/oauth-authorization-server",
            ),
            (
                "https://id.example.com:8443/realms/corp",
                "https://id.example.com:8443/realms/corp/.well-known/openid-configuration",
                "https://id.example.com:8443/.well-known/oauth-authorization-server/realms/corp",
            ),
            (
                "https://id.example.com/oauth2/default/",
                "https://id.example.com/oauth2/default/.well-known/openid-configuration",
                "https://id.example.com/.well-known/oauth-authorization-server/oauth2/default",
            ),
        ] {
            assert_eq!(well_known(issuer).unwrap().map(|uri| uri.to_string()), [openid, oauth], "{issuer}");
        }
    }
}
