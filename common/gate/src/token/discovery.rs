//! Takes where an issuer is and what of it is wanted; gives its endpoints, and the keys that are fit; refuses answers that are not what
//! they should be. Nothing here comes from a token: addresses are the operator's or the issuer's own document's.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use postern_base::defaults::HTTP_CLIENT_BODY;
use postern_base::http_client::{HttpClient, HttpClientError, HttpClientOptions, is_loopback_host};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use super::key::{Algorithm, Key};
use super::settings::{Discovery, KeyPlace, KeySource, Reach};

/// Why something of an issuer's could not be had; for logs and health, never for callers.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Http(#[from] HttpClientError),
    #[error("{0}: answered {1} (redirects are not followed)")]
    Status(Uri, StatusCode),
    #[error("{0}: the answer is not what it should be: {1}")]
    Answer(Uri, String),
    #[error(
        "{0}: says it is issuer {1:?}: `issuer` (or `also`) in the configuration must be exactly that, or the address is wrong"
    )]
    OtherIssuer(Uri, String),
    #[error("issuer {0:?} has no valid address for its metadata")]
    Address(String),
    #[error("issuer {0:?} names no {1}: write its address in the configuration")]
    NoEndpoint(String, &'static str),
    #[error("{0}: a public issuer's endpoints cannot be on loopback")]
    Loopback(String),
    #[error("{0}")]
    File(String),
    #[error("did not end in time")]
    Late,
    #[error("was cut off")]
    Cut,
}

/// What an issuer's document may say where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Jwks,
    Introspection,
    /// Where a client certificate is asked for (RFC 8705 5); the usual one where there is no other.
    MtlsIntrospection,
    Token,
    /// The same for a client that shows a certificate.
    MtlsToken,
}

/// OpenID Connect Discovery 3, RFC 8414 2: the members that matter.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: Option<String>,
    introspection_endpoint: Option<String>,
    token_endpoint: Option<String>,
    mtls_endpoint_aliases: Option<Aliases>,
}

#[derive(Deserialize)]
struct Aliases {
    introspection_endpoint: Option<String>,
    token_endpoint: Option<String>,
}

impl Endpoint {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Jwks => "jwks_uri",
            Self::Introspection | Self::MtlsIntrospection => "introspection_endpoint",
            Self::Token | Self::MtlsToken => "token_endpoint",
        }
    }

    fn of(self, document: Metadata) -> Option<String> {
        match self {
            Self::Jwks => document.jwks_uri,
            Self::Introspection => document.introspection_endpoint,
            Self::MtlsIntrospection => {
                let aliases = document.mtls_endpoint_aliases;
                aliases.and_then(|all| all.introspection_endpoint).or(document.introspection_endpoint)
            }
            Self::Token => document.token_endpoint,
            Self::MtlsToken => {
                let aliases = document.mtls_endpoint_aliases;
                aliases.and_then(|all| all.token_endpoint).or(document.token_endpoint)
            }
        }
    }
}

#[derive(Deserialize)]
struct KeySetDocument {
    keys: Vec<Value>,
}

/// More than any issuer has at once.
const MAX_KEYS: usize = 100;

impl KeySetDocument {
    fn fit(&self, algorithms: &[Algorithm]) -> Vec<Key> {
        self.keys.iter().filter_map(|key| Key::new(key, algorithms)).take(MAX_KEYS).collect()
    }
}

/// Has the keys: from their file, or from their address, which is found first unless the operator gave it.
pub(super) async fn fetch(source: &KeySource) -> Result<Vec<Key>, FetchError> {
    let uri = match &source.place {
        KeyPlace::File(path) => {
            let (path, algorithms) = (path.clone(), source.algorithms.clone());
            let reading = tokio::task::spawn_blocking(move || read(&path, &algorithms));
            return reading.await.unwrap_or(Err(FetchError::Cut));
        }
        KeyPlace::At(uri) => Some(uri.clone()),
        KeyPlace::Discovered => None,
    };
    let client = client(&source.reach)?;
    let uri = match uri {
        Some(uri) => uri,
        None => endpoint(&client, &source.reach, Endpoint::Jwks).await?,
    };
    let document: KeySetDocument = get(&client, uri).await?;
    Ok(document.fit(&source.algorithms))
}

/// The keys in a file.
pub(super) fn read(path: &Path, algorithms: &[Algorithm]) -> Result<Vec<Key>, FetchError> {
    let refuse = |why: String| FetchError::File(format!("{}: {why}", path.display()));
    let text = text(path)?;
    let document: KeySetDocument = serde_json::from_slice(&text)
        .map_err(|e| refuse(format!("is not a key set (RFC 7517 5, {{\"keys\": […]}}): {e}")))?;
    Ok(document.fit(algorithms))
}

/// What a file of keys holds.
pub(super) fn text(path: &Path) -> Result<Vec<u8>, FetchError> {
    let refuse = |why: String| FetchError::File(format!("{}: {why}", path.display()));
    let limit = HTTP_CLIENT_BODY as u64;
    let cannot = |e: std::io::Error| refuse(format!("cannot be read: {e}"));
    let metadata = path.metadata().map_err(cannot)?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(refuse(format!("is not a file of at most {limit} bytes")));
    }
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(cannot)?;
    Ok(text)
}

/// Connections belong to the runtime that made them, and fetches are minutes apart: a client for each.
pub(super) fn client(reach: &Reach) -> Result<HttpClient, HttpClientError> {
    HttpClient::new(HttpClientOptions {
        extra_roots_pem: reach.ca.clone(),
        allow_private: reach.private,
        proxy: reach.proxy.clone(),
        ..HttpClientOptions::default()
    })
}

/// Asks the documents in which an issuer says where its endpoints are. Where the OpenID Connect one is not to be had, or does not name
/// what is wanted, RFC 8414's is asked too, unless the configuration wants one of them alone.
pub(super) async fn endpoint(
    client: &HttpClient,
    reach: &Reach,
    wanted: Endpoint,
) -> Result<Uri, FetchError> {
    let [openid, oauth] =
        well_known(&reach.issuer).ok_or_else(|| FetchError::Address(reach.issuer.clone()))?;
    match reach.discovery {
        Discovery::Off => Err(FetchError::NoEndpoint(reach.issuer.clone(), wanted.name())),
        Discovery::Oidc => named(client, openid, reach, wanted).await,
        Discovery::Oauth => named(client, oauth, reach, wanted).await,
        Discovery::Auto => match named(client, openid, reach, wanted).await {
            Ok(uri) => Ok(uri),
            // An issuer that is down is down at its other address too.
            Err(down @ FetchError::Http(_)) => Err(down),
            Err(first) => named(client, oauth, reach, wanted).await.map_err(|_| first),
        },
    }
}

/// The endpoint that one document names.
async fn named(
    client: &HttpClient,
    document: Uri,
    reach: &Reach,
    wanted: Endpoint,
) -> Result<Uri, FetchError> {
    let found: Metadata = get(client, document.clone()).await?;
    if found.issuer != reach.issuer && !reach.also.contains(&found.issuer) {
        return Err(FetchError::OtherIssuer(document, found.issuer));
    }
    let text = wanted.of(found);
    let text = text.ok_or_else(|| FetchError::NoEndpoint(reach.issuer.clone(), wanted.name()))?;
    let uri: Uri =
        text.parse().map_err(|_| FetchError::Answer(document, format!("{} is not a URL", wanted.name())))?;
    let on_loopback = |host: Option<&str>| host.is_some_and(is_loopback_host);
    let issuer_on_loopback = Url::parse(&reach.issuer).is_ok_and(|url| on_loopback(url.host_str()));
    if on_loopback(uri.host()) && !issuer_on_loopback {
        return Err(FetchError::Loopback(text));
    }
    Ok(uri)
}

/// The addresses of an issuer's metadata: OpenID Connect appends to the issuer's path, RFC 8414 (3.1) puts its own before it.
pub(super) fn well_known(issuer: &str) -> Option<[Uri; 2]> {
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
