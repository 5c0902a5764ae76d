//! Takes a loopback listener and a plain function from request to response; gives an HTTP/1.1 server for the demo's own two programs;
//! refuses more than a few hundred connections, large bodies and slow senders.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_base::shutdown::Shutdown;
use postern_base::telemetry::{self, LogFormat};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A handler does no I/O: it answers from memory.
pub(crate) type Handler = Arc<dyn Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync>;

/// One person's browser and a few programs need a handful.
const CONNECTIONS: usize = 256;
/// Forms and invoices are small.
const BODY: usize = 16 * 1024;
/// For the head of a request (and so for an idle connection), and again for its body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT, then closes at once: no answer takes long enough to be waited for.
pub(crate) fn run(servers: Vec<(SocketAddr, Handler)>) -> anyhow::Result<()> {
    telemetry::init("info", LogFormat::Text)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut accepting = JoinSet::new();
        for (address, handler) in servers {
            ensure!(address.ip().is_loopback(), "{address}: the demo listens on loopback only");
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
            accepting.spawn(accept(listener, handler));
        }
        Shutdown::new().on_signals(|| Duration::ZERO, std::future::ready(())).await?;
        Ok(())
    })
}

async fn accept(listener: TcpListener, handler: Handler) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&handler)));
                }
                Err(e) => {
                    tracing::warn!("accept: {e}");
                    // Out of file descriptors, most likely: let some connections end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(move |request| answer(request, Arc::clone(&handler)));
    let ended = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = ended {
        tracing::debug!("connection: {e}");
    }
}

async fn answer(request: Request<Incoming>, handler: Handler) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, BODY).collect()).await;
    let response = match body {
        Ok(Ok(body)) => handler(&Request::from_parts(head, body.to_bytes())),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            text(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "the body is too large\n")
        }
        Ok(Err(_)) => text(StatusCode::BAD_REQUEST, "text/plain", "the body ended too early\n"),
        Err(_) => text(StatusCode::REQUEST_TIMEOUT, "text/plain", "the body took too long\n"),
    };
    Ok(response.map(Full::new))
}

/// A response of one piece.
pub(crate) fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
