//! A caller's connection as hyper sees it: takes the TLS stream, tells the connection's clock what moves, and ends it so that the caller
//! reads our last answer even while it is still sending.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ConnectionClock;

/// What a caller may still send after our last answer before it is cut off: more than sockets hold on their way here.
const UNREAD: usize = 4 * 1024 * 1024;
/// Thrown away at once.
const PIECE: usize = 8 * 1024;

/// A stream that tells the clock what moves.
#[derive(Debug)]
pub struct TimedStream<S> {
    inner: S,
    clock: ConnectionClock,
    end: End,
}

/// How far the connection's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Said goodbye; what the caller still sends is thrown away, so many bytes of it.
    Lingering(usize),
    Done,
}

impl<S> TimedStream<S> {
    pub fn new(inner: S, clock: ConnectionClock) -> Self {
        Self { inner, clock, end: End::Open }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.clock.received();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.clock.write_blocked(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.clock.write_blocked(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.clock.write_blocked(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end == End::Open {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.end = if self.clock.lingers() { End::Lingering(UNREAD) } else { End::Done };
        }
        while let End::Lingering(left) = self.end {
            let mut thrown = [MaybeUninit::uninit(); PIECE];
            let mut thrown = ReadBuf::uninit(&mut thrown);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut thrown));
            let count = thrown.filled().len();
            self.end = if read.is_ok() && (1..left).contains(&count) {
                End::Lingering(left - count)
            } else {
                End::Done
            };
        }
        Poll::Ready(Ok(()))
    }
}
