//! The caller's body on its way to the upstream: takes the frames of the stream, tells when they were sent whole or dropped, and stops as
//! soon as nobody waits for the answer any more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use postern_wire::body::FramedBody;
use postern_wire::fields::{folded, is_of_the_connection, is_steering};
use postern_wire::link::{Code, RecvStream, StreamError};
use tokio::sync::oneshot;

use crate::upstream::Upstream;

/// How far a body is. Dropped, it ends the body.
#[derive(Debug)]
pub(crate) struct Uploaded {
    done: oneshot::Receiver<()>,
    moved: Arc<AtomicU64>,
}

impl Uploaded {
    /// Resolves when the body was sent whole, or dropped half-way because the upstream wants no more of it.
    pub(crate) async fn whole(&mut self) {
        // Its sender says so as the last thing it does.
        let _ = (&mut self.done).await;
    }

    pub(crate) fn is_whole(&mut self) -> bool {
        !matches!(self.done.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// Frames so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// A body that broke off, or that nobody waits for.
#[derive(Debug, thiserror::Error)]
#[error("the caller's body broke off: {why}")]
pub struct Broken {
    why: StreamError,
    /// hyper looks for it: an HTTP/2 upstream is told that the request was cancelled.
    #[source]
    reset: h2::Error,
}

impl From<StreamError> for Broken {
    fn from(why: StreamError) -> Self {
        Self { why, reset: h2::Reason::CANCEL.into() }
    }
}

/// A body, or none.
#[derive(Debug, Default)]
pub struct UpstreamBody(Option<Upload>);

#[derive(Debug)]
struct Upload {
    body: FramedBody,
    done: oneshot::Sender<()>,
    moved: Arc<AtomicU64>,
    upstream: Arc<Upstream>,
}

impl UpstreamBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    pub(crate) fn new(receiver: RecvStream, upstream: &Arc<Upstream>) -> (Self, Uploaded) {
        let (told, done) = oneshot::channel();
        let uploaded = Uploaded { done, moved: Arc::default() };
        let moved = uploaded.moved.clone();
        let body = FramedBody::new(receiver);
        (Self(Some(Upload { body, done: told, moved, upstream: upstream.clone() })), uploaded)
    }

    /// Whoever waited may have its answer already.
    fn sent(&mut self) {
        if let Some(upload) = self.0.take() {
            let _ = upload.done.send(());
        }
    }
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // An HTTP/2 upstream's body has a task of its own, which would not see the request end.
        if self.done.poll_closed(cx).is_ready() {
            return Poll::Ready(Some(Err(StreamError::Peer(Code::CANCELLED).into())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map_err(Broken::from).map_ok(|mut frame| {
            self.moved.fetch_add(1, Ordering::Relaxed);
            if let Some(trailers) = frame.trailers_mut() {
                clean(trailers);
                unnamed(trailers);
                self.upstream.credentials.strip(trailers);
            }
            frame
        })
    }
}

/// No trailer says who calls: some upstreams read trailers as if they were fields of the head.
fn unnamed(trailers: &mut HeaderMap) {
    let names: Vec<HeaderName> =
        trailers.keys().filter(|name| folded(name).starts_with("x-postern-")).cloned().collect();
    for name in names {
        trailers.remove(name);
    }
}

/// Takes off what a relay that has been taken over might steer our own connection or the upstream with.
pub(super) fn clean(headers: &mut HeaderMap) {
    let is_unwanted = |name: &&HeaderName| {
        let name = folded(name);
        is_of_the_connection(&name) || is_steering(&name)
    };
    let names: Vec<HeaderName> = headers.keys().filter(is_unwanted).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let Some(upload) = &mut this.0 else { return Poll::Ready(None) };
        let polled = upload.poll(cx);
        let has_ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
        if has_ended || (polled.is_ready() && upload.body.is_end_stream()) {
            this.sent();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.body.size_hint())
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        self.sent();
    }
}
