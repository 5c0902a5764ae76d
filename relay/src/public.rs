//! The callers' side: takes TCP connections, gives requests to the walk in [`crate::request`]; refuses, before any work, what is over a
//! limit of connections or time. HTTP/1.1 or HTTP/2 is chosen by ALPN, so nothing has to be guessed from bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::request;
use crate::request::body::ResponseBody;
use crate::settings::Limits;
use crate::workers::Worker;

pub mod admission;
pub mod certificate;
pub mod observe;
pub mod timers;

use admission::ConnectionSlot;
use timers::{ConnectionClock, TimedStream, drive};

/// HTTP/2: streams per connection, and what one of them and all of them may have in flight towards us (security.md 2).
const H2_STREAMS: u32 = 100;
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_WINDOW: u32 = 1024 * 1024;
/// What HTTP/2 counts for each field besides its name and value (RFC 9113, 6.5.2).
const H2_FIELD: usize = 32;
/// A peer that resets more streams than this before we served them, or makes us reset more than that, is attacking (security.md 3).
const H2_PENDING_RESETS: usize = 20;
const H2_LOCAL_RESETS: usize = 100;
/// Response bytes held per stream while the caller does not read.
const H2_SEND_BUFFER: usize = 64 * 1024;
/// Detects callers that vanished while a stream was open.
const H2_PING: Duration = Duration::from_secs(30);
/// The request line and all fields must fit hyper's buffer; the walk applies the exact limits.
const H1_LINE: usize = 16 * 1024;

/// What every request of one connection shares.
#[derive(Debug)]
pub struct Connection {
    pub peer: SocketAddr,
    /// The name that the caller asked for in TLS.
    pub server_name: Option<String>,
    pub is_http2: bool,
    pub worker: Worker,
    pub clock: ConnectionClock,
    /// Held until the connection ends.
    _slot: ConnectionSlot,
}

/// Takes one connection; it runs as a task of this worker.
pub fn accept(worker: &Worker, stream: TcpStream, peer: SocketAddr) {
    let Some(slot) = worker.relay.admission().connect(peer.ip()) else {
        // Over a limit: closed without a word, which is the cheapest refusal there is.
        tracing::debug!(%peer, "connection refused: too many");
        return;
    };
    let task = serve(worker.clone(), stream, peer, slot);
    worker.tasks.spawn(task);
}

async fn serve(worker: Worker, stream: TcpStream, peer: SocketAddr, slot: ConnectionSlot) {
    let relay = worker.relay.clone();
    let limits = relay.snapshot().settings.limits.clone();
    let _open = Open::new(relay.metrics().connections.clone());
    let shutdown = relay.shutdown().clone();
    let work = async {
        // Small answers leave at once; the kernel would otherwise wait for more.
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(relay.certificate().config());
        let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return tracing::debug!(%peer, error = %e, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        };
        let (_, session) = stream.get_ref();
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let server_name = session.server_name().map(str::to_ascii_lowercase);
        let clock = ConnectionClock::new(&limits, is_http2);
        let connection =
            Arc::new(Connection { peer, server_name, is_http2, worker, clock: clock.clone(), _slot: slot });
        let stream = TokioIo::new(TimedStream::new(stream, clock.clone()));
        let service = service_fn(|request| answer(connection.clone(), request));
        if is_http2 {
            let served = drive(http2_builder(&limits).serve_connection(stream, service), &clock, &shutdown);
            served.await;
        } else {
            let served = drive(http1_builder(&limits).serve_connection(stream, service), &clock, &shutdown);
            served.await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cut() => {}
    }
}

/// Counts a connection while it lives.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    Ok(request::serve(&connection, request).await)
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Times are ours (see timers): hyper's one would double as the keep-alive limit.
        .header_read_timeout(None)
        .keep_alive(true)
        .half_close(false)
        .max_headers(limits.fields + 8)
        .max_buf_size(H1_LINE + limits.headers);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_header_list_size(u32::try_from(limits.headers + H2_FIELD * limits.fields).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_LOCAL_RESETS)
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}
