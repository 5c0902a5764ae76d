//! Bodies on their way: the answer's, which ends with the request's record, and the caller's ([`upload`]).

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use postern_base::sync::lock;
use postern_wire::body::FramedBody;
use postern_wire::link::{Code, StreamError};
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::headers;
use super::live::Live;
use super::record::Record;
use crate::public::timers::Unsent;
use crate::tunnel::registry::Occupied;

pub mod upload;

pub use upload::{Upload, UploadError};

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
    Going { shared: Arc<Mutex<Option<Going>>>, _watch: Option<AbortOnDropHandle<()>> },
    /// None: another protocol follows.
    Switch(Box<Live>),
}

/// What keeps an upstream's answer going.
#[derive(Debug)]
pub struct Download {
    body: FramedBody,
    idle: Option<Duration>,
    /// The request's place on its tunnel.
    _occupied: Occupied,
    /// The caller's body may still be on its way; it ends with the answer.
    upload: Option<AbortOnDropHandle<()>>,
    tasks: TaskTracker,
}

impl Download {
    pub fn new(
        body: FramedBody,
        idle: Option<Duration>,
        occupied: Occupied,
        upload: Option<AbortOnDropHandle<()>>,
        tasks: TaskTracker,
    ) -> Self {
        Self { body, idle, _occupied: occupied, upload, tasks }
    }
}

/// An answer on its way.
#[derive(Debug)]
struct Going {
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

    /// Nothing: the connection is another protocol's from here on.
    pub fn live(live: Live) -> Self {
        Self { source: Source::Switch(Box::new(live)), _unsent: None }
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
            Source::Ready(download) if !is_unread => going(download, record),
            Source::Switch(live) => {
                live.begin(record);
                Source::Full(None)
            }
            Source::Full(bytes) => {
                // Handed over whole: a caller that does not take it must not keep the request's place.
                let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                record.bytes.down.fetch_add(length, Ordering::Relaxed);
                record.complete();
                Source::Full(bytes)
            }
            // Nothing will poll this body.
            source @ (Source::Ready(_) | Source::Going { .. }) => {
                record.complete();
                source
            }
        };
        self
    }
}

/// Hands an answer to hyper and to a task that watches it: hyper does not ask for more while a caller keeps its window shut, so no timer
/// of the body's own would ever fire.
fn going(download: Box<Download>, record: Record) -> Source {
    let (idle, tasks, running) = (download.idle, download.tasks.clone(), record.running().cloned());
    let going = Going { download, record, moved: Instant::now(), waiting: None };
    let shared = Arc::new(Mutex::new(Some(going)));
    let watch = running.map(|running| {
        let shared = shared.clone();
        AbortOnDropHandle::new(tasks.spawn(async move {
            // The order to cut it, or a stall.
            let code = match running.or_cut(stalled(&shared, idle)).await {
                Ok(()) => Code::TIMEOUT,
                Err(_) => Code::CANCELLED,
            };
            // Dropping it resets the stream, frees its place on the tunnel and reports the end.
            if let Some(mut going) = lock(&shared).take() {
                going.download.body.abandon(code);
                if let Some(waiting) = going.waiting.take() {
                    waiting.wake();
                }
            }
        }))
    });
    Source::Going { shared, _watch: watch }
}

/// Resolves when nothing of an answer has moved for the limit, or it is over.
async fn stalled(watched: &Mutex<Option<Going>>, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let Some(deadline) = lock(watched).as_ref().map(|going| going.moved + idle) else { return };
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

/// One turn of a live answer; takes it out when it is over.
fn poll_going(
    slot: &mut Option<Going>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
    let Some(going) = slot else {
        return Poll::Ready(Some(Err(StreamError::Lost("ended here".to_owned()))));
    };
    let Poll::Ready(next) = Pin::new(&mut going.download.body).poll_frame(cx) else {
        going.waiting = Some(cx.waker().clone());
        return Poll::Pending;
    };
    going.moved = Instant::now();
    let mut is_last = next.is_none();
    let next = next.map(|frame| {
        let mut frame = frame.inspect_err(|e| tracing::debug!(error = %e, "an answer broke off"))?;
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        if let Some(data) = frame.data_ref() {
            going.record.bytes.down.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        // hyper does not poll again after the last frame.
        is_last = going.download.body.is_end_stream();
        Ok(frame)
    });
    if is_last {
        going.record.complete();
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
            Source::Going { shared, .. } => poll_going(&mut lock(shared), cx),
            Source::Switch(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Ready(download) => download.body.is_end_stream(),
            Source::Going { shared, .. } => {
                lock(shared).as_ref().is_none_or(|going| going.download.body.is_end_stream())
            }
            Source::Switch(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Ready(_) | Source::Going { .. } => SizeHint::default(),
            Source::Switch(_) => SizeHint::with_exact(0),
        }
    }
}
