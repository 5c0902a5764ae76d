//! The body of an upstream's answer, as it comes: drives the connection that it comes over, gives that back for the next request at a
//! good end, and breaks off what stands still for `limit.idle`. Dropped early, it ends the upstream's request at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::balance::Place;
use super::own::Own;
use super::pool::{InUse, Pool};
use crate::request::body::Uploaded;

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the upstream broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the upstream closed the connection")]
    Closed,
    #[error("the upstream sent nothing for {0:?} (limit.idle)")]
    Stalled(Duration),
}

/// What an answer comes over.
pub(super) enum Source {
    /// Driven by whoever reads the body; then parked.
    Own { own: Option<Box<Own>>, home: Arc<Pool>, member: usize },
    /// Driven by a task, because the request is not sent whole yet and must not wait for the reader of the answer.
    Driven { _task: AbortOnDropHandle<()>, upload: Option<Uploaded> },
    /// Dropping the upload's receiver tells a body that is still being sent.
    Shared { _stream: InUse, upload: Option<Uploaded> },
}

pub struct AnswerBody {
    body: Incoming,
    source: Source,
    has_ended: bool,
    idle: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    /// How far the upload was when it was last looked at, while a frame is waited for.
    waiting: Option<u64>,
    _place: Place,
}

impl AnswerBody {
    pub(super) fn new(body: Incoming, source: Source, idle: Duration, place: Place) -> Self {
        Self { body, source, has_ended: false, idle, stall: None, waiting: None, _place: place }
    }

    fn uploaded(&self) -> u64 {
        match &self.source {
            Source::Driven { upload: Some(upload), .. } | Source::Shared { upload: Some(upload), .. } => {
                upload.moved()
            }
            Source::Own { .. } | Source::Driven { .. } | Source::Shared { .. } => 0,
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(AnswerError::from);
        let Source::Own { own: Some(own), .. } = &mut self.source else { return polled };
        if polled.is_ready() {
            return polled;
        }
        let is_closed = own.poll_drive(cx).is_ready();
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(AnswerError::from);
        if polled.is_pending() && is_closed {
            return Poll::Ready(Some(Err(AnswerError::Closed)));
        }
        polled
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = this.poll_source(cx) {
            this.waiting = None;
            this.has_ended = frame.is_none();
            return Poll::Ready(frame);
        }
        // An upload that goes on is no standstill.
        let (idle, moved) = (this.idle, this.uploaded());
        let stall = this.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if this.waiting.replace(moved) != Some(moved) {
            stall.as_mut().reset(Instant::now() + idle);
        }
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Some(Err(AnswerError::Stalled(idle))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        let is_whole = self.has_ended || self.body.is_end_stream();
        if let Source::Own { own, home, member } = &mut self.source
            && is_whole
            && let Some(own) = own.take()
        {
            home.park(*member, own);
        }
    }
}
