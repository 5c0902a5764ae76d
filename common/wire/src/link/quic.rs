//! The QUIC link: quinn's connection and streams with our reset codes, and the transport settings, each with what it costs.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bincode::Encode;
use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, IdleTimeout, ReadError, TransportConfig, VarInt, WriteError};
use rustls::pki_types::CertificateDer;

use super::{Code, StreamError};
use crate::codec::{self, PREFIX};

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
    Arc::new(config)
}

/// One tunnel's connection. Clones share it; it closes when the last is dropped.
#[derive(Debug, Clone)]
pub struct Link {
    connection: quinn::Connection,
}

impl Link {
    pub fn new(connection: quinn::Connection) -> Self {
        Self { connection }
    }

    /// Opens a stream; waits while the peer permits no more of them.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let (send, recv) = self.connection.open_bi().await.map_err(lost)?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// The next stream that the peer opened.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let (send, recv) = self.connection.accept_bi().await.map_err(lost)?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// The chain that the peer proved in the handshake, leaf first; empty where it showed none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = self
            .connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        chain.map(|chain| *chain).unwrap_or_default()
    }

    pub fn alpn(&self) -> Vec<u8> {
        let data = self.connection.handshake_data();
        let data = data.and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
        data.and_then(|data| data.protocol).unwrap_or_default()
    }

    pub fn peer_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    pub fn close(&self, code: Code, reason: &str) {
        self.connection.close(code.0.into(), reason.as_bytes());
    }

    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Resolves when the tunnel is gone, with the reason.
    pub async fn closed(&self) -> StreamError {
        lost(self.connection.closed().await)
    }
}

fn lost(error: ConnectionError) -> StreamError {
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

/// The sending half. Dropped unfinished, it resets with [`Code::CANCELLED`].
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    ended: bool,
}

impl SendStream {
    fn new(inner: quinn::SendStream) -> Self {
        Self { inner, ended: false }
    }

    /// Sends all chunks in order, without copying them; waits while the peer does not read.
    pub async fn send(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        self.inner.write_all_chunks(chunks).await.map_err(|e| write_error(&e))
    }

    /// Sends one message with its length.
    pub async fn message<T: Encode>(&mut self, message: &T, limit: usize) -> Result<(), StreamError> {
        self.send(&mut [codec::encoded(message, limit)?]).await
    }

    /// The good end: everything sent so far is all there is.
    pub fn finish(&mut self) {
        // Fails only where the stream is gone already; then the peer knows.
        let _ = self.inner.finish();
        self.ended = true;
    }

    /// The bad end.
    pub fn reset(&mut self, code: Code) {
        let _ = self.inner.reset(code.0.into());
        self.ended = true;
    }

    /// Resolves when the peer wants no more of this stream (`Some` code) or has received all of it (`None`).
    pub fn stopped(&self) -> impl Future<Output = Option<Code>> + Send + Sync + use<> {
        let stopped = self.inner.stopped();
        async move {
            match stopped.await {
                Ok(code) => code.map(code_of),
                Err(_) => Some(Code::CANCELLED),
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(Code::CANCELLED);
        }
    }
}

/// The receiving half. Dropped before its end, it asks the peer to stop with [`Code::CANCELLED`].
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
    /// Bytes that came with a message but belong to what follows it.
    rest: Bytes,
    /// The beginning of a message that came in several pieces; kept here so that [`RecvStream::message`] may be dropped and called again.
    partial: BytesMut,
}

impl RecvStream {
    fn new(inner: quinn::RecvStream) -> Self {
        Self { inner, rest: Bytes::new(), partial: BytesMut::new() }
    }

    /// The next bytes as they arrived; `None` at the good end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        self.poll_arrived(cx)
    }

    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        // quinn's future holds no state of its own between polls, so a fresh one each time is the same future.
        let read = pin!(self.inner.read_chunk(CHUNK, true));
        let chunk = ready!(read.poll(cx));
        Poll::Ready(chunk.map(|chunk| chunk.map(|c| c.bytes)).map_err(|e| read_error(&e)))
    }

    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// What came with the last message and follows it.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Reads one message's bytes, without prefix; memory grows with what arrives, never with what is declared. `None` where the
    /// stream ended before its first byte. Dropping the future loses nothing: the next call goes on where it stood.
    pub async fn message(&mut self, limit: usize) -> Result<Option<Bytes>, StreamError> {
        loop {
            let held = if self.partial.is_empty() { &self.rest[..] } else { &self.partial[..] };
            let size = held.first_chunk().map(|prefix| codec::length(*prefix, limit)).transpose()?;
            if let Some(whole) = size.map(|size| PREFIX + size).filter(|whole| held.len() >= *whole) {
                let one_chunk = self.partial.is_empty();
                let mut bytes =
                    if one_chunk { std::mem::take(&mut self.rest) } else { self.partial.split().freeze() };
                self.rest = bytes.split_off(whole);
                return Ok(Some(bytes.split_off(PREFIX)));
            }
            let is_first = held.is_empty();
            match poll_fn(|cx| self.poll_arrived(cx)).await? {
                // The usual case: the whole message lies in the first chunk and is not copied.
                Some(chunk) if is_first => self.rest = chunk,
                Some(chunk) => {
                    self.partial.extend_from_slice(&std::mem::take(&mut self.rest));
                    self.partial.extend_from_slice(&chunk);
                }
                None if is_first => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
    }

    /// Tells the peer to send no more.
    pub fn stop(&mut self, code: Code) {
        let _ = self.inner.stop(code.0.into());
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // Does nothing where the end was read.
        self.stop(Code::CANCELLED);
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

#[cfg(test)]
mod tests;
