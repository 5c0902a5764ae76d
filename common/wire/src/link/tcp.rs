//! The TCP link: HTTP/2 over TLS with reversed roles. The agent dials and serves; the relay is the HTTP/2 client on the connection that
//! it accepted, so that only the relay opens streams. A request without fields stands for a stream; its bytes are DATA frames, its codes
//! `RST_STREAM`'s. HTTP/2 has one end for both halves of a stream: a reset or stop of either ends both.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use h2::{client, server};
use http::{Method, Request, Response};
use postern_base::sync::lock;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{client as tls_client, server as tls_server};
use tokio_util::sync::CancellationToken;

use super::{Code, StreamError};

mod stream;

pub(super) use stream::{Receiving, Sending};

/// Streams that the relay may have open at once: what a busy QUIC tunnel is permitted at most; over TCP it costs nothing until used.
pub const STREAMS: u32 = 1024;
/// As over QUIC: what one stalled reader can make the other side hold.
const STREAM_WINDOW: u32 = 192 * 1024;
/// Never the bottleneck, or a few stalled readers would hold up every other stream.
const WINDOW: u32 = STREAM_WINDOW * STREAMS;
/// Per stream, sent and not yet written to the socket.
const SEND_BUFFER: usize = 256 * 1024;
/// Four TLS records; larger frames would hold up other streams' answers.
const FRAME: u32 = 64 * 1024;
/// Callers that leave early make the relay reset streams; that is no attack. Streams that were reset are remembered, so that what was on its
/// way for them is known for what it is.
const RESETS: usize = 4096;
const RESET_MEMORY: Duration = Duration::from_secs(30);
/// Streams' heads carry no fields: what has some costs memory for nothing.
const FIELDS: u32 = 1024;
/// After a close, what was sent last has this long to leave.
const LINGER: Duration = Duration::from_millis(500);

/// One tunnel's connection.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    role: Role,
    peer: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    alpn: Vec<u8>,
    exporter: [u8; 32],
    /// Fires when either side ended the connection.
    closed: CancellationToken,
    reason: OnceLock<String>,
    /// The task that moves the bytes; it ends with the last clone.
    _driver: JoinSet<()>,
}

#[derive(Debug)]
enum Role {
    /// The relay; `None` once closed.
    Opens(Mutex<Option<client::SendRequest<Bytes>>>),
    /// The agent.
    Accepts(tokio::sync::Mutex<mpsc::Receiver<(Sending, Receiving)>>),
}

fn lost(error: &h2::Error) -> StreamError {
    StreamError::Lost(error.to_string().escape_debug().to_string())
}

/// The relay's side of an accepted connection whose handshake is done.
///
/// # Errors
/// The connection broke before HTTP/2 was spoken.
pub async fn accepted<S>(
    stream: tls_server::TlsStream<S>,
    peer: SocketAddr,
) -> Result<super::Link, StreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let proved = Proved::by(stream.get_ref().1);
    let (opener, mut connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESETS)
        .reset_stream_duration(RESET_MEMORY)
        // Late frames of streams that are forgotten are the callers' doing, and must not end the tunnel of everybody else.
        .max_local_error_reset_streams(None)
        .max_header_list_size(FIELDS)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(|e| lost(&e))?;
    let closed = CancellationToken::new();
    let ours = closed.clone();
    let driver = async move {
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // By then no new stream can be opened, so it ends when the last of the old ones does.
            () = ours.cancelled() => tokio::time::timeout(LINGER, &mut connection).await.unwrap_or(Ok(())),
        };
        tracing::trace!(?ended, "TCP link ended");
        ours.cancel();
    };
    Ok(link(Role::Opens(Mutex::new(Some(opener))), peer, proved, closed, driver))
}

/// The agent's side of a connection that it dialled, whose handshake is done.
///
/// # Errors
/// The connection broke, or the relay does not speak HTTP/2 as a client.
pub async fn dialled<S>(
    stream: tls_client::TlsStream<S>,
    peer: SocketAddr,
) -> Result<super::Link, StreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let proved = Proved::by(stream.get_ref().1);
    let connection = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_concurrent_reset_streams(RESETS)
        .reset_stream_duration(RESET_MEMORY)
        .max_local_error_reset_streams(None)
        .max_header_list_size(FIELDS)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|e| lost(&e))?;
    let (opened, accepted) = mpsc::channel(STREAMS as usize);
    let closed = CancellationToken::new();
    let driver = drive(connection, opened, closed.clone());
    Ok(link(Role::Accepts(tokio::sync::Mutex::new(accepted)), peer, proved, closed, driver))
}

/// Moves the agent's side until it ends; hands on each stream that the relay opens.
async fn drive<S>(
    mut connection: server::Connection<S, Bytes>,
    opened: mpsc::Sender<(Sending, Receiving)>,
    closed: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            () = closed.cancelled() => {
                connection.graceful_shutdown();
                let ending = std::future::poll_fn(|cx| connection.poll_closed(cx));
                // Streams that still run are cut when it is dropped.
                let _ = tokio::time::timeout(LINGER, ending).await;
                break;
            }
        };
        let Some(Ok((request, mut respond))) = next else { break };
        // The head says nothing: all there is to know comes as bytes.
        let Ok(sending) = respond.send_response(Response::new(()), false) else { continue };
        let halves = stream::accepted(sending, request.into_body());
        if let Err(mpsc::error::TrySendError::Full((mut sending, _))) = opened.try_send(halves) {
            sending.reset(Code::OVERLOADED);
        }
    }
    closed.cancel();
}

/// What a handshake showed.
struct Proved {
    chain: Vec<CertificateDer<'static>>,
    alpn: Vec<u8>,
    exporter: [u8; 32],
}

impl Proved {
    fn by<D>(session: &rustls::ConnectionCommon<D>) -> Self {
        let chain = session.peer_certificates().map(<[CertificateDer<'_>]>::to_vec).unwrap_or_default();
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec).unwrap_or_default();
        // It fails before the handshake's end alone, and then nothing that is signed over zeros is worth anything at the other end.
        let exporter = session.export_keying_material([0; 32], super::EXPORTER, None).unwrap_or_default();
        Self { chain, alpn, exporter }
    }
}

fn link(
    role: Role,
    peer: SocketAddr,
    Proved { chain, alpn, exporter }: Proved,
    closed: CancellationToken,
    driver: impl Future<Output = ()> + Send + 'static,
) -> super::Link {
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let shared =
        Shared { role, peer, chain, alpn, exporter, closed, reason: OnceLock::new(), _driver: tasks };
    super::Link(super::Inner::Tcp(Connection(Arc::new(shared))))
}

impl Connection {
    pub(super) fn opens(&self) -> bool {
        matches!(self.0.role, Role::Opens(_))
    }

    pub(super) async fn open(&self) -> Result<(Sending, Receiving), StreamError> {
        let gone = || StreamError::Lost(self.why());
        let Role::Opens(opener) = &self.0.role else {
            return Err(StreamError::Lost("only a relay opens streams over TCP".to_owned()));
        };
        let opener = lock(opener).clone().ok_or_else(gone)?;
        let mut opener = opener.ready().await.map_err(|e| lost(&e))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static("https://agent/");
        let (answer, sending) = opener.send_request(request, false).map_err(|e| lost(&e))?;
        // Ready again once the peer has room for this stream; given up before that, it is taken back.
        opener.ready().await.map_err(|e| lost(&e))?;
        Ok(stream::opened(sending, answer))
    }

    pub(super) async fn accept(&self) -> Result<(Sending, Receiving), StreamError> {
        let gone = || StreamError::Lost(self.why());
        let Role::Accepts(accepted) = &self.0.role else {
            return Err(StreamError::Lost("only a relay opens streams over TCP".to_owned()));
        };
        let mut accepted = accepted.lock().await;
        tokio::select! {
            biased;
            stream = accepted.recv() => stream.ok_or_else(gone),
            () = self.0.closed.cancelled() => Err(gone()),
        }
    }

    pub(super) fn peer_chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    pub(super) fn alpn(&self) -> &[u8] {
        &self.0.alpn
    }

    pub(super) fn exporter(&self) -> [u8; 32] {
        self.0.exporter
    }

    pub(super) fn peer_address(&self) -> SocketAddr {
        self.0.peer
    }

    pub(super) fn close(&self, code: Code, reason: &str) {
        let said = if reason.is_empty() { code.to_string() } else { format!("{code} ({reason})") };
        // The first reason is the true one.
        let _ = self.0.reason.set(said);
        if let Role::Opens(opener) = &self.0.role {
            lock(opener).take();
        }
        self.0.closed.cancel();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    pub(super) async fn closed(&self) -> StreamError {
        self.0.closed.cancelled().await;
        StreamError::Lost(self.why())
    }

    fn why(&self) -> String {
        self.0.reason.get().cloned().unwrap_or_else(|| "the connection ended".to_owned())
    }
}
