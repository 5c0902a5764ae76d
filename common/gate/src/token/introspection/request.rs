//! Takes one token; gives what its issuer answers when asked about it (RFC 7662 2); refuses every answer that does not say plainly
//! whether the token is active. Proves who asks in one of five ways; nothing of it is ever logged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use postern_base::http_client::{HttpClient, HttpClientError, HttpClientOptions};
use postern_base::sync::lock;
use serde_json::{Map, Value};
use tokio::runtime::{Handle, Id};
use url::form_urlencoded::Serializer;

use super::credentials::{Credentials, CredentialsError, Field};
use crate::token::discovery::{self, Endpoint, FetchError};
use crate::token::json;
use crate::token::settings::{Authentication, Reach};

/// Why there is no answer; for logs and health, never for callers.
#[derive(Debug, thiserror::Error)]
pub(in crate::token) enum AskError {
    #[error(transparent)]
    Http(#[from] HttpClientError),
    #[error("its endpoint cannot be found: {0}")]
    Endpoint(#[from] FetchError),
    #[error("cannot prove who asks: {0}")]
    Credentials(#[from] CredentialsError),
    #[error("{0}: answered {1}: are the client id and its proof those that the issuer knows?")]
    WhoAsks(Uri, StatusCode),
    #[error(
        "{0}: answered 400: it does not judge tokens of this kind; with check = \"auto\" JWTs are not asked about"
    )]
    Unsupported(Uri),
    #[error("{0}: answered {1} (redirects are not followed)")]
    Status(Uri, StatusCode),
    #[error("{0}: the answer does not say whether the token is active (RFC 7662 2.2)")]
    Answer(Uri),
    #[error("did not end in time")]
    Late,
}

impl AskError {
    /// Whether the issuer is so unwell that asking makes it worse: 5xx and time-outs, nothing else.
    pub(in crate::token) fn is_overload(&self) -> bool {
        match self {
            Self::Status(_, status) | Self::Endpoint(FetchError::Status(_, status)) => {
                status.is_server_error()
            }
            Self::Http(HttpClientError::Timeout { .. })
            | Self::Endpoint(FetchError::Http(HttpClientError::Timeout { .. }) | FetchError::Late)
            | Self::Late => true,
            Self::Http(_)
            | Self::Endpoint(_)
            | Self::Credentials(_)
            | Self::WhoAsks(..)
            | Self::Unsupported(_)
            | Self::Answer(_) => false,
        }
    }

    /// Whether the issuer was there at all.
    pub(in crate::token) fn is_answer(&self) -> bool {
        matches!(self, Self::WhoAsks(..) | Self::Unsupported(_) | Self::Status(..) | Self::Answer(_))
    }
}

/// Asks one issuer, as a client of it.
pub(in crate::token) struct Asker {
    reach: Reach,
    auth: Authentication,
    /// What discovery is to find, without and with a client certificate.
    wanted: [Endpoint; 2],
    /// Read when they are first needed: commands that ask nobody run where no secrets are.
    credentials: OnceLock<Credentials>,
    /// Where to ask, once it is known.
    endpoint: ArcSwapOption<Uri>,
    is_discovered: bool,
    /// Held while it is being found, so that one at a time looks for it.
    finding: tokio::sync::Mutex<()>,
    /// Connections belong to the runtime that made them; there are as many as workers.
    clients: Mutex<HashMap<Id, HttpClient>>,
}

impl Asker {
    pub(in crate::token) fn new(
        reach: &Reach,
        auth: &Authentication,
        endpoint: Option<&Uri>,
        wanted: [Endpoint; 2],
    ) -> Self {
        Self {
            reach: reach.clone(),
            auth: auth.clone(),
            wanted,
            credentials: OnceLock::new(),
            endpoint: ArcSwapOption::from_pointee(endpoint.cloned()),
            is_discovered: endpoint.is_none(),
            finding: tokio::sync::Mutex::default(),
            clients: Mutex::default(),
        }
    }

    /// Whether it can prove who asks.
    pub(in crate::token) fn check(&self) -> Result<(), CredentialsError> {
        let client = self.credentials().and_then(|credentials| self.new_client(credentials));
        client.map(drop)
    }

    fn credentials(&self) -> Result<&Credentials, CredentialsError> {
        if let Some(known) = self.credentials.get() {
            return Ok(known);
        }
        let loaded = Credentials::load(&self.auth, &self.reach.issuer)?;
        Ok(self.credentials.get_or_init(|| loaded))
    }

    /// The members of an answer that says the token is active; none when it is not.
    pub(super) async fn ask(&self, token: &str) -> Result<Option<Map<String, Value>>, AskError> {
        let (uri, answer) = self.post(&[("token", token), ("token_type_hint", "access_token")]).await?;
        said(&uri, &answer)
    }

    /// What the issuer answers to a form, whatever that is, and where the form was sent.
    pub(in crate::token) async fn post(
        &self,
        form: &[(&str, &str)],
    ) -> Result<(Arc<Uri>, Response<Bytes>), AskError> {
        let credentials = self.credentials()?;
        let client = self.client(credentials)?;
        let uri = self.endpoint(&client, credentials).await?;
        let answer = match client.send(question(&uri, form, credentials)?).await {
            // A connection that was kept may be gone by now: a question may be asked twice, it changes nothing.
            Err(HttpClientError::Transport { .. }) => client.send(question(&uri, form, credentials)?).await?,
            answer => answer?,
        };
        if answer.status() == StatusCode::NOT_FOUND && self.is_discovered {
            // It was there once: the issuer's document may name another by now.
            self.endpoint.store(None);
        }
        Ok((uri, answer))
    }

    /// Whether it is known where to ask.
    pub(super) fn has_found(&self) -> bool {
        self.endpoint.load().is_some()
    }

    /// Finds out where to ask.
    pub(super) async fn find(&self) -> Result<(), AskError> {
        let credentials = self.credentials()?;
        self.endpoint(&self.client(credentials)?, credentials).await.map(drop)
    }

    async fn endpoint(&self, client: &HttpClient, credentials: &Credentials) -> Result<Arc<Uri>, AskError> {
        if let Some(uri) = self.endpoint.load_full() {
            return Ok(uri);
        }
        let _alone = self.finding.lock().await;
        if let Some(uri) = self.endpoint.load_full() {
            return Ok(uri);
        }
        let [usual, mtls] = self.wanted;
        let wanted = if credentials.is_certificate() { mtls } else { usual };
        let uri = Arc::new(discovery::endpoint(client, &self.reach, wanted).await?);
        self.endpoint.store(Some(Arc::clone(&uri)));
        Ok(uri)
    }

    fn client(&self, credentials: &Credentials) -> Result<HttpClient, CredentialsError> {
        let mut clients = lock(&self.clients);
        let here = Handle::current().id();
        if let Some(client) = clients.get(&here) {
            return Ok(client.clone());
        }
        let client = self.new_client(credentials)?;
        clients.insert(here, client.clone());
        Ok(client)
    }

    fn new_client(&self, credentials: &Credentials) -> Result<HttpClient, CredentialsError> {
        let client = HttpClient::new(HttpClientOptions {
            extra_roots_pem: self.reach.ca.clone(),
            allow_private: self.reach.private,
            proxy: self.reach.proxy.clone(),
            identity: credentials.identity().cloned(),
            ..HttpClientOptions::default()
        });
        client.map_err(|e| CredentialsError::Unfit(e.to_string()))
    }
}

fn question(
    uri: &Uri,
    fields: &[(&str, &str)],
    credentials: &Credentials,
) -> Result<Request<Bytes>, AskError> {
    let mut form = Serializer::new(String::new());
    form.extend_pairs(fields);
    let mut request = Request::post(uri.clone())
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    match credentials.field()? {
        Field::Header(value) => request = request.header(header::AUTHORIZATION, value),
        Field::Form(pairs) => {
            form.extend_pairs(pairs);
        }
    }
    request.body(form.finish().into()).map_err(|_| CredentialsError::NoField.into())
}

fn said(uri: &Uri, answer: &Response<Bytes>) -> Result<Option<Map<String, Value>>, AskError> {
    let uri = || uri.clone();
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => return Err(AskError::Unsupported(uri())),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(AskError::WhoAsks(uri(), status));
        }
        status => return Err(AskError::Status(uri(), status)),
    }
    let mut members = json::object(answer.body()).ok_or_else(|| AskError::Answer(uri()))?;
    match members.remove("active") {
        Some(Value::Bool(true)) => Ok(Some(members)),
        Some(Value::Bool(false)) => Ok(None),
        _ => Err(AskError::Answer(uri())),
    }
}

/// A header's value that is not shown in logs.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
