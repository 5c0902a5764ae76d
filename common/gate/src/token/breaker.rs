//! Takes how questions to an issuer ended; gives leave for the next one; refuses it while the issuer, by its own 5xx answers or by
//! answering too late, shows that asking it now makes things worse. Whatever else goes wrong costs nobody's time and stops nothing.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use postern_base::backoff::Backoff;
use postern_base::sync::lock;
use tokio::time::Instant;

/// So many failures without a good answer in between: one lost answer is not an outage.
const FAILURES: u32 = 5;
/// How long nobody asks then; doubled each time the one who tries finds it as it was.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Nobody waits longer for an issuer that is well again.
const LAST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Breaker(Mutex<State>);

struct State {
    failures: u32,
    /// Nobody asks before then, and after it one at a time.
    open_until: Option<Instant>,
    trying: bool,
    pause: Backoff,
}

/// Leave to ask once. Dropped without a verdict, nothing was learned.
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    is_trial: bool,
}

impl Breaker {
    pub(super) fn new() -> Self {
        let pause = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        Self(Mutex::new(State { failures: 0, open_until: None, trying: false, pause }))
    }

    pub(super) fn leave(&self, now: Instant) -> Option<Leave<'_>> {
        let mut state = self.lock();
        let is_trial = match state.open_until {
            None => false,
            Some(until) if now < until || state.trying => return None,
            Some(_) => true,
        };
        state.trying |= is_trial;
        Some(Leave { breaker: self, is_trial })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that panics runs under the lock.
        lock(&self.0)
    }
}

impl Leave<'_> {
    /// The issuer answered, whatever it said.
    pub(super) fn answered(self) {
        let mut state = self.breaker.lock();
        (state.failures, state.open_until) = (0, None);
        state.pause.reset();
    }

    /// It answered 5xx, or too late.
    pub(super) fn failed(self, now: Instant) {
        let mut state = self.breaker.lock();
        state.failures += 1;
        // Of those that were under way when it opened, none opens it anew.
        if self.is_trial || (state.failures >= FAILURES && state.open_until.is_none()) {
            // In full: one at a time asks afterwards, so there is nothing to spread.
            state.open_until = Some(now + state.pause.next(1.0));
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.breaker.lock().trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_tries_one_at_a_time() {
        let (breaker, start) = (Breaker::new(), Instant::now());
        for _ in 0..3 {
            for _ in 0..4 {
                breaker.leave(start).unwrap().failed(start);
            }
            breaker.leave(start).unwrap().answered();
        }
        for _ in 0..5 {
            breaker.leave(start).unwrap().failed(start);
        }
        assert!(breaker.leave(start).is_none() && breaker.leave(at(start, 999)).is_none());
        let trial = breaker.leave(at(start, 1000)).unwrap();
        assert!(breaker.leave(at(start, 1000)).is_none(), "one at a time");
        trial.failed(at(start, 1000));
        assert!(breaker.leave(at(start, 2999)).is_none(), "twice as long");
        drop(breaker.leave(at(start, 3000)).unwrap());
        breaker.leave(at(start, 3000)).unwrap().answered();
        let both = [breaker.leave(at(start, 3000)), breaker.leave(at(start, 3000))];
        assert!(both.iter().all(Option::is_some), "well again");
    }

    #[test]
    fn those_under_way_do_not_prolong_it() {
        let (breaker, start) = (Breaker::new(), Instant::now());
        let leaves: Vec<_> = (0..20).map(|_| breaker.leave(start).unwrap()).collect();
        for leave in leaves {
            leave.failed(start);
        }
        assert!(breaker.leave(at(start, 1000)).is_some());
    }
}
