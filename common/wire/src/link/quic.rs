//! The QUIC link: quinn's connection and streams with our reset codes, and the transport settings, each with what it costs.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::{
    Connection, ConnectionError, IdleTimeout, ReadError, RecvStream, SendStream, StoppedError,
    TransportConfig, VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;

use super::{Code, StreamError};

/// Streams that an agent permits a relay to begin with: an idle tunnel costs 40 KiB at 100, 115 KiB at 1,024.
pub const STREAMS: u32 = 100;
/// Keeps NAT bindings open; most forget UDP after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A dead peer is noticed within this time, at both ends.
const IDLE: Duration = Duration::from_secs(20);
/// Per-stream receive window: what one stalled reader can make the relay hold. 300 of them stay below 64 MiB (security.md 3); a path
/// of 50 ms carries 3.8 MiB/s per stream.
const STREAM_WINDOW: u32 = 192 * 1024;
/// Per-tunnel receive window: never the bottleneck, or a few stalled readers would hold up every other stream of their tunnel.
const WINDOW: u32 = STREAM_WINDOW * 1024;
/// Bytes sent and not yet acknowledged, per tunnel: 1 Gbit/s at 60 ms.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// Bytes under way before the first acknowledgement says what the path carries; quinn paces them over a round trip. Also what may be
/// sent into a cut: once it is full nothing but the transport's own repetitions goes out, ever more slowly, and a path that is back
/// is found too late. A few streams that trickle and a heartbeat a second stay below it for the idle timeout.
const FIRST_WINDOW: u64 = 64 * 1024;
/// What every path on the internet carries; larger only where the path allows, and 10 x MTU stays below 65,500 bytes for GSO.
const MTU: u16 = 1452;
/// The largest piece handed on at once.
const CHUNK: usize = 64 * 1024;

/// The transport's settings; `streams` is how many the peer may open.
pub fn transport(streams: u32) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU);
    config.mtu_discovery_config(Some(discovery));
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW);
    config.congestion_controller_factory(Arc::new(congestion));
    Arc::new(config)
}

pub(super) fn lost(error: ConnectionError) -> StreamError {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).map_or(Code::PROTOCOL, Code);
            let reason = String::from_utf8_lossy(&close.reason);
            let reason = reason.escape_debug();
            StreamError::Lost(if close.reason.is_empty() {
                code.to_string()
            } else {
                format!("{code} ({reason})")
            })
        }
        ConnectionError::ConnectionClosed(close) => StreamError::Lost(close.to_string()),
        other @ (ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted) => StreamError::Lost(other.to_string()),
    }
}

pub(super) async fn open(connection: &Connection) -> Result<(SendStream, RecvStream), StreamError> {
    connection.open_bi().await.map_err(lost)
}

pub(super) async fn accept(connection: &Connection) -> Result<(SendStream, RecvStream), StreamError> {
    connection.accept_bi().await.map_err(lost)
}

pub(super) fn peer_chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

pub(super) fn exporter(connection: &Connection) -> [u8; 32] {
    let mut exported = [0; 32];
    // It fails before the handshake's end alone, and then nothing that is signed over zeros is worth anything at the other end.
    let _ = connection.export_keying_material(&mut exported, super::EXPORTER, &[]);
    exported
}

pub(super) fn alpn(connection: &Connection) -> Vec<u8> {
    let data = connection.handshake_data();
    let data = data.and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.and_then(|data| data.protocol).unwrap_or_default()
}

pub(super) async fn send(stream: &mut SendStream, chunks: &mut [Bytes]) -> Result<(), StreamError> {
    stream.write_all_chunks(chunks).await.map_err(|e| write_error(&e))
}

// quinn's reading futures hold no state of their own between polls, so a fresh one each time is the same future.

pub(super) fn poll_chunk(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, StreamError>> {
    let read = pin!(stream.read_chunk(CHUNK, true));
    let chunk = ready!(read.poll(cx));
    Poll::Ready(chunk.map(|chunk| chunk.map(|c| c.bytes)).map_err(|e| read_error(&e)))
}

pub(super) fn poll_chunks(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
    chunks: &mut [Bytes],
) -> Poll<Result<Option<usize>, StreamError>> {
    let read = pin!(stream.read_chunks(chunks));
    read.poll(cx).map_err(|e| read_error(&e))
}

/// What the end of [`SendStream::stopped`] means.
pub(super) fn stop_code(stopped: &Result<Option<VarInt>, StoppedError>) -> Option<Code> {
    match stopped {
        Ok(code) => code.map(code_of),
        Err(_) => Some(Code::CANCELLED),
    }
}

fn code_of(code: VarInt) -> Code {
    u32::try_from(code.into_inner()).map_or(Code::PROTOCOL, Code)
}

fn write_error(error: &WriteError) -> StreamError {
    match error {
        WriteError::Stopped(code) => StreamError::Peer(code_of(*code)),
        WriteError::ConnectionLost(e) => lost(e.clone()),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Lost(error.to_string()),
    }
}

fn read_error(error: &ReadError) -> StreamError {
    match error {
        ReadError::Reset(code) => StreamError::Peer(code_of(*code)),
        ReadError::ConnectionLost(e) => lost(e.clone()),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            StreamError::Lost(error.to_string())
        }
    }
}
