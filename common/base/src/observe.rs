//! `/metrics`, `/healthz` and `/readyz` of a server, on an address of their own: takes connections, and what the server says of itself.
//! Refuses every other address and method.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Scrapers and probes are few.
const CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(10);
/// After a failed accept the next one waits, or the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that can be looked at.
pub trait Observed: Send + Sync + 'static {
    /// All metrics as they are now, in the text format of `OpenMetrics`.
    fn metrics(&self) -> String;

    /// What would keep a request from succeeding now, a line each; nothing where all is ready.
    fn obstacles(&self) -> impl Future<Output = String> + Send;
}

/// Until it is dropped.
pub async fn serve(observed: Arc<impl Observed>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if tasks.len() < CONNECTIONS => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let observed = observed.clone();
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let observed = observed.clone();
                async move { Ok::<_, Infallible>(answer(&*observed, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "metrics connection ended");
            }
        });
    }
}

async fn answer(observed: &impl Observed, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, observed.metrics()),
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => match observed.obstacles().await {
            text if text.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
            text => (StatusCode::SERVICE_UNAVAILABLE, text),
        },
        _ => (StatusCode::NOT_FOUND, "only /metrics, /healthz and /readyz are here\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
