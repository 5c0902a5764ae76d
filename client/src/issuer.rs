//! Takes requests of the OAuth libraries; sends them through the bounded client (no redirects, time and size limits); gives what the
//! issuer granted, or says who is at fault. Revocation (RFC 7009) is written here: the library refuses plain http even on loopback.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use oauth2::{
    ErrorResponseType, HttpRequest, HttpResponse, RequestTokenError, StandardErrorResponse, TokenResponse,
};
use postern_base::http_client::{HttpClient, HttpClientError};
use url::Url;
use url::form_urlencoded::Serializer;

use crate::output::text::escape;
use crate::session::{Access, Token};

/// Why the issuer gave nothing. Texts are escaped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssuerError {
    #[error("the issuer says {code}{description}")]
    Refused { code: String, description: String },
    #[error("the issuer cannot be reached: {0}")]
    Unreachable(String),
    #[error("the issuer's answer makes no sense: {0}")]
    Nonsense(String),
}

impl<T> From<RequestTokenError<HttpClientError, StandardErrorResponse<T>>> for IssuerError
where
    T: ErrorResponseType + Display + 'static,
{
    fn from(error: RequestTokenError<HttpClientError, StandardErrorResponse<T>>) -> Self {
        match error {
            RequestTokenError::ServerResponse(said) => {
                let description = said.error_description().map(|d| format!(": {}", escape(d)));
                Self::Refused {
                    code: escape(&said.error().to_string()),
                    description: description.unwrap_or_default(),
                }
            }
            RequestTokenError::Request(error) => Self::Unreachable(escape(&error.to_string())),
            RequestTokenError::Parse(error, _) => Self::Nonsense(escape(&error.to_string())),
            RequestTokenError::Other(text) => Self::Nonsense(escape(&text)),
        }
    }
}

/// What an issuer granted.
pub(crate) struct Granted {
    token: Token,
    expires_in: Option<Duration>,
    /// Absent: the old one stays good.
    pub(crate) refresh_token: Option<Token>,
}

/// How long a token is believed good when the issuer does not say (RFC 6749 5.1 only recommends that it does).
const LIFE_UNSAID: Duration = Duration::from_mins(5);

impl Granted {
    pub(crate) fn new(answer: &impl TokenResponse) -> Self {
        Self {
            token: Token::new(answer.access_token().secret()),
            expires_in: answer.expires_in(),
            refresh_token: answer
                .refresh_token()
                .filter(|t| !t.secret().is_empty())
                .map(|t| Token::new(t.secret())),
        }
    }

    pub(crate) fn access(&self, now: u64) -> Access {
        let life = self.expires_in.unwrap_or(LIFE_UNSAID).as_secs();
        Access { token: self.token.clone(), issued: now, expires: now.saturating_add(life) }
    }
}

/// Our client in the shape that the OAuth libraries call.
pub(crate) fn sender(
    http: &HttpClient,
) -> impl Fn(HttpRequest) -> std::pin::Pin<Box<dyn Future<Output = Result<HttpResponse, HttpClientError>> + Send>>
{
    let http = http.clone();
    move |request| {
        let http = http.clone();
        Box::pin(async move { Ok(http.send(request.map(Bytes::from)).await?.map(|body| body.to_vec())) })
    }
}

/// Asks the issuer to end a token (RFC 7009); `hint` is `refresh_token` or `access_token`.
pub(crate) async fn revoke(
    http: &HttpClient,
    endpoint: &Url,
    client_id: &str,
    token: &Token,
    hint: &str,
) -> Result<(), IssuerError> {
    let form = Serializer::new(String::new())
        .append_pair("token", token.0.expose())
        .append_pair("token_type_hint", hint)
        .append_pair("client_id", client_id)
        .finish();
    let request = Request::post(endpoint.as_str())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(Bytes::from(form))
        .map_err(|e| IssuerError::Nonsense(e.to_string()))?;
    let answer = http.send(request).await.map_err(|e| IssuerError::Unreachable(escape(&e.to_string())))?;
    if answer.status().is_success() {
        return Ok(());
    }
    let code = serde_json::from_slice::<serde_json::Value>(answer.body()).ok();
    let code = code.as_ref().and_then(|v| v.get("error")?.as_str()).map(escape);
    Err(IssuerError::Refused {
        code: code.unwrap_or_else(|| format!("status {}", answer.status())),
        description: String::new(),
    })
}
