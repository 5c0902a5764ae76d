//! Reading ahead under TLS: takes a connection of which 4 KiB are asked at a time, as rustls does, and asks the kernel for more at once
//! where more is there. One that has sent little holds no memory for it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Read at once from a caller who sends much: two TLS records.
const AHEAD: usize = 32 * 1024;

/// A connection that is read ahead.
#[derive(Debug)]
pub struct Eager<S> {
    inner: S,
    /// Read and not yet asked for; holds memory only while the caller sends faster than it is asked.
    ahead: BytesMut,
    /// The last read took all that it might.
    has_more: bool,
}

impl<S> Eager<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, ahead: BytesMut::new(), has_more: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Eager<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() && !this.has_more {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            this.has_more = buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.ahead.is_empty() {
            this.ahead.reserve(AHEAD);
            let room = this.ahead.capacity();
            let read = poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.ahead);
            this.has_more = matches!(read, Poll::Ready(Ok(count)) if count == room);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                this.ahead = BytesMut::new();
                return read.map_ok(drop);
            }
        }
        let count = buf.remaining().min(this.ahead.len());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        if this.ahead.is_empty() && !this.has_more {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Eager<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_read_in_small_pieces_is_what_was_sent() {
        let (mut theirs, ours) = tokio::io::duplex(200_000);
        let sent: Vec<u8> = (0..150_000u32).map(|n| n.to_le_bytes()[0]).collect();
        theirs.write_all(&sent).await.unwrap();
        let mut eager = Eager::new(ours);
        let (mut read, mut piece) = (Vec::new(), [0; 4096]);
        while read.len() < sent.len() {
            let count = eager.read(&mut piece).await.unwrap();
            assert!(count > 0);
            read.extend_from_slice(&piece[..count]);
        }
        assert!(read == sent);
        theirs.write_all(b"later").await.unwrap();
        drop(theirs);
        let mut rest = Vec::new();
        eager.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"later");
        assert_eq!(eager.ahead.capacity(), 0, "who sends nothing holds nothing");
    }
}
