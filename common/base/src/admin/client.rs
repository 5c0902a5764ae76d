//! The commands' side of the admin API. Takes one call; gives its answer; tells "nothing runs" from every other failure.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::FILE;

/// A little more than the server gives itself.
const CALL: Duration = Duration::from_secs(35);
/// `agent ls` of tens of thousands of agents fits.
const BODY: usize = 64 * 1024 * 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("nothing is running here")]
    NotRunning,
    #[error("{error}")]
    Refused { status: StatusCode, error: String, details: Vec<String> },
    #[error("{path}: not allowed: run this as the server's user or as root")]
    NotAllowed { path: PathBuf },
    #[error("the admin socket does not answer as it should: {0}")]
    Broken(String),
}

/// What a refusal's body says.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    details: Vec<String>,
}

/// Where the admin API is.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        parsed(&self.call(Method::GET, path, Bytes::new(), BODY).await?)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        parsed(&self.call(Method::POST, path, body.to_string().into(), BODY).await?)
    }

    /// A file that the server has.
    pub async fn download(&self, path: &str) -> Result<Bytes, ClientError> {
        self.call(Method::GET, path, Bytes::new(), FILE).await
    }

    /// A file for the server.
    pub async fn upload(&self, path: &str, file: Bytes) -> Result<Value, ClientError> {
        parsed(&self.call(Method::POST, path, file, BODY).await?)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Bytes, ClientError> {
        let call = self.exchange(method, path, body, limit);
        timeout(CALL, call).await.unwrap_or_else(|_| Err(ClientError::Broken("no answer in time".into())))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|e| {
            if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
                ClientError::NotRunning
            } else if e.kind() == ErrorKind::PermissionDenied {
                ClientError::NotAllowed { path: self.path.clone() }
            } else {
                broken(&e)
            }
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "admin")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| broken(&e))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), limit).collect().await;
            let body = body.map_err(|e| broken(&*e))?.to_bytes();
            Ok((status, body))
        };
        // The connection is driven beside the exchange; it may well end before the answer was looked at.
        let mut answer = std::pin::pin!(answer);
        let (status, body) = tokio::select! {
            biased;
            answer = &mut answer => answer?,
            ended = connection => match ended {
                Ok(()) => answer.await?,
                Err(e) => return Err(broken(&e)),
            },
        };
        if status.is_success() {
            return Ok(body);
        }
        let refusal: Refusal =
            serde_json::from_slice(&body).map_err(|_| ClientError::Broken(status.to_string()))?;
        Err(ClientError::Refused { status, error: refusal.error, details: refusal.details })
    }
}

fn parsed(body: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(body).map_err(|e| broken(&e))
}

fn broken(error: &dyn std::error::Error) -> ClientError {
    ClientError::Broken(error.to_string())
}
