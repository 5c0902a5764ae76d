//! The unix socket: bound 0600, open to its owner and root alone, one call per connection. Takes calls and files under limits; gives them to a
//! handler. A dead relay's socket file is replaced; a living relay's is an error.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{AdminError, FILE};

/// Commands and a console at once; more than this is a loop in somebody's script, and waits.
const CONNECTIONS: usize = 32;
/// A whole call, the slowest reload included.
const CALL: Duration = Duration::from_secs(30);
/// A head is sent at once by any client of ours.
const HEAD: Duration = Duration::from_secs(5);
/// The largest body: a token with its question is far smaller.
const BODY: usize = 64 * 1024;
/// After a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One call.
#[derive(Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Bytes,
    /// Who calls, by the kernel's word.
    pub uid: u32,
}

/// What a call is answered with.
#[derive(Debug)]
pub enum Answer {
    Json(StatusCode, Value),
    /// Bytes as they are.
    File(Bytes),
}

impl From<(StatusCode, Value)> for Answer {
    fn from((status, value): (StatusCode, Value)) -> Self {
        Self::Json(status, value)
    }
}

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The paths of calls that bring files.
    files: &'static [&'static str],
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A file that stays is recognised as dead by the next server.
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Binds the socket; a dead server's is replaced.
    ///
    /// # Errors
    /// Something answers on it, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let io_error = |source| AdminError::Io { path: path.to_owned(), source };
        match BlockingStream::connect(path) {
            Ok(_) => return Err(AdminError::AlreadyRunning(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(io_error)?;
            }
            Err(e) => return Err(io_error(e)),
        }
        let listener = UnixListener::bind(path).map_err(io_error)?;
        let socket = Self { listener, path: path.to_owned(), files: &[] };
        // Between bind and here the peer check below already keeps others out.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io_error)?;
        Ok(socket)
    }

    /// Calls of these paths may bring files, which are far larger than questions.
    #[must_use]
    pub fn taking_files(mut self, paths: &'static [&'static str]) -> Self {
        self.files = paths;
        self
    }

    /// Until dropped; calls that run then are dropped too.
    pub async fn serve<H, F>(self, handler: H)
    where
        H: Fn(Call) -> F + Clone + Send + Sync + 'static,
        F: Future<Output: Into<Answer>> + Send + 'static,
    {
        let mut calls = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if calls.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => drop(calls.spawn(one_call(stream, self.files, handler.clone()))),
                    Err(e) => {
                        tracing::warn!(error = %e, "admin socket: accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = calls.join_next() => {}
            }
        }
    }
}

async fn one_call<H, F>(stream: UnixStream, files: &[&str], handler: H)
where
    H: Fn(Call) -> F,
    F: Future<Output: Into<Answer>>,
{
    let uid = match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => peer.uid(),
        Ok(peer) => return tracing::warn!(uid = peer.uid(), "admin socket: refused another user"),
        Err(e) => return tracing::warn!(error = %e, "admin socket: refused a peer without credentials"),
    };
    let service = service_fn(|request| async {
        Ok::<_, std::convert::Infallible>(respond(request, uid, files, &handler).await)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
    match timeout(CALL, http.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!(error = %e, "admin socket: connection failed"),
        Err(_) => tracing::warn!("admin socket: a call took too long and was dropped"),
    }
}

async fn respond<H, F>(
    request: Request<Incoming>,
    uid: u32,
    files: &[&str],
    handler: &H,
) -> Response<Full<Bytes>>
where
    H: Fn(Call) -> F,
    F: Future<Output: Into<Answer>>,
{
    let (head, body) = request.into_parts();
    let limit = if files.contains(&head.uri.path()) { FILE } else { BODY };
    let answer = match Limited::new(body, limit).collect().await {
        Ok(body) => {
            let path = head.uri.path().to_owned();
            handler(Call { method: head.method, path, body: body.to_bytes(), uid }).await.into()
        }
        Err(e) => Answer::Json(StatusCode::BAD_REQUEST, json!({ "error": e.to_string() })),
    };
    let (status, kind, body) = match answer {
        Answer::Json(status, value) => (status, "application/json", value.to_string().into()),
        Answer::File(bytes) => (StatusCode::OK, "application/octet-stream", bytes),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::client::{Client, ClientError};

    #[tokio::test]
    async fn calls_reach_the_handler_and_dead_sockets_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let client = Client::new(path.clone());
        assert!(matches!(client.get("/status").await, Err(ClientError::NotRunning)));

        // A server that was killed leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(client.get("/status").await, Err(ClientError::NotRunning)));
        let socket = Socket::bind(&path).unwrap().taking_files(&["/file"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path), Err(AdminError::AlreadyRunning(_))));

        let uid = rustix::process::geteuid().as_raw();
        let server = socket.serve(move |call: Call| async move {
            assert_eq!(call.uid, uid);
            match (call.method, call.path.as_str()) {
                (Method::POST, "/echo") => {
                    Answer::Json(StatusCode::OK, serde_json::from_slice(&call.body).unwrap())
                }
                (Method::POST, "/file") => Answer::Json(StatusCode::OK, json!(call.body.len())),
                (Method::GET, "/file") => Answer::File(vec![0xff; 3 * BODY].into()),
                _ => (StatusCode::CONFLICT, json!({ "error": "no", "details": ["a", "b"] })).into(),
            }
        });
        let commands = async {
            let echoed = client.post("/echo", &json!({ "n": 7 })).await.unwrap();
            assert_eq!(echoed, json!({ "n": 7 }));
            let Err(ClientError::Refused { error, details, .. }) = client.get("/else").await else {
                panic!()
            };
            assert_eq!(
                (error.as_str(), details.as_slice()),
                ("no", ["a".to_owned(), "b".to_owned()].as_slice())
            );
            assert_eq!(client.download("/file").await.unwrap(), vec![0xff; 3 * BODY]);
            let sent = client.upload("/file", vec![1; 3 * BODY].into()).await.unwrap();
            assert_eq!(sent, json!(3 * BODY));
            let huge = client.post("/echo", &json!("x".repeat(BODY))).await;
            assert!(matches!(huge, Err(ClientError::Refused { .. } | ClientError::Broken(_))), "{huge:?}");
        };
        let both = async {
            tokio::select! { () = server => {}, () = commands => {} }
        };
        timeout(Duration::from_secs(20), both).await.expect("every call is answered");
        assert!(!path.exists(), "the file goes with the server");
    }
}
