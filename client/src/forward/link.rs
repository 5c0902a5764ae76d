//! Takes signs that the relay is gone; says so once, tries until it is back, says that on the same line. Notices that this machine slept,
//! and has the relay looked for anew. Requests do not wait for any of it: they try the relay themselves and are told when it cannot be
//! reached. Keeps the word that the session is over, which ends a forward.

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use postern_base::sync::lock;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::means::Means;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::{SessionError, now};

/// How often an idle forward looks whether the relay is there, so that it can say when it is not.
const LOOK: Duration = Duration::from_secs(15);
/// How soon after waking it is noticed that this machine slept.
const TICK: Duration = Duration::from_secs(2);
/// A timer that is later than this was not only on a busy machine.
const SLEPT: Duration = Duration::from_secs(5);
/// The first wait for a relay that is gone; a restart is over in about this time.
const RETRY: Duration = Duration::from_secs(1);
/// The longest wait: an outage of hours must not cost a request a second.
const RETRY_CAP: Duration = Duration::from_secs(8);

/// What the requests of a forward know of the relay.
#[derive(Debug, Default)]
pub(crate) struct Link {
    changed: Notify,
    ended: Notify,
    end: Mutex<Option<Failure>>,
}

/// Whether there will be no token any more until somebody logs in.
pub(crate) fn is_over(error: &SessionError) -> bool {
    matches!(error, SessionError::None(_) | SessionError::Over { .. })
}

impl Link {
    /// A request could not reach the relay.
    pub(crate) fn failed(&self) {
        self.changed.notify_one();
    }

    /// The session is over: no request can succeed any more.
    pub(crate) fn end(&self, failure: Failure) {
        lock(&self.end).get_or_insert(failure);
        self.ended.notify_one();
    }

    /// Why the forward has no further use.
    pub(crate) async fn ended(&self) -> Failure {
        loop {
            self.ended.notified().await;
            if let Some(failure) = lock(&self.end).take() {
                return failure;
            }
        }
    }

    /// The next sign that it is gone.
    #[cfg(test)]
    pub(crate) async fn lost(&self) {
        self.changed.notified().await;
    }

    /// Runs as long as the forward does.
    pub(crate) async fn watch(&self, means: &Means) -> Infallible {
        let mut clocks = Clocks::now();
        let mut looked = Instant::now();
        loop {
            let heard = tokio::time::timeout(TICK, self.changed.notified()).await.is_ok();
            let slept = clocks.slept();
            if let Some(slept) = slept {
                tracing::info!(?slept, "awake again");
                means.upstream.renew();
            }
            self.end_with_session(means).await;
            if !heard && slept.is_none() && looked.elapsed() < LOOK {
                continue;
            }
            if is_reached(means).await {
                if let Some(slept) = slept {
                    means.out.done(&format!("awake after {}, the relay is reached", words(slept)));
                }
            } else {
                wait_for(means).await;
            }
            // What was waited for is no sleep.
            (clocks, looked) = (Clocks::now(), Instant::now());
        }
    }

    /// One that nothing renews is over at a time that is known; whoever logged in anew meanwhile has another.
    async fn end_with_session(&self, means: &Means) {
        if means.tokens.end().is_some_and(|end| end <= now())
            && let Err(error) = means.tokens.pass(None, Duration::ZERO).await
            && is_over(&error)
        {
            self.end(error.into());
        }
    }
}

/// Asks on the connection at hand, and where that fails on a new one: the first may only have found out that the old way is no more.
async fn is_reached(means: &Means) -> bool {
    if means.leases.relay().answers().await {
        return true;
    }
    let is_reached = means.dial.http1().await.is_ok();
    if is_reached {
        means.upstream.renew();
    }
    is_reached
}

/// Tries until the relay takes a connection.
async fn wait_for(means: &Means) {
    let lost = Instant::now();
    let mut wait = RETRY;
    means.out.begin(&format!("relay lost, retrying in {} s ...", wait.as_secs()));
    loop {
        tokio::time::sleep(wait).await;
        match means.dial.http1().await {
            Ok(_) => break,
            Err(error) => tracing::debug!(%error, "the relay is still away"),
        }
        wait = (wait * 2).min(RETRY_CAP);
    }
    means.upstream.renew();
    finish(&means.out, lost.elapsed());
}

fn finish(out: &Output, lost: Duration) {
    out.finish(&format!("back after {:.1} s", lost.as_secs_f64()));
}

/// Both clocks at one time. A process that was stopped finds its timer late. The monotonic clock of a machine that slept stood still, so
/// only the wall clock tells; one that was set forward looks the same, one that was set back means nothing.
#[derive(Clone, Copy)]
struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// How long nothing ran here, if that was longer than a [`TICK`] may take.
    fn slept(&mut self) -> Option<Duration> {
        let last = std::mem::replace(self, Self::now());
        Self::between(last, *self)
    }

    fn between(last: Self, now: Self) -> Option<Duration> {
        let wall = now.wall.duration_since(last.wall).unwrap_or_default();
        let passed = wall.max(now.monotonic - last.monotonic);
        (passed > TICK + SLEPT).then_some(passed)
    }
}

/// `12 s`, `3 min`, `2 h 5 min`.
fn words(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => format!("{} s", time.as_secs()),
        1..60 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn sleep_is_told_from_a_busy_machine_and_from_a_clock_that_was_set_back() {
        let start = Clocks::now();
        let after = |monotonic, wall| {
            let wall = start.wall + Duration::from_secs(wall);
            Clocks::between(
                start,
                Clocks { monotonic: start.monotonic + Duration::from_secs(monotonic), wall },
            )
        };
        assert_eq!(after(2, 2), None);
        assert_eq!(after(6, 6), None, "busy");
        assert_eq!(after(30, 30), Some(Duration::from_secs(30)), "stopped");
        assert_eq!(after(2, 7505), Some(Duration::from_secs(7505)), "suspended");
        let back = Clocks { wall: start.wall - Duration::from_hours(1), ..start };
        assert_eq!(Clocks::between(start, back), None);
        assert_eq!([12, 185, 7505].map(|s| words(Duration::from_secs(s))), ["12 s", "3 min", "2 h 5 min"]);
    }

    #[tokio::test]
    async fn the_first_word_of_an_end_counts() {
        let link = Link::default();
        link.end(Failure::new(Exit::LoginNeeded, "first"));
        link.end(Failure::new(Exit::LoginNeeded, "second"));
        assert_eq!(link.ended().await.message, "first");
    }
}
