//! Bodies on their way: the caller's, counted, limited and watched for stalls; and the answer's, which ends with the request's record.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use postern_wire::body::FramedBody;
use postern_wire::link::{Code, StreamError};
use tokio::time::{Instant, Sleep};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::headers;
use super::record::{self, Record};
use crate::public::timers::Unsent;
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
}

impl Upload {
    pub fn new(inner: Incoming, limit: Option<u64>, stall: Duration, bytes: Arc<record::Bytes>) -> Self {
        Self { inner, left: limit, limit: limit.unwrap_or(u64::MAX), patience: Patience::new(stall), bytes }
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
    /// Ours, and a refusal: counted until hyper is done with it.
    _unsent: Option<Unsent>,
}

#[derive(Debug)]
enum Source {
    /// All of it, at once.
    Full(Option<Bytes>),
    /// The upstream's, before it is answered with.
    Ready(Box<Download>),
    /// The upstream's, as it comes, shared with the task that watches over it.
    Live { shared: Arc<Mutex<Option<Live>>>, _watch: AbortOnDropHandle<()> },
}

/// What keeps an upstream's answer going.
#[derive(Debug)]
pub struct Download {
    body: FramedBody,
    idle: Duration,
    /// The request's place on its tunnel.
    _occupied: Occupied,
    /// The caller's body may still be on its way; it ends with the answer.
    upload: Option<AbortOnDropHandle<()>>,
    tasks: TaskTracker,
}

impl Download {
    pub fn new(
        body: FramedBody,
        idle: Duration,
        occupied: Occupied,
        upload: Option<AbortOnDropHandle<()>>,
        tasks: TaskTracker,
    ) -> Self {
        Self { body, idle, _occupied: occupied, upload, tasks }
    }
}

/// An answer on its way.
#[derive(Debug)]
struct Live {
    download: Box<Download>,
    record: Record,
    moved: Instant,
    /// Whoever waits for the next piece.
    waiting: Option<Waker>,
}

impl ResponseBody {
    pub fn full(bytes: Bytes) -> Self {
        Self { source: Source::Full(Some(bytes).filter(|bytes| !bytes.is_empty())), _unsent: None }
    }

    /// A refusal, counted until its caller has taken it.
    pub fn refusal(bytes: Bytes, unsent: Unsent) -> Self {
        Self { _unsent: Some(unsent), ..Self::full(bytes) }
    }

    pub fn tunnel(mut download: Download) -> Self {
        // What came whole needs its tunnel no more, and a caller that is slow to take it holds nothing but these bytes.
        let uploaded = download.upload.as_ref().is_none_or(AbortOnDropHandle::is_finished);
        match uploaded.then(|| download.body.whole()).flatten() {
            Some(bytes) => Self::full(bytes),
            None => Self { source: Source::Ready(Box::new(download)), _unsent: None },
        }
    }

    /// Ties the record's end to this body's.
    #[must_use]
    pub fn with_record(mut self, mut record: Record) -> Self {
        let is_unread = self.is_end_stream() || record.expects_no_body();
        self.source = match self.source {
            Source::Ready(download) if !is_unread => live(download, record),
            Source::Full(bytes) => {
                // Handed over whole: a caller that does not take it must not keep the request's place.
                let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                record.bytes.to_caller.fetch_add(length, Ordering::Relaxed);
                record.complete();
                Source::Full(bytes)
            }
            // Nothing will poll this body.
            source @ (Source::Ready(_) | Source::Live { .. }) => {
                record.complete();
                source
            }
        };
        self
    }
}

/// Hands an answer to hyper and to a task that watches it: hyper does not ask for more while a caller keeps its window shut, so no timer
/// of the body's own would ever fire.
fn live(download: Box<Download>, record: Record) -> Source {
    let (idle, tasks) = (download.idle, download.tasks.clone());
    let live = Live { download, record, moved: Instant::now(), waiting: None };
    let shared = Arc::new(Mutex::new(Some(live)));
    let watched = shared.clone();
    let watch = tasks.spawn(async move {
        loop {
            let Some(deadline) = lock(&watched).as_ref().map(|live| live.moved + idle) else { return };
            if deadline > Instant::now() {
                tokio::time::sleep_until(deadline).await;
                continue;
            }
            // Dropping it resets the stream, frees its place on the tunnel and reports the end.
            if let Some(mut live) = lock(&watched).take() {
                live.download.body.abandon(Code::TIMEOUT);
                if let Some(waiting) = live.waiting.take() {
                    waiting.wake();
                }
            }
        }
    });
    Source::Live { shared, _watch: AbortOnDropHandle::new(watch) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves here is dropped with the body.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One turn of a live answer; takes it out when it is over.
fn poll_live(
    slot: &mut Option<Live>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
    let Some(live) = slot else {
        return Poll::Ready(Some(Err(StreamError::Lost("nothing moved for limit.idle".to_owned()))));
    };
    let Poll::Ready(next) = Pin::new(&mut live.download.body).poll_frame(cx) else {
        live.waiting = Some(cx.waker().clone());
        return Poll::Pending;
    };
    live.moved = Instant::now();
    let mut is_last = next.is_none();
    let next = next.map(|frame| {
        let mut frame = frame.inspect_err(|e| tracing::debug!(error = %e, "an answer broke off"))?;
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        if let Some(data) = frame.data_ref() {
            live.record.bytes.to_caller.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        // hyper does not poll again after the last frame.
        is_last = live.download.body.is_end_stream();
        Ok(frame)
    });
    if is_last {
        live.record.complete();
        *slot = None;
    }
    Poll::Ready(next)
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut self.get_mut().source {
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Ready(download) => Pin::new(&mut download.body).poll_frame(cx),
            Source::Live { shared, .. } => poll_live(&mut lock(shared), cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Ready(download) => download.body.is_end_stream(),
            Source::Live { shared, .. } => {
                lock(shared).as_ref().is_none_or(|live| live.download.body.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Ready(_) | Source::Live { .. } => SizeHint::default(),
        }
    }
}
