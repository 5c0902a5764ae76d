//! The two halves of an HTTP/2 stream that stands for one of ours, and our codes among HTTP/2's.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, client};

use super::super::{Code, StreamError};
use super::{lock, lost};

/// Our codes among HTTP/2's own, which end at 13.
const CODES: u32 = 0x100;
/// Chunks of fewer bytes than this leave as one frame: copying them costs less than frames of their own.
const TOGETHER: usize = 4 * 1024;

/// The halves of a stream that we opened.
pub(super) fn opened(sending: h2::SendStream<Bytes>, answer: client::ResponseFuture) -> (Sending, Receiving) {
    halves(sending, Arriving::Awaited(answer))
}

/// The halves of a stream that the peer opened.
pub(super) fn accepted(sending: h2::SendStream<Bytes>, body: h2::RecvStream) -> (Sending, Receiving) {
    halves(sending, Arriving::Open(body))
}

fn halves(sending: h2::SendStream<Bytes>, arriving: Arriving) -> (Sending, Receiving) {
    let stream = Arc::new(Mutex::new(sending));
    (Sending { stream: stream.clone() }, Receiving { stream: arriving, sending: stream })
}

fn code_of(reason: Reason) -> Code {
    match u32::from(reason) {
        code if code >= CODES => Code(code - CODES),
        // Sent by the library when both halves were dropped.
        code if code == u32::from(Reason::NO_ERROR) || code == u32::from(Reason::CANCEL) => Code::CANCELLED,
        code if code == u32::from(Reason::REFUSED_STREAM) => Code::OVERLOADED,
        _ => Code::PROTOCOL,
    }
}

fn ended(error: &h2::Error) -> StreamError {
    match error.reason() {
        Some(reason) if error.is_reset() => StreamError::Peer(code_of(reason)),
        _ => lost(error),
    }
}

type Stream = Arc<Mutex<h2::SendStream<Bytes>>>;

/// The sending half; shared with whoever waits for its reset.
#[derive(Debug)]
pub(in crate::link) struct Sending {
    stream: Stream,
}

impl Sending {
    pub(in crate::link) async fn send(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        if chunks.len() > 1 && chunks.iter().map(Bytes::len).sum::<usize>() <= TOGETHER {
            // Taken first: where this breaks off, some of it may have left.
            let together: Vec<Bytes> = chunks.iter_mut().map(std::mem::take).collect();
            return self.send_one(together.concat().into()).await;
        }
        for chunk in chunks {
            self.send_one(std::mem::take(chunk)).await?;
        }
        Ok(())
    }

    async fn send_one(&mut self, mut chunk: Bytes) -> Result<(), StreamError> {
        while !chunk.is_empty() {
            let room = std::future::poll_fn(|cx| self.poll_room(chunk.len(), cx)).await?;
            let piece = chunk.split_to(room.min(chunk.len()));
            lock(&self.stream).send_data(piece, false).map_err(|e| ended(&e))?;
        }
        Ok(())
    }

    fn poll_room(&self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        let mut stream = lock(&self.stream);
        stream.reserve_capacity(wanted);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(ended(&e))),
                None => {
                    let reason = stream.poll_reset(cx);
                    let Poll::Ready(Ok(reason)) = reason else {
                        return Poll::Ready(Err(StreamError::Peer(Code::CANCELLED)));
                    };
                    return Poll::Ready(Err(StreamError::Peer(code_of(reason))));
                }
            }
        }
        Poll::Ready(Ok(stream.capacity()))
    }

    pub(in crate::link) fn finish(&mut self) {
        // Fails only where the stream is gone already; then the peer knows.
        let _ = lock(&self.stream).send_data(Bytes::new(), true);
    }

    pub(in crate::link) fn reset(&mut self, code: Code) {
        lock(&self.stream).send_reset(Reason::from(CODES + code.0));
    }

    pub(in crate::link) fn stopped(&self) -> impl Future<Output = Option<Code>> + Send + Sync + use<> {
        let stream = self.stream.clone();
        std::future::poll_fn(move |cx| {
            lock(&stream).poll_reset(cx).map(|reset| Some(reset.map_or(Code::CANCELLED, code_of)))
        })
    }
}

#[derive(Debug)]
enum Arriving {
    /// The agent has not taken the stream up yet.
    Awaited(client::ResponseFuture),
    Open(h2::RecvStream),
}

/// The receiving half.
#[derive(Debug)]
pub(in crate::link) struct Receiving {
    stream: Arriving,
    /// For the reset, which HTTP/2 knows only for both.
    sending: Stream,
}

impl Receiving {
    pub(in crate::link) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            match &mut self.stream {
                Arriving::Awaited(answer) => {
                    let answer = ready!(std::pin::Pin::new(answer).poll(cx)).map_err(|e| ended(&e))?;
                    self.stream = Arriving::Open(answer.into_body());
                }
                Arriving::Open(stream) => {
                    let Some(data) = ready!(stream.poll_data(cx)) else { return Poll::Ready(Ok(None)) };
                    let data = data.map_err(|e| ended(&e))?;
                    // Taken, and so the peer may send as much again. Fails only where the stream is gone, which the next poll tells.
                    let _ = stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
            }
        }
    }

    pub(in crate::link) fn stop(&mut self, code: Code) {
        lock(&self.sending).send_reset(Reason::from(CODES + code.0));
    }
}
