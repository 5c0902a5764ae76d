//! Takes two streams; copies each into the other until both have ended, passing each end on by itself (half-close). Refuses to call
//! anything a good end that was not one, and says which side broke.
//!
//! A buffer is filled with all that is there before it is written, so that bulk takes few calls; nothing waits for more to come.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// What one direction holds at most. Four TLS records; more gained nothing.
const BUFFER: usize = 64 * 1024;

/// Which side broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the local side: {0}")]
    Local(io::Error),
    #[error("the far side: {0}")]
    Far(io::Error),
}

/// Copies until both directions have ended; `early` came from afar already.
pub(crate) async fn splice<L, F>(local: &mut L, far: &mut F, early: &[u8]) -> Result<(), Broken>
where
    L: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let (mut down, mut up) = (Way::new(early), Way::new(&[]));
    poll_fn(|cx| {
        // The end from afar is passed on first: a local side may end because of it.
        let down = down.poll(cx, far, local);
        let down = down.map_err(|end| end.sides(Broken::Far, Broken::Local))?;
        let up = up.poll(cx, local, far);
        let up = up.map_err(|end| end.sides(Broken::Local, Broken::Far))?;
        if down.is_ready() && up.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

enum End {
    Reading(io::Error),
    Writing(io::Error),
}

impl End {
    fn sides(self, reader: fn(io::Error) -> Broken, writer: fn(io::Error) -> Broken) -> Broken {
        match self {
            Self::Reading(error) => reader(error),
            Self::Writing(error) => writer(error),
        }
    }
}

/// One direction.
struct Way {
    buffer: BytesMut,
    ended: bool,
    unflushed: bool,
    closed: bool,
}

impl Way {
    fn new(early: &[u8]) -> Self {
        let mut buffer = BytesMut::with_capacity(BUFFER.max(early.len()));
        buffer.extend_from_slice(early);
        Self { buffer, ended: false, unflushed: false, closed: false }
    }

    /// Ready once the reader has ended and the writer knows.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), End>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.closed {
            self.fill(cx, reader).map_err(End::Reading)?;
            if !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.buffer));
                match written.map_err(End::Writing)? {
                    0 => return Poll::Ready(Err(End::Writing(io::ErrorKind::WriteZero.into()))),
                    written => self.buffer.advance(written),
                }
                self.unflushed = true;
            } else if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(End::Writing)?;
                self.closed = true;
            } else {
                if self.unflushed {
                    ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(End::Writing)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, up to a full buffer. When nothing is left in it and it has not ended, the reader will wake this task.
    fn fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> io::Result<()> {
        if self.buffer.is_empty() {
            // What was written is given back to the buffer.
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
        }
        while !self.ended && self.buffer.len() < self.buffer.capacity() {
            match poll_read_buf(Pin::new(&mut *reader), cx, &mut self.buffer) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "splice/tests.rs"]
mod tests;
