//! An HTTP/1.1 connection to an upstream. It belongs to one request at a time and is driven in that request's own task: no other task is
//! woken for it, and whoever drops it has closed it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::CallError;
use super::connect::Stream;
use super::http::broken;
use crate::request::body::UpstreamBody;

/// More than any sane answer has, and less than would cost much.
const HEADERS: usize = 256;

pub(crate) struct Own {
    sender: http1::SendRequest<UpstreamBody>,
    connection: http1::Connection<TokioIo<Stream>, UpstreamBody>,
    ended: bool,
    /// When it was last of use; none while it serves its first request.
    parked: Option<Instant>,
}

impl Own {
    pub(crate) async fn over(stream: Stream) -> Result<Box<Self>, CallError> {
        let handshake = http1::Builder::new().max_headers(HEADERS).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| broken(&e))?;
        Ok(Box::new(Self { sender, connection, ended: false, parked: None }))
    }

    /// Moves everything that can move; ready when the connection is at its end.
    pub(crate) fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ended {
            self.ended = match self.connection.poll_without_shutdown(cx) {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a connection to an upstream broke");
                    true
                }
            };
        }
        if self.ended { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(crate) async fn exchange(
        &mut self,
        request: Request<UpstreamBody>,
    ) -> Result<Response<Incoming>, CallError> {
        let mut answering = pin!(self.sender.send_request(request));
        poll_fn(|cx| {
            let ended = self.poll_drive(cx).is_ready();
            match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(|e| broken(&e))),
                Poll::Pending if ended => {
                    Poll::Ready(Err(CallError::Unanswered("the connection closed".to_owned())))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    pub(super) fn is_new(&self) -> bool {
        self.parked.is_none()
    }

    pub(super) fn park(&mut self) {
        self.parked = Some(Instant::now());
    }

    pub(super) fn idle_for(&self) -> Duration {
        self.parked.map_or(Duration::ZERO, |parked| parked.elapsed())
    }

    /// Whether the next request may go over it, as far as can be known.
    pub(super) fn is_idle(&mut self) -> bool {
        // Whoever uses it next polls it anew.
        let mut nobody = Context::from_waker(Waker::noop());
        self.poll_drive(&mut nobody).is_pending() && self.sender.is_ready()
    }

    /// A task's work where the connection has to move while nobody reads the answer. Without a sender it ends after this exchange.
    pub(crate) async fn drive(self: Box<Self>) {
        let Self { sender, mut connection, .. } = *self;
        drop(sender);
        if let Err(error) = poll_fn(|cx| connection.poll_without_shutdown(cx)).await {
            tracing::debug!(%error, "a connection to an upstream broke");
        }
    }

    /// Waits until hyper has let go of the connection.
    pub(crate) async fn ended(&mut self) {
        poll_fn(|cx| self.poll_drive(cx)).await;
    }

    /// The bare connection after the upstream has switched protocols, and what it has sent since.
    pub(crate) fn into_stream(self) -> (Stream, Bytes) {
        let parts = self.connection.into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }
}
