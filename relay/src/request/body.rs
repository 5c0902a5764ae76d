//! Bodies on their way: the caller's, counted, limited and watched for stalls; and the answer's, which ends with the request's record.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use postern_wire::body::FramedBody;
use postern_wire::link::{Code, StreamError};
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::headers;
use super::record::{self, Record};
use crate::public::timers::ConnectionClock;
use crate::tunnel::registry::Occupied;

/// Why a caller's body was not passed on whole.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the caller sent nothing for too long")]
    Stalled,
    #[error("the body is over the limit of {0} bytes")]
    TooLarge(u64),
    #[error("the caller's body broke off: {0}")]
    Caller(#[from] hyper::Error),
}

/// A timer that is armed only while something is awaited, and touched only when it is.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: None, waiting: false }
    }

    fn moved(&mut self) {
        self.waiting = false;
    }

    /// Ready when nothing has moved for the limit.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(Instant::now() + self.limit);
        }
        sleep.as_mut().poll(cx)
    }
}

/// The caller's body.
#[derive(Debug)]
pub struct Upload {
    inner: Incoming,
    left: Option<u64>,
    limit: u64,
    patience: Patience,
    bytes: Arc<record::Bytes>,
    clock: ConnectionClock,
}

impl Upload {
    pub fn new(
        inner: Incoming,
        limit: Option<u64>,
        stall: Duration,
        bytes: Arc<record::Bytes>,
        clock: ConnectionClock,
    ) -> Self {
        Self {
            inner,
            left: limit,
            limit: limit.unwrap_or(u64::MAX),
            patience: Patience::new(stall),
            bytes,
            clock,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Pending => {
                ready!(this.patience.poll(cx));
                Poll::Ready(Some(Err(UploadError::Stalled)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(e))) => Poll::Ready(Some(Err(e.into()))),
            Poll::Ready(Some(Ok(frame))) => {
                this.patience.moved();
                this.clock.moved();
                match frame.into_data() {
                    Ok(data) => {
                        let length = data.len() as u64;
                        this.bytes.from_caller.fetch_add(length, Ordering::Relaxed);
                        if let Some(left) = &mut this.left {
                            match left.checked_sub(length) {
                                Some(rest) => *left = rest,
                                None => return Poll::Ready(Some(Err(UploadError::TooLarge(this.limit)))),
                            }
                        }
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        headers::clean_trailers(&mut trailers);
                        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body; the request's record ends with it.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Source {
    /// Ours, at once.
    Full(Option<Bytes>),
    /// The upstream's, as it comes.
    Tunnel(Box<Download>),
}

/// What keeps an upstream's answer going.
#[derive(Debug)]
pub struct Download {
    body: FramedBody,
    patience: Patience,
    /// The request's place on its tunnel.
    _occupied: Occupied,
    /// The caller's body may still be on its way; it ends with the answer.
    _upload: Option<AbortOnDropHandle<()>>,
}

impl Download {
    pub fn new(
        body: FramedBody,
        idle: Duration,
        occupied: Occupied,
        upload: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        Self { body, patience: Patience::new(idle), _occupied: occupied, _upload: upload }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.patience.moved();
            return polled;
        }
        ready!(self.patience.poll(cx));
        self.body.abandon(Code::TIMEOUT);
        Poll::Ready(Some(Err(StreamError::Lost("nothing moved for limit.idle".to_owned()))))
    }
}

impl ResponseBody {
    pub fn full(bytes: Bytes) -> Self {
        Self { source: Source::Full(Some(bytes).filter(|bytes| !bytes.is_empty())), record: None }
    }

    pub fn tunnel(download: Download) -> Self {
        Self { source: Source::Tunnel(Box::new(download)), record: None }
    }

    /// Ties the record's end to this body's.
    #[must_use]
    pub fn with_record(mut self, mut record: Record) -> Self {
        if self.is_end_stream() || record.expects_no_body() {
            // Nothing will poll this body.
            record.complete();
        }
        if let Source::Full(bytes) = &self.source {
            // Ours, and handed over whole: a caller that does not take it must not keep the request's place.
            let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            record.bytes.to_caller.fetch_add(length, Ordering::Relaxed);
            record.complete();
        } else {
            self.record = Some(Box::new(record));
        }
        self
    }

    fn complete(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        if let Some(record) = &this.record {
            record.moved();
        }
        let next = match &mut this.source {
            Source::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Tunnel(download) => ready!(download.poll(cx)),
        };
        match next {
            None => {
                this.complete();
                Poll::Ready(None)
            }
            Some(Err(e)) => {
                tracing::debug!(error = %e, "an answer broke off");
                Poll::Ready(Some(Err(e)))
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                if let (Some(record), Some(data)) = (&this.record, frame.data_ref()) {
                    record.bytes.to_caller.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                if this.is_end_stream() {
                    // hyper does not poll again after this frame.
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Tunnel(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Tunnel(download) => download.body.size_hint(),
        }
    }
}
