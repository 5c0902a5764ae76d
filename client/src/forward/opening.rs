//! Takes a local program's connection to a TCP service; refuses one that begins as HTTP does. A web page can have the browser send a
//! request to any name that its proxy knows, and services that read lines (Redis, SMTP) would take orders out of it.
//!
//! Only what the program sends first is looked at, and only bytes that could be a method's are held back, for a moment; what the service
//! says passes at once, and after the first bytes everything does.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::{Io, Stream};

/// What pages send, and what asks for them whether they may; `PRI` begins HTTP/2.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"PUT ", b"DELETE ", b"PATCH ", b"TRACE ", b"PRI "];
/// What a request's target begins with.
const TARGETS: [&[u8]; 4] = [b"/", b"*", b"http://", b"https://"];
/// The longest method and the longest of those beginnings.
const MOST: usize = 16;
/// Browsers send a request's line at once: what stays half a method for so long is something else.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
#[error("it began with an HTTP request, which a web page could have had a browser send")]
pub(crate) struct BeganAsHttp;

impl BeganAsHttp {
    pub(crate) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Self>)
    }
}

/// A connection whose first bytes are judged.
pub(crate) struct Opening {
    stream: Stream,
    held: [u8; MOST],
    /// How much of `held` is there, and how much of that was passed on.
    read: usize,
    passed: usize,
    judged: bool,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Opening {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, held: [0; MOST], read: 0, passed: 0, judged: false, patience: None }
    }

    /// Ready when it is known that this is not HTTP.
    fn judge(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.judged {
            let mut buffer = ReadBuf::new(&mut self.held[self.read..]);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer)? {
                Poll::Ready(()) => {
                    let more = buffer.filled().len();
                    self.read += more;
                    match verdict(&self.held[..self.read]) {
                        Verdict::Http => return Poll::Ready(Err(io::Error::other(BeganAsHttp))),
                        // Its end is read again.
                        Verdict::Unknown => self.judged = more == 0,
                        Verdict::Other => self.judged = true,
                    }
                }
                Poll::Pending if self.read == 0 => return Poll::Pending,
                Poll::Pending => {
                    let patience =
                        self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                    ready!(patience.as_mut().poll(cx));
                    self.judged = true;
                }
            }
        }
        self.patience = None;
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Http,
    Other,
    Unknown,
}

fn verdict(bytes: &[u8]) -> Verdict {
    let mut verdict = Verdict::Other;
    for method in METHODS {
        let Some(rest) = bytes.strip_prefix(method) else {
            if method.starts_with(bytes) {
                verdict = Verdict::Unknown;
            }
            continue;
        };
        if TARGETS.iter().any(|target| rest.starts_with(target)) {
            return Verdict::Http;
        }
        if TARGETS.iter().any(|target| target.starts_with(rest)) {
            verdict = Verdict::Unknown;
        }
    }
    verdict
}

impl AsyncRead for Opening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.judged {
            ready!(this.judge(cx))?;
        }
        if this.passed < this.read {
            let held = &this.held[this.passed..this.read];
            let part = &held[..held.len().min(buffer.remaining())];
            buffer.put_slice(part);
            this.passed += part.len();
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Opening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Io for Opening {
    fn reset(&self) {
        self.stream.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[test]
    fn a_request_line_is_told_from_everything_else() {
        for http in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"POST /x",
            b"HEAD /",
            b"OPTIONS * HTTP/1.1",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET http://redis/ HTTP/1.1",
            b"OPTIONS https://redis/ HTTP/1.1",
        ] {
            assert_eq!(verdict(http), Verdict::Http, "{http:?}");
            assert_eq!(verdict(&http[..http.len().min(MOST)]), Verdict::Http, "{http:?} is known in time");
        }
        for other in [
            &b"*1\r\n$4\r\nPING\r\n"[..],
            b"GET key\r\n",
            b"get /key",
            b"PING\r\n",
            b"GETRANGE",
            b"OPTIONS rtsp://x",
            b"SSH-2.0-x",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x16\x03\x01",
            b"EHLO x",
        ] {
            assert_eq!(verdict(other), Verdict::Other, "{other:?}");
        }
        for unknown in [&b""[..], b"P", b"GET", b"GET ", b"GET htt", b"OPTIONS https:/"] {
            assert_eq!(verdict(unknown), Verdict::Unknown, "{unknown:?}");
        }
    }

    fn opening() -> (UnixStream, Opening) {
        let (program, stream) = UnixStream::pair().unwrap();
        (program, Opening::new(Box::new(stream)))
    }

    #[tokio::test]
    async fn http_is_ended_however_it_is_cut_and_whoever_spoke_first() {
        for cut in 1..8 {
            let (mut program, mut opening) = opening();
            opening.write_all(b"220 ready\r\n").await.unwrap();
            let request = b"POST / HTTP/1.1\r\n";
            let sending = async {
                for part in request.chunks(cut) {
                    program.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let mut read = Vec::new();
            let (error, ()) = tokio::join!(opening.read_to_end(&mut read), sending);
            assert!(BeganAsHttp::is(&error.unwrap_err()) && read.is_empty(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn all_else_passes_whole_and_in_a_moment() {
        for said in [&b"GET key\r\n"[..], b"G", b"", b"GET ", b"*1\r\n$4\r\nPING\r\nGET / HTTP/1.1\r\n"] {
            let (mut program, mut opening) = opening();
            program.write_all(said).await.unwrap();
            program.shutdown().await.unwrap();
            let mut read = Vec::new();
            opening.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, said);
        }
        // One that says half a method and then waits for an answer.
        let (mut program, mut opening) = opening();
        program.write_all(b"P").await.unwrap();
        let mut byte = [0];
        opening.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"P");
    }
}
