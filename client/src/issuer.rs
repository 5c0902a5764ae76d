//! Takes requests of the OAuth libraries; sends them through the bounded client (no redirects, time and size limits), with a proof of the
//! session's key where there is one (RFC 9449, 5); gives what the issuer granted, or says who is at fault. Revocation (RFC 7009) is written
//! here: the library refuses plain http even on loopback.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response};
use oauth2::{
    ErrorResponseType, HttpRequest, HttpResponse, RequestTokenError, StandardErrorResponse, TokenResponse,
};
use postern_base::http_client::{HttpClient, HttpClientError};
use serde_json::Value;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::output::text::escape;
use crate::session::dpop::{KeyError, ProofKey, Purpose};
use crate::session::machine::{Machine, Proof};
use crate::session::pass::{DPOP, Nonce, USE_NONCE};
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
    /// What this program is to prove itself with.
    #[error("{0}")]
    Credentials(String),
}

impl IssuerError {
    /// Whether it is about the client itself, not about what it asked for (RFC 6749, 5.2).
    pub(crate) fn is_of_client(&self) -> bool {
        match self {
            Self::Credentials(_) => true,
            Self::Refused { code, .. } => {
                matches!(code.as_str(), "invalid_client" | "unauthorized_client" | "invalid_grant")
            }
            Self::Unreachable(_) | Self::Nonsense(_) => false,
        }
    }
}

impl<T> From<RequestTokenError<SendError, StandardErrorResponse<T>>> for IssuerError
where
    T: ErrorResponseType + Display + 'static,
{
    fn from(error: RequestTokenError<SendError, StandardErrorResponse<T>>) -> Self {
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
    bound: bool,
    expires_in: Option<Duration>,
    /// Absent: the old one stays good.
    pub(crate) refresh_token: Option<Token>,
}

/// How long a token is believed good when the issuer does not say (RFC 6749 5.1 only recommends that it does).
const LIFE_UNSAID: Duration = Duration::from_mins(5);

impl Granted {
    /// `prover` went with the request: only then may the token be bound.
    pub(crate) fn new<T: TokenResponse>(answer: &T, prover: &Prover) -> Result<Self, IssuerError>
    where
        T::TokenType: AsRef<str>,
    {
        let bound = answer.token_type().as_ref().eq_ignore_ascii_case("dpop");
        if bound && prover.key.is_none() {
            return Err(IssuerError::Nonsense("it gave a token that is bound to a key, but saw none".into()));
        }
        Ok(Self {
            token: Token::new(answer.access_token().secret()),
            bound,
            expires_in: answer.expires_in(),
            refresh_token: answer
                .refresh_token()
                .filter(|t| !t.secret().is_empty())
                .map(|t| Token::new(t.secret())),
        })
    }

    pub(crate) fn access(&self, now: u64) -> Access {
        let life = self.expires_in.unwrap_or(LIFE_UNSAID).as_secs();
        let expires = now.saturating_add(life);
        Access { token: self.token.clone(), issued: now, expires, bound: self.bound }
    }
}

/// What proves to a token endpoint that one has the session's key, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prover {
    key: Option<Arc<ProofKey>>,
    /// The token endpoint's own.
    nonce: Nonce,
}

impl Prover {
    pub(crate) fn new(key: Option<Arc<ProofKey>>, nonce: Nonce) -> Self {
        Self { key, nonce }
    }

    /// The thumbprint of its key.
    pub(crate) fn thumbprint(&self) -> Option<&str> {
        self.key.as_deref().map(ProofKey::thumbprint)
    }

    fn prove(&self, request: &mut Request<Bytes>) -> Result<(), KeyError> {
        let Some(key) = &self.key else { return Ok(()) };
        let whole = request.uri().to_string();
        let uri = whole.split(['?', '#']).next().unwrap_or_default();
        let nonce = self.nonce.last();
        let purpose =
            Purpose { method: request.method().as_str(), uri, token: None, nonce: nonce.as_deref() };
        let proof = key.proof(&purpose)?;
        request.headers_mut().insert(DPOP, proof);
        Ok(())
    }

    /// Whether the request is to be made once more, with the nonce that this answer brought (RFC 9449, 8).
    fn wants_nonce(&self, answer: &Response<Bytes>) -> bool {
        if self.key.is_none() || !self.nonce.heard(answer.headers()) || !answer.status().is_client_error() {
            return false;
        }
        serde_json::from_slice::<Value>(answer.body()).is_ok_and(|said| said["error"] == USE_NONCE)
    }
}

/// Why a request to the issuer got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Http(#[from] HttpClientError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A request under way.
pub(crate) type Sending = Pin<Box<dyn Future<Output = Result<HttpResponse, SendError>> + Send>>;

/// Our client in the shape that the OAuth libraries call; every request goes with a proof by `prover`.
pub(crate) fn sender(http: &HttpClient, prover: &Prover) -> impl Fn(HttpRequest) -> Sending + use<> {
    let (http, prover) = (http.clone(), prover.clone());
    move |request| {
        let (http, prover) = (http.clone(), prover.clone());
        let mut request = request.map(Bytes::from);
        Box::pin(async move {
            prover.prove(&mut request)?;
            let mut answer = http.send(request.clone()).await?;
            if prover.wants_nonce(&answer) {
                prover.prove(&mut request)?;
                answer = http.send(request).await?;
            }
            Ok(answer.map(|body| body.to_vec()))
        })
    }
}

/// Who asks for a revocation.
pub(crate) struct Revoker<'a> {
    pub(crate) endpoint: &'a Url,
    pub(crate) client_id: &'a str,
    /// How a confidential client proves itself.
    pub(crate) machine: Option<&'a Machine>,
}

impl Revoker<'_> {
    /// Asks the issuer to end a token (RFC 7009); `hint` is `refresh_token` or `access_token`.
    pub(crate) async fn revoke(
        &self,
        http: &HttpClient,
        token: &Token,
        hint: &str,
    ) -> Result<(), IssuerError> {
        let proof = self.machine.map(|machine| machine.prove(self.client_id, self.endpoint)).transpose()?;
        let mut form = Serializer::new(String::new());
        form.append_pair("token", token.0.expose())
            .append_pair("token_type_hint", hint)
            .append_pair("client_id", self.client_id)
            .extend_pairs(proof.iter().flat_map(Proof::fields));
        let mut request = Request::post(self.endpoint.as_str())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        if let Some(Proof::Secret(secret)) = &proof {
            let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encoded(self.client_id), encoded(secret.expose()));
            request = request.header(AUTHORIZATION, format!("Basic {}", BASE64_STANDARD.encode(pair)));
        }
        let request =
            request.body(Bytes::from(form.finish())).map_err(|e| IssuerError::Nonsense(e.to_string()))?;
        let answer =
            http.send(request).await.map_err(|e| IssuerError::Unreachable(escape(&e.to_string())))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let code = serde_json::from_slice::<Value>(answer.body()).ok();
        let code = code.as_ref().and_then(|v| v.get("error")?.as_str()).map(escape);
        Err(IssuerError::Refused {
            code: code.unwrap_or_else(|| format!("status {}", answer.status())),
            description: String::new(),
        })
    }
}
