//! The connections of one worker to one upstream. An HTTP/1.1 connection ([`Own`]) belongs to whoever sends over it; between requests it
//! lies here, unpolled, until it is too old. HTTP/2 connections are shared and have tasks of their own.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_base::sync::lock;
use postern_wire::codec::HEAD_LIMIT;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::connect::Stream;
use super::http::broken;
use super::own::Own;
use super::{CallError, Upstream};
use crate::request::body::UpstreamBody;
use crate::settings::service::Protocol;

/// Below the 15 s to 75 s after which ordinary servers close idle connections themselves.
const IDLE: Duration = Duration::from_secs(12);
/// How often connections that nobody uses are looked at.
const SWEEP: Duration = Duration::from_secs(3);
/// Idle connections kept per address and worker.
const IDLE_CONNECTIONS: usize = 256;
/// What one answer that nobody reads may make us hold, as in a tunnel.
const STREAM_WINDOW: u32 = 192 * 1024;
/// Never the bottleneck, or one slow reader would hold up all others: a hundred of the above.
const WINDOW: u32 = STREAM_WINDOW * 100;
/// Upload that h2 may hold per stream beyond what the upstream takes.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams on a connection whose upstream has not said how many it takes; RFC 9113, 6.5.2 asks for no fewer.
const STREAMS: usize = 100;

/// A connection for one request.
pub(crate) enum Lease {
    Own(Box<Own>),
    Shared(http2::SendRequest<UpstreamBody>, InUse),
}

/// An HTTP/2 connection, of which each request has a sender.
struct Shared {
    sender: http2::SendRequest<UpstreamBody>,
    streams: Arc<Streams>,
    used: Instant,
}

struct Streams {
    in_flight: AtomicUsize,
    limit: AtomicUsize,
}

/// One stream of a shared connection.
pub(crate) struct InUse(Arc<Streams>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn lease(&mut self) -> Option<Lease> {
        let Streams { in_flight, limit } = &*self.streams;
        if self.sender.is_closed() || in_flight.load(Ordering::Relaxed) >= limit.load(Ordering::Relaxed) {
            return None;
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        self.used = Instant::now();
        Some(Lease::Shared(self.sender.clone(), InUse(self.streams.clone())))
    }

    fn is_of_use(&self) -> bool {
        let is_busy = self.streams.in_flight.load(Ordering::Relaxed) > 0;
        !self.sender.is_closed() && (is_busy || self.used.elapsed() < IDLE)
    }
}

/// One address's connections.
struct Member {
    #[expect(clippy::vec_box, reason = "they come boxed and leave boxed, once per request")]
    own: Mutex<Vec<Box<Own>>>,
    shared: Mutex<Vec<Shared>>,
    /// Shared connections are opened one at a time, so that a burst opens one and not a hundred.
    opening: Semaphore,
}

/// All connections of one worker to one upstream.
pub(crate) struct Pool {
    members: Box<[Member]>,
    /// Those of shared connections, and the sweeper; they end with the worker's runtime.
    pub(super) tasks: TaskTracker,
    is_swept: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn new(members: usize) -> Self {
        let member =
            || Member { own: Mutex::default(), shared: Mutex::default(), opening: Semaphore::new(1) };
        Self {
            members: std::iter::repeat_with(member).take(members).collect(),
            tasks: TaskTracker::new(),
            is_swept: AtomicBool::new(false),
        }
    }

    /// A connection to one address: one that is here already, or a new one.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        upstream: &Upstream,
        member: usize,
        is_fresh: bool,
    ) -> Result<Lease, CallError> {
        if upstream.service.protocol == Protocol::Http2 {
            return Box::pin(self.share(upstream, member)).await;
        }
        while let Some(mut own) = (!is_fresh).then(|| lock(&self.members[member].own).pop()).flatten() {
            if own.is_idle() {
                return Ok(Lease::Own(own));
            }
        }
        // Boxed, or every request's task would have room for it.
        Ok(Lease::Own(
            Own::over(Box::pin(upstream.connector.connect(upstream.address(member))).await?).await?,
        ))
    }

    async fn share(self: &Arc<Self>, upstream: &Upstream, member: usize) -> Result<Lease, CallError> {
        let Member { shared, opening, .. } = &self.members[member];
        let room = || lock(shared).iter_mut().find_map(Shared::lease);
        if let Some(lease) = room() {
            return Ok(lease);
        }
        let limit = upstream.service.limit.connect;
        let late = |_| CallError::Connect(format!("not within {limit:?}"));
        let _one = tokio::time::timeout(limit, opening.acquire()).await.map_err(late)?;
        if let Some(lease) = room() {
            return Ok(lease);
        }
        let stream = upstream.connector.connect(upstream.address(member)).await?;
        let mut connection = open_shared(stream, &self.tasks).await?;
        let lease = connection.lease();
        let mut shared = lock(shared);
        shared.retain(|old| !old.sender.is_closed());
        shared.push(connection);
        drop(shared);
        self.sweep_later();
        lease.ok_or_else(|| CallError::Unanswered("the connection closed".to_owned()))
    }

    /// Keeps a connection for the next request, if it is fit for one.
    pub(crate) fn park(self: &Arc<Self>, member: usize, mut own: Box<Own>) {
        if !own.is_idle() {
            return;
        }
        own.park();
        let mut idle = lock(&self.members[member].own);
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(own);
        }
        drop(idle);
        self.sweep_later();
    }

    fn sweep_later(self: &Arc<Self>) {
        if self.is_swept.load(Ordering::Relaxed) || self.is_swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool = self.clone();
        self.tasks.spawn(async move {
            while pool.is_swept.load(Ordering::Relaxed) {
                tokio::time::sleep(SWEEP).await;
                pool.sweep();
            }
        });
    }

    /// Closes what is old or closed already; rests when nothing is left.
    fn sweep(&self) {
        let mut left = 0;
        for member in &self.members {
            let mut own = lock(&member.own);
            own.retain_mut(|own| own.idle_for() < IDLE && own.is_idle());
            let mut shared = lock(&member.shared);
            shared.retain(Shared::is_of_use);
            left += own.len() + shared.len();
        }
        self.is_swept.store(left > 0, Ordering::Relaxed);
    }
}

/// A connection that nobody else will use.
pub(super) async fn open(
    upstream: &Upstream,
    member: usize,
    tasks: &TaskTracker,
) -> Result<Lease, CallError> {
    let stream = upstream.connector.connect(upstream.address(member)).await?;
    if upstream.service.protocol == Protocol::Http2 {
        let lease = open_shared(stream, tasks).await?.lease();
        return lease.ok_or_else(|| CallError::Unanswered("the connection closed".to_owned()));
    }
    Ok(Lease::Own(Own::over(stream).await?))
}

/// Runs hyper's tasks where ours run.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

async fn open_shared(stream: Stream, tasks: &TaskTracker) -> Result<Shared, CallError> {
    let header_list = u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX);
    // No pings of our own: gRPC servers take them for abuse. TCP's keepalive finds a dead peer.
    let handshake = http2::Builder::new(Tasks(tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(header_list)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(stream));
    let (sender, mut connection) = handshake.await.map_err(|e| broken(&e))?;
    let streams = Arc::new(Streams { in_flight: AtomicUsize::new(0), limit: AtomicUsize::new(STREAMS) });
    let told = streams.clone();
    tasks.spawn(async move {
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            if polled.is_pending() {
                told.limit.store(connection.current_max_send_streams().max(1), Ordering::Relaxed);
            }
            polled
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "a connection to an upstream broke");
        }
    });
    Ok(Shared { sender, streams, used: Instant::now() })
}
