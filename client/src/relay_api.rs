//! Takes a relay and a token; gives what the relay's own addresses answer: its logins, the caller's services, a decision.
//! The token goes to that relay alone and never follows a redirect.

pub(crate) mod address;
pub(crate) mod lease;
pub(crate) mod problem;
pub(crate) mod said;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use postern_base::http_client::{HttpClient, HttpClientError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Exit, Failure};
use crate::output::text::escape;
use crate::session::pass::{Pass, PassError};
use address::{RelayUrl, Target};
use problem::Problem;
pub(crate) use said::{Catalogue, ClientIds, Explained, Held, Login, Principal, Published, Rule, Service};

/// Why the relay gave no useful answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("{relay} cannot be reached: {reason}")]
    Unreachable { relay: RelayUrl, reason: String },
    #[error("{relay} does not answer as a Postern relay: {reason}")]
    NotPostern { relay: RelayUrl, reason: String },
    #[error("{relay} refused: {status}")]
    Refused { relay: RelayUrl, status: u16, problem: Box<Problem> },
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// In a query value everything but letters, digits and what paths are made of is escaped.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One relay's own addresses.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    pub(crate) url: RelayUrl,
    http: HttpClient,
}

impl Relay {
    pub(crate) fn new(url: RelayUrl, http: HttpClient) -> Self {
        Self { url, http }
    }

    pub(crate) async fn published(&self) -> Result<Published, RelayError> {
        self.get("/.well-known/postern", None).await
    }

    pub(crate) async fn services(&self, pass: &Pass) -> Result<Catalogue, RelayError> {
        self.get("/.postern/services", Some(pass)).await
    }

    pub(crate) async fn explain(
        &self,
        pass: &Pass,
        method: &str,
        target: &Target,
    ) -> Result<Explained, RelayError> {
        let method = utf8_percent_encode(method, QUERY);
        let text = target.to_string();
        let text = utf8_percent_encode(&text, QUERY);
        let path = format!("/.postern/explain?method={method}&target={text}");
        self.get(&path, Some(pass)).await.map_err(|error| match error {
            RelayError::Refused { relay, status, problem } => {
                RelayError::Refused { relay, status, problem: Box::new(problem.about(&target.service)) }
            }
            other
            @ (RelayError::Unreachable { .. } | RelayError::NotPostern { .. } | RelayError::Pass(_)) => other,
        })
    }

    /// Whether the relay answers at all.
    pub(crate) async fn answers(&self) -> bool {
        match Request::get(self.url.at("/.well-known/postern")).body(Bytes::new()) {
            Ok(request) => self.http.send(request).await.is_ok(),
            Err(_) => false,
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, pass: Option<&Pass>) -> Result<T, RelayError> {
        let request = Request::get(self.url.at(path));
        self.send(path, request.body(Bytes::new()).map_err(|e| self.not_postern(e.to_string()))?, pass).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        pass: &Pass,
    ) -> Result<T, RelayError> {
        let body = serde_json::to_vec(body).map_err(|e| self.not_postern(e.to_string()))?;
        let request = Request::post(self.url.at(path)).header(CONTENT_TYPE, JSON).body(body.into());
        self.send(path, request.map_err(|e| self.not_postern(e.to_string()))?, Some(pass)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        mut request: Request<Bytes>,
        pass: Option<&Pass>,
    ) -> Result<T, RelayError> {
        request.headers_mut().insert(ACCEPT, JSON);
        let mut answer = self.answer(request.clone(), pass).await?;
        if pass.is_some_and(|pass| pass.wants_nonce(answer.status(), answer.headers())) {
            answer = self.answer(request, pass).await?;
        }
        let status = answer.status();
        if status.is_success() {
            return serde_json::from_slice(answer.body())
                .map_err(|e| self.not_postern(format!("{path}: {}", escape(&e.to_string()))));
        }
        match Problem::ours(answer.body()).filter(|_| problem::is_problem(answer.headers())) {
            Some(problem) => Err(RelayError::Refused {
                relay: self.url.clone(),
                status: status.as_u16(),
                problem: Box::new(problem.challenged(answer.headers())),
            }),
            None => Err(self.not_postern(format!("{path} answers with status {status}"))),
        }
    }

    async fn answer(
        &self,
        mut request: Request<Bytes>,
        pass: Option<&Pass>,
    ) -> Result<Response<Bytes>, RelayError> {
        if let Some(pass) = pass {
            let (method, uri) = (request.method().clone(), request.uri().to_string());
            pass.show(request.headers_mut(), method.as_str(), &uri)?;
        }
        self.http.send(request).await.map_err(|error| match error {
            HttpClientError::TooLarge { .. } | HttpClientError::Insecure(_) => {
                self.not_postern(error.to_string())
            }
            HttpClientError::Transport { reason, .. } | HttpClientError::Roots(reason) => {
                RelayError::Unreachable { relay: self.url.clone(), reason: escape(&reason) }
            }
            HttpClientError::Timeout { timeout, .. } => RelayError::Unreachable {
                relay: self.url.clone(),
                reason: format!("no answer within {timeout:?}"),
            },
        })
    }

    fn not_postern(&self, reason: String) -> RelayError {
        RelayError::NotPostern { relay: self.url.clone(), reason }
    }
}

impl RelayError {
    /// Whether the relay refused the token itself, so that a renewed one may help; a stronger login is not had by renewal.
    pub(crate) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, problem, .. } if !problem.is_step_up())
    }

    /// Whether an operator's lock is the reason.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Refused { problem, .. } if problem.is_locked())
    }
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        let message = error.to_string();
        match error {
            RelayError::Unreachable { reason, .. } => {
                Self::new(Exit::RelayUnreachable, message).fix(unreachable_fix(&reason))
            }
            RelayError::NotPostern { .. } => {
                Self::new(Exit::Other, message).fix("check the relay's name and port")
            }
            RelayError::Refused { relay, problem, .. } => problem.explain(None, &relay.to_string()),
            RelayError::Pass(_) => Self::new(Exit::LoginNeeded, message).fix("run: postern login --force"),
        }
    }
}

/// What to do about a connection that failed; the reason is the system's or the TLS library's own word.
fn unreachable_fix(reason: &str) -> &'static str {
    if reason.contains("the proxy ") {
        "check HTTPS_PROXY, or name the relay in NO_PROXY to go there directly"
    } else if reason.contains("Connection refused") {
        "is the relay running, and is that its port?"
    } else if reason.contains("InvalidContentType") {
        "that port does not speak TLS: check the port"
    } else if reason.contains("UnknownIssuer") {
        "its certificate is not trusted: give its CA with --ca FILE"
    } else if reason.contains("not valid yet") || reason.contains("certificate expired") {
        "set this machine's clock; if it is right, tell whoever runs the relay about its certificate"
    } else {
        "check the name and your network, then try again"
    }
}

#[cfg(test)]
#[path = "relay_api/tests.rs"]
mod tests;
