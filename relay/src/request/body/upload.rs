//! The caller's body on its way to an agent: counted, limited, watched for stalls, and looked into before it is taken, so that a request
//! that has to go another way still has all of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use postern_wire::pipe::Counts;
use tokio::time::{Instant, Sleep};

use super::super::headers;
use crate::settings::Service;

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

type Next = Option<Result<Frame<Bytes>, UploadError>>;

/// The caller's body.
#[derive(Debug)]
pub struct Upload {
    inner: Incoming,
    /// What came first, while nobody has taken it.
    first: Option<Next>,
    left: Option<u64>,
    service: Arc<Service>,
    patience: Patience,
    /// Set when the answer has begun: from then on a caller may listen without speaking for as long as the answer may be silent.
    is_answered: Arc<AtomicBool>,
    bytes: Arc<Counts>,
}

impl Upload {
    pub fn new(inner: Incoming, service: &Arc<Service>, stall: Duration, bytes: Arc<Counts>) -> Self {
        let (left, service) = (service.body_limit, service.clone());
        let (patience, is_answered) = (Patience::new(stall), Arc::default());
        Self { inner, first: None, left, service, patience, is_answered, bytes }
    }

    /// To be set when the answer has begun.
    pub fn answered(&self) -> Arc<AtomicBool> {
        self.is_answered.clone()
    }

    /// Waits for the first piece, or the end; it stays here until it is taken.
    pub async fn begin(&mut self) {
        if self.first.is_none() {
            let first = std::future::poll_fn(|cx| self.poll_next(cx)).await;
            self.first = Some(first);
        }
    }

    /// All of the body, where it has come in one piece of at most `limit` bytes, or why it does not come.
    pub fn whole(&mut self, limit: usize) -> Option<Result<Bytes, UploadError>> {
        let is_whole = match self.first.as_ref()? {
            None | Some(Err(_)) => true,
            Some(Ok(frame)) => {
                self.inner.is_end_stream() && frame.data_ref().is_some_and(|data| data.len() <= limit)
            }
        };
        let first = self.first.take_if(|_| is_whole)?;
        Some(first.map_or_else(|| Ok(Bytes::new()), |first| Ok(first?.into_data().unwrap_or_default())))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => {
                while self.patience.poll(cx).is_ready() {
                    if !self.is_answered.load(Ordering::Relaxed) {
                        return Poll::Ready(Some(Err(UploadError::Stalled)));
                    }
                    self.patience.moved();
                }
                return Poll::Pending;
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e.into()))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        self.patience.moved();
        let frame = match frame.into_data() {
            Ok(data) => {
                let length = data.len() as u64;
                self.bytes.up.fetch_add(length, Ordering::Relaxed);
                if let Some(left) = &mut self.left {
                    let Some(rest) = left.checked_sub(length) else {
                        let limit = self.service.body_limit.unwrap_or(u64::MAX);
                        return Poll::Ready(Some(Err(UploadError::TooLarge(limit))));
                    };
                    *left = rest;
                }
                Frame::data(data)
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                headers::clean_upload_trailers(&mut trailers, &self.service.removed);
                Frame::trailers(trailers)
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        let this = self.get_mut();
        match this.first.take() {
            Some(first) => Poll::Ready(first),
            None => this.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_none() { self.inner.size_hint() } else { SizeHint::default() }
    }
}
