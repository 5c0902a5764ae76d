//! Links carry a tunnel: they open and accept two-way byte streams whose ends can be told apart — finished well, or reset with a code.
//! QUIC, or HTTP/2 over TLS over TCP where UDP is blocked; dropping either half without finishing it resets the stream, so that nothing
//! cut short ever looks complete.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bincode::Encode;
use bytes::{Bytes, BytesMut};
use rustls::pki_types::CertificateDer;

use crate::codec::{self, PREFIX};

mod code;
pub mod quic;
pub mod tcp;
pub use code::{Code, StreamError};

/// What keying material of a connection's own is exported for (RFC 8446, 7.5): proofs of keys outside the handshake.
const EXPORTER: &[u8] = b"EXPORTER-postern-recover";

/// What a link runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkKind {
    Quic,
    Tcp,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

/// One tunnel's connection. Clones share it; it closes when the last is dropped.
#[derive(Debug, Clone)]
pub struct Link(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Quic(quinn::Connection),
    Tcp(tcp::Connection),
}

impl Link {
    pub fn quic(connection: quinn::Connection) -> Self {
        Self(Inner::Quic(connection))
    }

    pub fn kind(&self) -> LinkKind {
        match &self.0 {
            Inner::Quic(_) => LinkKind::Quic,
            Inner::Tcp(_) => LinkKind::Tcp,
        }
    }

    /// Opens a stream; waits while the peer permits no more of them. Dropping the future gives the stream up.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), StreamError> {
        Ok(match &self.0 {
            Inner::Quic(connection) => streams_of(quic::open(connection).await?),
            Inner::Tcp(connection) => streams_over_tcp(connection.open().await?),
        })
    }

    /// The next stream that the peer opened.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), StreamError> {
        Ok(match &self.0 {
            Inner::Quic(connection) => streams_of(quic::accept(connection).await?),
            Inner::Tcp(connection) => streams_over_tcp(connection.accept().await?),
        })
    }

    /// The first stream of a tunnel or join, which both sides call before any other: the agent opens it on QUIC, and the relay on TCP,
    /// where only the relay can.
    pub async fn control(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let opens = match &self.0 {
            Inner::Quic(connection) => connection.side() == quinn::Side::Client,
            Inner::Tcp(connection) => connection.opens(),
        };
        if opens { self.open().await } else { self.accept().await }
    }

    /// How many streams the peer may have open at once, from now on. Over TCP the number is fixed: there a permit costs nothing.
    pub fn permit(&self, streams: u32) {
        match &self.0 {
            Inner::Quic(connection) => connection.set_max_concurrent_bi_streams(streams.into()),
            Inner::Tcp(_) => {}
        }
    }

    /// The chain that the peer proved in the handshake, leaf first; empty where it showed none.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        match &self.0 {
            Inner::Quic(connection) => quic::peer_chain(connection),
            Inner::Tcp(connection) => connection.peer_chain().to_vec(),
        }
    }

    pub fn alpn(&self) -> Vec<u8> {
        match &self.0 {
            Inner::Quic(connection) => quic::alpn(connection),
            Inner::Tcp(connection) => connection.alpn().to_vec(),
        }
    }

    /// A secret that this connection's two ends alone have, for signatures that hold on it alone.
    pub fn exporter(&self) -> [u8; 32] {
        match &self.0 {
            Inner::Quic(connection) => quic::exporter(connection),
            Inner::Tcp(connection) => connection.exporter(),
        }
    }

    /// The round trip as the transport sees it, where it says so.
    pub fn round_trip(&self) -> Option<Duration> {
        match &self.0 {
            Inner::Quic(connection) => Some(connection.rtt()),
            Inner::Tcp(_) => None,
        }
    }

    pub fn peer_address(&self) -> SocketAddr {
        match &self.0 {
            Inner::Quic(connection) => connection.remote_address(),
            Inner::Tcp(connection) => connection.peer_address(),
        }
    }

    /// Ends the tunnel and every stream of it. Over TCP what was sent last still leaves, and the peer does not learn code and reason.
    pub fn close(&self, code: Code, reason: &str) {
        match &self.0 {
            Inner::Quic(connection) => connection.close(code.0.into(), reason.as_bytes()),
            Inner::Tcp(connection) => connection.close(code, reason),
        }
    }

    pub fn is_closed(&self) -> bool {
        match &self.0 {
            Inner::Quic(connection) => connection.close_reason().is_some(),
            Inner::Tcp(connection) => connection.is_closed(),
        }
    }

    /// Resolves when the tunnel is gone, with the reason.
    pub async fn closed(&self) -> StreamError {
        match &self.0 {
            Inner::Quic(connection) => quic::lost(connection.closed().await),
            Inner::Tcp(connection) => connection.closed().await,
        }
    }
}

fn streams_of((send, recv): (quinn::SendStream, quinn::RecvStream)) -> (SendStream, RecvStream) {
    (SendStream::new(Sending::Quic(send)), RecvStream::new(Receiving::Quic(recv)))
}

fn streams_over_tcp((send, recv): (tcp::Sending, tcp::Receiving)) -> (SendStream, RecvStream) {
    (SendStream::new(Sending::Tcp(send)), RecvStream::new(Receiving::Tcp(recv)))
}

#[derive(Debug)]
enum Sending {
    Quic(quinn::SendStream),
    Tcp(tcp::Sending),
}

/// The sending half. Dropped unfinished, it resets with [`Code::CANCELLED`].
#[derive(Debug)]
pub struct SendStream {
    inner: Sending,
    ended: bool,
}

impl SendStream {
    fn new(inner: Sending) -> Self {
        Self { inner, ended: false }
    }

    /// Sends all chunks in order, without copying them; waits while the peer does not read.
    pub async fn send(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        match &mut self.inner {
            Sending::Quic(stream) => quic::send(stream, chunks).await,
            Sending::Tcp(stream) => stream.send(chunks).await,
        }
    }

    /// Sends one message with its length.
    pub async fn message<T: Encode>(&mut self, message: &T, limit: usize) -> Result<(), StreamError> {
        self.send(&mut [codec::encoded(message, limit)?]).await
    }

    /// The good end: everything sent so far is all there is.
    pub fn finish(&mut self) {
        match &mut self.inner {
            // Fails only where the stream is gone already; then the peer knows.
            Sending::Quic(stream) => drop(stream.finish()),
            Sending::Tcp(stream) => stream.finish(),
        }
        self.ended = true;
    }

    /// The bad end. Over TCP it ends the other half too.
    pub fn reset(&mut self, code: Code) {
        match &mut self.inner {
            Sending::Quic(stream) => drop(stream.reset(code.0.into())),
            Sending::Tcp(stream) => stream.reset(code),
        }
        self.ended = true;
    }

    /// Resolves when the peer wants no more of this stream (`Some` code) or, over QUIC, has received all of it (`None`). To be awaited
    /// in the task that sends: over TCP both wait by the same waker.
    pub fn stopped(&self) -> impl Future<Output = Option<Code>> + Send + Sync + use<> {
        let stopped = match &self.inner {
            Sending::Quic(stream) => Ok(stream.stopped()),
            Sending::Tcp(stream) => Err(stream.stopped()),
        };
        async move {
            match stopped {
                Ok(stopped) => quic::stop_code(&stopped.await),
                Err(reset) => reset.await,
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

#[derive(Debug)]
enum Receiving {
    Quic(quinn::RecvStream),
    Tcp(tcp::Receiving),
}

/// The receiving half. Dropped before its end, it asks the peer to send no more: over QUIC at once, over TCP when the sending half is
/// gone too, for there both share one end.
#[derive(Debug)]
pub struct RecvStream {
    inner: Receiving,
    /// Bytes that came with a message but belong to what follows it.
    rest: Bytes,
    /// The beginning of a message that came in several pieces; kept here so that [`RecvStream::message`] may be dropped and called again.
    partial: BytesMut,
}

impl RecvStream {
    fn new(inner: Receiving) -> Self {
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
        match &mut self.inner {
            Receiving::Quic(stream) => quic::poll_chunk(stream, cx),
            Receiving::Tcp(stream) => stream.poll_chunk(cx),
        }
    }

    /// As many chunks as have arrived and fit; at least one, or `None` at the good end.
    pub fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        match &mut self.inner {
            Receiving::Quic(stream) if self.rest.is_empty() => quic::poll_chunks(stream, cx, chunks),
            Receiving::Quic(_) | Receiving::Tcp(_) => self.poll_chunk(cx).map_ok(|chunk| {
                let (chunk, first) = (chunk?, chunks.first_mut()?);
                *first = chunk;
                Some(1)
            }),
        }
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

    /// Tells the peer to send no more. Over TCP it ends the other half too.
    pub fn stop(&mut self, code: Code) {
        match &mut self.inner {
            Receiving::Quic(stream) => drop(stream.stop(code.0.into())),
            Receiving::Tcp(stream) => stream.stop(code),
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        match &mut self.inner {
            // Does nothing where the end was read.
            Receiving::Quic(stream) => drop(stream.stop(Code::CANCELLED.0.into())),
            Receiving::Tcp(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
