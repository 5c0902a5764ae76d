//! Raw bytes both ways between a local connection and a stream, for TCP services and upgrades. Half-closes pass through; what breaks off
//! on one side never looks like a good end on the other: the stream is reset, and the connection dropped without its closing words.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::link::{Code, RecvStream, SendStream, StreamError};

/// Read at once from the local connection: four TLS records.
const PIECE: usize = 64 * 1024;
/// A buffer with less room than this is left behind for a new one.
const ROOM: usize = 4 * 1024;
/// Chunks taken from the stream at once: more than 20 packets' worth.
const CHUNKS: usize = 32;
/// The idle limit is looked at this many times within its length: a clock read for every piece would cost more.
const LOOKS: u32 = 4;

/// Bytes that went through.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the local connection into the stream.
    pub up: AtomicU64,
    /// From the stream to the local connection.
    pub down: AtomicU64,
}

/// Why a pipe broke.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The local connection.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("nothing moved for {0:?}")]
    Idle(Duration),
}

/// Copies until both sides have ended well. With `idle`, a pipe through which nothing moves for that long is broken off.
///
/// # Errors
/// Either side broke off, or idled; the stream has been reset.
pub async fn pipe<T>(
    io: T,
    sender: &mut SendStream,
    mut receiver: RecvStream,
    idle: Option<Duration>,
    counts: &Counts,
) -> Result<(), PipeError>
where
    T: AsyncRead + AsyncWrite,
{
    let (read, write) = tokio::io::split(io);
    let copied = {
        let both = async {
            tokio::try_join!(up(read, sender, counts), down(&mut receiver, write, counts)).map(drop)
        };
        tokio::select! {
            copied = both => copied,
            idled = watch(idle, counts) => Err(idled),
        }
    };
    if let Err(error) = &copied {
        let code = if matches!(error, PipeError::Idle(_)) { Code::TIMEOUT } else { Code::CANCELLED };
        sender.reset(code);
        receiver.stop(code);
    }
    copied
}

async fn up<T: AsyncRead>(
    mut read: ReadHalf<T>,
    sender: &mut SendStream,
    counts: &Counts,
) -> Result<(), PipeError> {
    let mut buffer = BytesMut::with_capacity(PIECE);
    loop {
        if buffer.capacity() < ROOM {
            buffer = BytesMut::with_capacity(PIECE);
        }
        let length = read.read_buf(&mut buffer).await?;
        if length == 0 {
            sender.finish();
            return Ok(());
        }
        sender.send(&mut [buffer.split().freeze()]).await?;
        counts.up.fetch_add(length as u64, Ordering::Relaxed);
    }
}

async fn down<T: AsyncWrite>(
    receiver: &mut RecvStream,
    mut write: WriteHalf<T>,
    counts: &Counts,
) -> Result<(), PipeError> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    while let Some(count) = poll_fn(|cx| receiver.poll_chunks(cx, &mut chunks)).await? {
        let mut pending = Pending { chunks: &mut chunks[..count] };
        while pending.has_remaining() {
            let mut slices = [IoSlice::new(&[]); CHUNKS];
            let filled = pending.chunks_vectored(&mut slices);
            let written = write.write_vectored(&slices[..filled]).await?;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            pending.advance(written);
            counts.down.fetch_add(written as u64, Ordering::Relaxed);
        }
        write.flush().await?;
    }
    write.shutdown().await?;
    Ok(())
}

/// Chunks being written, the written ones empty.
struct Pending<'a> {
    chunks: &'a mut [Bytes],
}

impl Buf for Pending<'_> {
    fn remaining(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.iter().find(|chunk| !chunk.is_empty()).map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'b>(&'b self, slices: &mut [IoSlice<'b>]) -> usize {
        let filled = self.chunks.iter().filter(|chunk| !chunk.is_empty());
        slices.iter_mut().zip(filled).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        for chunk in &mut *self.chunks {
            let part = count.min(chunk.len());
            chunk.advance(part);
            count -= part;
        }
    }
}

/// Resolves when nothing has moved for the limit, which is noticed at most a quarter of it late; without a limit, never.
async fn watch(idle: Option<Duration>, counts: &Counts) -> PipeError {
    let Some(idle) = idle else { return std::future::pending().await };
    let moved = || counts.up.load(Ordering::Relaxed).wrapping_add(counts.down.load(Ordering::Relaxed));
    let (mut seen, mut looks) = (moved(), 0);
    while looks < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = moved();
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
    }
    PipeError::Idle(idle)
}
