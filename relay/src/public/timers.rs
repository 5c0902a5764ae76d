//! Time limits of a caller's connection that hyper leaves open: the first byte after TLS, a request's head, the pause between requests,
//! and a caller that stops reading. One clock per connection, read by the task that drives it; no timer is touched on the busy path.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::TokioExecutor;
use postern_base::shutdown::Shutdown;
use tokio::time::Instant;

use crate::request::body::ResponseBody;
use crate::settings::Limits;

mod stream;

pub use stream::TimedStream;

/// A caller that takes none of its answer for this long is gone, or holds us up on purpose.
const WRITE_STALL: Duration = Duration::from_mins(5);
/// How long a connection on which nothing is asked may still ask once the relay drains: a round trip of a slow path. What was sent before
/// the caller could see the connection close would be lost otherwise.
const LAST_REQUEST: Duration = Duration::from_millis(300);
/// While requests are served the clock is looked at this often: the last of them may be ended by another task, which wakes nobody here.
const LOOK: Duration = Duration::from_secs(5);
/// A caller that leaves more refusals than this untaken keeps its HTTP/2 windows shut to make us hold them; each costs some 8 KiB.
const UNSENT_REFUSALS: usize = 32;
/// How long a connection that ends while its caller still sends goes on taking that in: a closed door would be answered by a reset, which
/// can overtake our answer and make the caller lose it.
const LINGER: Duration = Duration::from_secs(1);
/// No deadline.
const NEVER: u64 = u64::MAX;

/// The deadlines of one connection. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct ConnectionClock(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    start: Instant,
    head: Duration,
    keepalive: Duration,
    is_http2: bool,
    requests: AtomicUsize,
    /// Milliseconds after `start` by which something must be read; [`NEVER`] while a request is served.
    read_by: AtomicU64,
    /// The same for a write that is blocked.
    write_by: AtomicU64,
    /// Refusals that the caller has not taken yet.
    unsent: AtomicUsize,
    /// Whether bytes of a head have come since the last request began.
    in_head: AtomicBool,
    /// Requests so far.
    begun: AtomicUsize,
    /// Whether the last request came with a body, of which some may be on its way when the connection ends.
    has_body: AtomicBool,
}

/// A request being served; while one lives, the connection is not idle.
#[derive(Debug)]
pub struct Serving(ConnectionClock);

impl ConnectionClock {
    pub fn new(limits: &Limits, is_http2: bool) -> Self {
        let clock = Self(Arc::new(Clock {
            start: Instant::now(),
            head: limits.head,
            keepalive: limits.keepalive,
            is_http2,
            requests: AtomicUsize::new(0),
            read_by: AtomicU64::new(NEVER),
            write_by: AtomicU64::new(NEVER),
            unsent: AtomicUsize::new(0),
            in_head: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            has_body: AtomicBool::new(false),
        }));
        clock.0.read_by.store(clock.millis_from_now(limits.first_byte_in), Ordering::Relaxed);
        clock
    }

    fn millis_from_now(&self, after: Duration) -> u64 {
        u64::try_from((self.0.start.elapsed() + after).as_millis()).unwrap_or(NEVER)
    }

    /// A request's head is complete.
    pub fn begin(&self, has_body: bool) -> Serving {
        self.0.has_body.store(has_body, Ordering::Relaxed);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.in_head.store(false, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.read_by.store(NEVER, Ordering::Relaxed);
        Serving(self.clone())
    }

    /// The relay drains, and `before` were the requests so far: whether hyper may be told to leave without losing one that is on its way.
    /// HTTP/2 says up to which stream it served; HTTP/1.1 closes a connection on which nothing is asked at once, so that the next request
    /// is waited for first, but not for long.
    fn may_leave(&self, before: usize) -> bool {
        let clock = &*self.0;
        clock.is_http2
            || clock.requests.load(Ordering::Relaxed) > 0
            || clock.begun.load(Ordering::Relaxed) > before
    }

    /// The relay drains; gives the requests so far.
    fn hurry(&self) -> usize {
        let before = self.0.begun.load(Ordering::Relaxed);
        if !self.may_leave(before) {
            self.0.read_by.fetch_min(self.millis_from_now(LAST_REQUEST), Ordering::Relaxed);
        }
        before
    }

    /// The connection ends; what is left to be said has this long.
    fn last_words(&self) {
        self.0.read_by.store(self.millis_from_now(LAST_REQUEST), Ordering::Relaxed);
    }

    /// The connection ends; whether the caller may still be sending, and then for how much longer it may.
    fn lingers(&self) -> bool {
        let lingers = !self.0.is_http2 && self.0.has_body.swap(false, Ordering::Relaxed);
        if lingers {
            self.0.read_by.store(self.millis_from_now(LINGER), Ordering::Relaxed);
        }
        lingers
    }

    /// Bytes came while no request was served.
    fn received(&self) {
        let clock = &*self.0;
        if clock.requests.load(Ordering::Relaxed) > 0 || clock.in_head.swap(true, Ordering::Relaxed) {
            return;
        }
        // HTTP/2 sends frames that are no head, so there only the pause between requests is limited.
        let limit = if clock.is_http2 { clock.keepalive } else { clock.head };
        clock.read_by.store(self.millis_from_now(limit), Ordering::Relaxed);
    }

    fn write_blocked(&self, blocked: bool) {
        let by = &self.0.write_by;
        match (blocked, by.load(Ordering::Relaxed)) {
            (true, NEVER) => by.store(self.millis_from_now(WRITE_STALL), Ordering::Relaxed),
            (true, _) | (false, NEVER) => {}
            (false, _) => by.store(NEVER, Ordering::Relaxed),
        }
    }

    /// A refusal on its way; drop it when hyper is done with the answer.
    pub fn unsent(&self) -> Unsent {
        self.0.unsent.fetch_add(1, Ordering::Relaxed);
        Unsent(self.clone())
    }

    fn deadline(&self) -> Option<Instant> {
        let clock = &*self.0;
        if clock.unsent.load(Ordering::Relaxed) > UNSENT_REFUSALS {
            return Some(clock.start);
        }
        let by = clock.read_by.load(Ordering::Relaxed).min(clock.write_by.load(Ordering::Relaxed));
        (by != NEVER).then(|| clock.start + Duration::from_millis(by))
    }
}

/// A refusal that the caller has not taken yet.
#[derive(Debug)]
pub struct Unsent(ConnectionClock);

impl Drop for Unsent {
    fn drop(&mut self) {
        self.0.0.unsent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let clock = &*self.0.0;
        if clock.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            clock.in_head.store(false, Ordering::Relaxed);
            clock.read_by.store(self.0.millis_from_now(clock.keepalive), Ordering::Relaxed);
        }
    }
}

/// hyper's two kinds of connection, which share no trait of their own.
pub trait Drivable: Future<Output = Result<(), hyper::Error>> {
    /// No more requests after those under way.
    fn leave(self: Pin<&mut Self>);
}

/// Ends well when it was upgraded: the stream is another's from then on, with no clock of ours in it.
impl<I, S> Drivable for http1::UpgradeableConnection<I, S>
where
    S: HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Read + Write + Unpin + Send + 'static,
{
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Drivable for http2::Connection<I, S, TokioExecutor>
where
    S: HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
    I: Read + Write + Unpin + 'static,
{
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends, a deadline passes, or it has drained.
pub async fn drive(connection: impl Drivable, clock: &ConnectionClock, shutdown: &Shutdown) {
    let mut connection = pin!(connection);
    let mut draining = pin!(shutdown.draining());
    // Requests before the drain, once it has begun.
    let mut before = None;
    let (mut has_left, mut is_armed) = (false, false);
    let mut sleep = pin!(tokio::time::sleep_until(clock.deadline().unwrap_or_else(Instant::now)));
    std::future::poll_fn(|cx| {
        if before.is_none() && draining.as_mut().poll(cx).is_ready() {
            before = Some(clock.hurry());
        }
        loop {
            if !has_left && before.is_some_and(|before| clock.may_leave(before)) {
                has_left = true;
                connection.as_mut().leave();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if let Err(e) = ended {
                    tracing::debug!(error = %e, "connection ended");
                }
                return Poll::Ready(());
            }
            // The poll may have begun the request that was waited for.
            if has_left || !before.is_some_and(|before| clock.may_leave(before)) {
                break;
            }
        }
        // What the poll above moved has set the clock. An earlier deadline is taken up at once, a later one when the timer fires.
        loop {
            let Some(deadline) = clock.deadline() else {
                // Until it fires the busy path leaves it alone.
                if is_armed && !sleep.is_elapsed() {
                    return Poll::Pending;
                }
                sleep.as_mut().reset(Instant::now() + LOOK);
                is_armed = sleep.as_mut().poll(cx).is_pending();
                return Poll::Pending;
            };
            if deadline < sleep.deadline() || sleep.is_elapsed() {
                if deadline <= Instant::now() {
                    if before.is_none() || has_left {
                        return Poll::Ready(());
                    }
                    // Nothing was asked any more, and hyper ends the connection as it should be.
                    has_left = true;
                    connection.as_mut().leave();
                    clock.last_words();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                is_armed = true;
                return Poll::Pending;
            }
        }
    })
    .await;
}
