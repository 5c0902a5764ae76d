//! HTTP bodies on a request stream: frames of `[kind u8][length varint (RFC 9000, 16)]payload`. Data is passed on as it arrives and
//! without copying; a body is whole only after its End frame, so one cut short is always seen as such.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use crate::codec::{self, CodecError};
use crate::head::Fields;
use crate::link::{Code, RecvStream, StreamError};

mod send;

pub use send::{SendError, push, send, send_frames};

/// Trailers are header fields and under the same limit.
const TRAILERS_LIMIT: usize = codec::HEAD_LIMIT;
/// Kind and an 8-byte varint.
const HEADER_MAX: usize = 9;

/// Chunks joined at once: three TLS records' worth of packets.
const CHUNKS: usize = 34;
/// A payload of which more than this is to come is worth joining.
const LONG: u64 = 4 * 1024;

const DATA: u8 = 0;
const TRAILERS: u8 = 1;
const END: u8 = 2;

/// The End frame: no payload.
pub const END_FRAME: Bytes = Bytes::from_static(&[END, 0]);

/// Writes a frame's header.
fn header(kind: u8, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_MAX);
    out.put_u8(kind);
    let length = length as u64;
    match length {
        0..0x40 => out.put_uint(length, 1),
        0x40..0x4000 => out.put_uint(length | 0x4000, 2),
        0x4000..0x4000_0000 => out.put_uint(length | 0x8000_0000, 4),
        _ => out.put_u64(length | 0xc000_0000_0000_0000),
    }
    out.freeze()
}

/// Reads a frame's header: kind, payload length and header length; `None` while it is incomplete.
fn parse_header(bytes: &[u8]) -> Option<(u8, u64, usize)> {
    let (&kind, rest) = bytes.split_first()?;
    let size = 1usize << (rest.first()? >> 6);
    let digits = rest.get(..size)?;
    let value = digits.iter().fold(0u64, |value, digit| value << 8 | u64::from(*digit));
    Some((kind, value & (u64::MAX >> (66 - 8 * size)), 1 + size))
}

#[derive(Debug)]
enum State {
    /// Between frames.
    Header,
    /// Inside a Data frame.
    Data {
        left: u64,
    },
    /// Inside a Trailers frame.
    Trailers {
        left: usize,
    },
    /// After the trailers: only End may follow.
    Last,
    Done,
}

/// The receiving end of a framed body, as an [`http_body::Body`].
#[derive(Debug)]
pub struct FramedBody {
    recv: RecvStream,
    buffer: Bytes,
    /// A header or trailers that straddle chunks.
    partial: BytesMut,
    state: State,
}

impl FramedBody {
    /// A body whose end came together with its head is known to be empty at once.
    pub fn new(mut recv: RecvStream) -> Self {
        let mut buffer = recv.take_rest();
        let state = if buffer == END_FRAME { State::Done } else { State::Header };
        if matches!(state, State::Done) {
            buffer.clear();
        }
        Self { recv, buffer, partial: BytesMut::new(), state }
    }

    /// Waits until something of the body has come, so that an empty one is known to be empty.
    ///
    /// # Errors
    /// The stream ended without it.
    pub async fn begin(&mut self) -> Result<(), StreamError> {
        if matches!(self.state, State::Header) {
            std::future::poll_fn(|cx| self.poll_fill(cx)).await?;
        }
        if self.buffer == END_FRAME {
            self.state = State::Done;
            self.buffer.clear();
        }
        Ok(())
    }

    /// The whole body, where all of it came together with its head and without trailers.
    pub fn whole(&mut self) -> Option<Bytes> {
        let (kind, length, size) = parse_header(&self.buffer)?;
        let end = size.checked_add(usize::try_from(length).ok()?)?;
        let is_whole = kind == DATA && length > 0 && self.buffer.get(end..) == Some(&END_FRAME[..]);
        if !is_whole || !matches!(self.state, State::Header) {
            return None;
        }
        self.state = State::Done;
        Some(std::mem::take(&mut self.buffer).slice(size..end))
    }

    /// Gives up: the peer is told why.
    pub fn abandon(&mut self, code: Code) {
        self.recv.stop(code);
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.buffer.is_empty() {
            self.buffer = ready!(self.recv.poll_chunk(cx))?.ok_or(StreamError::Truncated)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Within a long payload: takes as many chunks as are there and joins them. Over QUIC each is one packet's, and handing them on one
    /// by one costs more than the copy.
    fn poll_fill_joined(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        let count = ready!(self.recv.poll_chunks(cx, &mut chunks))?.ok_or(StreamError::Truncated)?;
        let chunks = &mut chunks[..count];
        self.buffer = if let [one] = chunks {
            std::mem::take(one)
        } else {
            let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
            for chunk in &*chunks {
                joined.extend_from_slice(chunk);
            }
            joined.freeze()
        };
        Poll::Ready(Ok(()))
    }

    fn enter(&mut self, kind: u8, length: u64) -> Result<(), CodecError> {
        let is_last = matches!(self.state, State::Last);
        self.state = match (kind, length) {
            // Nothing makes an empty one, and a flood of them would cost a turn each.
            (DATA, 0) => return Err(CodecError::Malformed("an empty data frame".to_owned())),
            (DATA | TRAILERS, _) if is_last => {
                return Err(CodecError::Malformed(format!("frame of kind {kind} after the trailers")));
            }
            (DATA, left) => State::Data { left },
            (TRAILERS, length) => match usize::try_from(length) {
                Ok(left) if left <= TRAILERS_LIMIT => State::Trailers { left },
                _ => {
                    let size = usize::try_from(length).unwrap_or(usize::MAX);
                    return Err(CodecError::TooLarge { size, limit: TRAILERS_LIMIT });
                }
            },
            (END, 0) => State::Done,
            _ => return Err(CodecError::Malformed(format!("frame of kind {kind} and length {length}"))),
        };
        Ok(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        loop {
            match self.state {
                State::Done => {
                    // Takes the stream's own end along where it has arrived, so that dropping it has nothing left to say.
                    return match (self.buffer.is_empty(), self.recv.poll_chunk(cx)) {
                        (true, Poll::Ready(Ok(None) | Err(_)) | Poll::Pending) => Poll::Ready(None),
                        _ => Poll::Ready(Some(Err(CodecError::Trailing(self.buffer.len().max(1)).into()))),
                    };
                }
                State::Header | State::Last => {
                    ready!(self.poll_fill(cx))?;
                    // The usual case reads the header in place; one that straddles chunks is gathered byte by byte.
                    if self.partial.is_empty()
                        && let Some((kind, length, size)) = parse_header(&self.buffer)
                    {
                        self.buffer.advance(size);
                        self.enter(kind, length)?;
                        continue;
                    }
                    self.partial.put_u8(self.buffer.get_u8());
                    if let Some((kind, length, _)) = parse_header(&self.partial) {
                        self.partial.clear();
                        self.enter(kind, length)?;
                    }
                }
                State::Data { left: 0 } => self.state = State::Header,
                State::Data { left } if self.buffer.is_empty() => {
                    if left < LONG {
                        ready!(self.poll_fill(cx))?;
                    } else {
                        ready!(self.poll_fill_joined(cx))?;
                    }
                }
                State::Data { ref mut left } => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= take as u64;
                    return Poll::Ready(Some(Ok(Frame::data(self.buffer.split_to(take)))));
                }
                State::Trailers { left: 0 } => {
                    let payload = self.partial.split().freeze();
                    let trailers = codec::decode::<Fields<'_>>(&payload)?.into_map(&payload)?;
                    self.state = State::Last;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                State::Trailers { ref mut left } => {
                    if self.buffer.is_empty() {
                        ready!(self.poll_fill(cx))?;
                        continue;
                    }
                    let take = (*left).min(self.buffer.len());
                    *left -= take;
                    self.partial.extend_from_slice(&self.buffer.split_to(take));
                }
            }
        }
    }
}

impl Body for FramedBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let next = ready!(self.poll_next(cx));
        if let Some(Err(StreamError::Codec(_))) = next {
            self.recv.stop(Code::PROTOCOL);
            self.buffer = Bytes::new();
            self.state = State::Done;
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back_at_every_length() {
        for length in [0usize, 1, 63, 64, 16383, 16384, 0x3fff_ffff, 0x4000_0000] {
            let bytes = header(DATA, length);
            assert_eq!(parse_header(&bytes), Some((DATA, length as u64, bytes.len())), "{length}");
            for cut in 0..bytes.len() {
                assert_eq!(parse_header(&bytes[..cut]), None, "{length} cut at {cut}");
            }
        }
        assert_eq!(&header(DATA, 300)[..], [0, 0x41, 0x2c], "golden");
        assert_eq!(&END_FRAME[..], [2, 0], "golden");
    }
}
