//! The public listener: takes TCP connections, gives callers' requests to the walk in [`crate::request`] and agents' connections to
//! [`crate::tunnel`]; refuses, before any work, what is over a limit of connections or time. Who comes, and whether with HTTP/1.1 or
//! HTTP/2, is told by ALPN alone, so nothing has to be guessed from bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_base::shutdown::Shutdown;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::request;
use crate::request::body::ResponseBody;
use crate::settings::Limits;
use crate::tunnel;
use crate::workers::Worker;

pub mod admission;
pub mod certificate;
pub mod eager;
pub mod hello;
mod observe;
pub mod proxy;
pub mod timers;

use admission::ConnectionSlot;
use eager::Eager;
use hello::{Arrival, Row};
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
/// Detects callers that vanished while a stream was open; upgraded HTTP/1.1 connections have TCP's own keepalive for that.
const H2_PING: Duration = Duration::from_secs(30);
/// The request line and all fields must fit hyper's buffer; the walk applies the exact limits.
const H1_LINE: usize = 16 * 1024;

/// What every request of one connection shares. An upgraded stream holds it too, and so the connection's place.
#[derive(Debug)]
pub struct Connection {
    pub peer: SocketAddr,
    /// The name that the caller asked for in TLS.
    pub server_name: Option<String>,
    /// SHA-256 of the certificate that the caller proved in TLS to have the key of (RFC 8705).
    pub certificate: Option<[u8; 32]>,
    pub is_http2: bool,
    pub worker: Worker,
    pub clock: ConnectionClock,
    /// Its place and its count, until it ends.
    _held: (ConnectionSlot, Open),
}

/// Takes one connection; it runs as a task of this worker.
pub fn accept(worker: &Worker, stream: TcpStream, peer: SocketAddr) {
    let relay = &worker.relay;
    let settings = relay.current().load().settings.clone();
    let is_balancer = settings.listen.is_balancer(peer.ip());
    let slot = relay.admission().connect();
    // Of a balancer's own address, and of a proxy's, nothing is counted: others' requests come from there.
    let is_shared = is_balancer || settings.listen.is_proxy(peer.ip());
    let slot = slot.and_then(|mut slot| (is_shared || slot.charge(peer.ip())).then_some(slot));
    let Some(slot) = slot else {
        // Over a limit: closed without a word, which is the cheapest refusal there is.
        relay.metrics().refused("limit");
        return tracing::debug!(%peer, "connection refused: too many");
    };
    let (taken, shutdown) = (worker.clone(), relay.shutdown().clone());
    worker.tasks.spawn(async move {
        tokio::select! {
            () = arrive(taken, stream, peer, slot, is_balancer) => {}
            () = shutdown.cut() => {}
        }
    });
}

/// A connection up to the end of its handshake, and then to whom it belongs.
async fn arrive(
    worker: Worker,
    mut stream: TcpStream,
    mut peer: SocketAddr,
    mut slot: ConnectionSlot,
    is_balancer: bool,
) {
    let relay = worker.relay.clone();
    let settings = relay.snapshot().settings.clone();
    let limits = settings.limits.clone();
    let deadline = Instant::now() + limits.handshake;
    if is_balancer {
        match timeout_at(deadline, proxy::caller(&mut stream)).await {
            Ok(Ok(caller)) => peer = caller.unwrap_or(peer),
            Ok(Err(error)) => {
                relay.metrics().refused("proxy");
                return tracing::warn!(balancer = %peer, %error, "connection refused");
            }
            Err(_) => {
                relay.metrics().refused("proxy");
                return tracing::debug!(balancer = %peer, "no PROXY header came in time");
            }
        }
        if !settings.listen.is_proxy(peer.ip()) && !slot.charge(peer.ip()) {
            relay.metrics().refused("limit");
            return tracing::debug!(%peer, "connection refused: too many");
        }
    }
    match hello::shake(&relay, stream, peer, deadline).await {
        None => {}
        Some(Arrival { row: Row::Callers, stream }) => serve(worker, stream, peer, slot, &limits).await,
        Some(Arrival { row: Row::Agents, stream }) => {
            // Agents have a limit of their own for each address; among all connections they count like any other.
            slot.release_address();
            let id = worker.id;
            worker.serve_agent(async move {
                let _slot = slot;
                tunnel::serve_tcp(relay, stream, peer, id).await;
            });
        }
    }
}

/// A caller's connection, until it ends or is upgraded; whoever serves an upgraded stream owns it from then on, untouched by this clock.
async fn serve(
    worker: Worker,
    stream: TlsStream<Eager<TcpStream>>,
    peer: SocketAddr,
    slot: ConnectionSlot,
    limits: &Limits,
) {
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let server_name = session.server_name().map(str::to_ascii_lowercase);
    let certificate = session.peer_certificates().and_then(<[_]>::first).map(|leaf| hello::thumbprint(leaf));
    let clock = ConnectionClock::new(limits, is_http2);
    let shutdown: Shutdown = worker.relay.shutdown().clone();
    let held = (slot, Open::new(worker.relay.metrics().connections.clone()));
    let connection = Arc::new(Connection {
        peer,
        server_name,
        certificate,
        is_http2,
        worker,
        clock: clock.clone(),
        _held: held,
    });
    let stream = TokioIo::new(TimedStream::new(stream, clock.clone()));
    let service = service_fn(|request| answer(connection.clone(), request));
    if is_http2 {
        drive(http2_builder(limits).serve_connection(stream, service), &clock, &shutdown).await;
    } else {
        let served = http1_builder(limits).serve_connection(stream, service).with_upgrades();
        drive(served, &clock, &shutdown).await;
    }
}

/// Counts a connection while it lives.
#[derive(Debug)]
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
        .enable_connect_protocol()
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}
