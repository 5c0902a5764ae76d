//! When the certificate is renewed: at half-life, at once where a relay asks for it, later after failures (full jitter). Takes how tries
//! went; gives when the next may be made, by one tunnel at a time, and what `status` says of it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use postern_base::backoff::Backoff;
use postern_base::sync::lock;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// The first span over which tries are spread after a failure.
const BASE: Duration = Duration::from_secs(1);
/// The longest. Certificates live for a day, or in tests for a minute, of which half is left.
const CAP: Duration = Duration::from_mins(1);
/// A relay whose authority changed tells all its agents at once; they come within this time, or a twentieth of a certificate's life.
const SPREAD: Duration = Duration::from_secs(5);

/// How renewal stands, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalView {
    /// When the next one is due; none where certificates are made elsewhere.
    pub next: Option<SystemTime>,
    /// Since the last success.
    pub failures: u32,
    pub last_error: Option<(SystemTime, String)>,
    /// None where it has not been renewed since this agent started.
    pub last_success: Option<SystemTime>,
}

/// All tunnels' renewals, and recoveries.
#[derive(Debug)]
pub struct Renewals {
    only: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    backoff: Backoff,
    /// After a failure the next try waits until then.
    not_before: Option<Instant>,
    /// A relay asked for one.
    wanted: Option<Instant>,
    failures: u32,
    last_error: Option<(SystemTime, String)>,
    last_success: Option<SystemTime>,
}

impl Default for Renewals {
    fn default() -> Self {
        let state = State {
            backoff: Backoff::new(BASE, CAP),
            not_before: None,
            wanted: None,
            failures: 0,
            last_error: None,
            last_success: None,
        };
        Self { only: Arc::default(), state: Mutex::new(state) }
    }
}

impl Renewals {
    /// Held by whoever asks, until the answer is stored; none while another does.
    pub(crate) fn begin(&self) -> Option<OwnedMutexGuard<()>> {
        self.only.clone().try_lock_owned().ok()
    }

    /// The same for a recovery, which waits for its turn.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.only.clone().lock_owned().await
    }

    /// How long until the next try; `half_life` is how long until the certificate has lived half its life.
    pub(crate) fn due_in(&self, half_life: Duration, now: Instant) -> Duration {
        let state = self.lock();
        let due = state.wanted.map_or(half_life, |at| half_life.min(at - now));
        state.not_before.map_or(due, |at| due.max(at - now))
    }

    /// A relay wants this agent to renew now; `life` is its certificate's.
    pub(crate) fn want(&self, life: Duration, now: Instant, random: f64) {
        let at = now + SPREAD.min(life / 20).mul_f64(random);
        self.lock().wanted.get_or_insert(at);
    }

    /// It is not tried again before `least`.
    pub(crate) fn failed(&self, reason: &str, least: Duration, now: Instant, random: f64) {
        let mut state = self.lock();
        let wait = state.backoff.next(random).max(least);
        state.not_before = Some(now + wait);
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some((SystemTime::now(), reason.to_owned()));
    }

    pub(crate) fn succeeded(&self) {
        let mut state = self.lock();
        state.backoff.reset();
        (state.not_before, state.wanted, state.failures) = (None, None, 0);
        state.last_success = Some(SystemTime::now());
    }

    /// `half_life` as in [`Renewals::due_in`].
    pub(crate) fn view(&self, half_life: Option<Duration>) -> RenewalView {
        let next = half_life.map(|due| SystemTime::now() + self.due_in(due, Instant::now()));
        let state = self.lock();
        RenewalView {
            next,
            failures: state.failures,
            last_error: state.last_error.clone(),
            last_success: state.last_success,
        }
    }

    /// What is kept is whole at every point where a panic could have left it.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn failures_are_counted_kept_and_spread_the_next_tries() {
        let (renewals, now) = (Renewals::default(), Instant::now());
        assert_eq!(renewals.due_in(HOUR, now), HOUR);
        let mut waits = Vec::new();
        for _ in 0..8 {
            renewals.failed("no issuing key", Duration::ZERO, now, 1.0);
            waits.push(renewals.due_in(Duration::ZERO, now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        renewals.failed("later", 2 * CAP, now, 0.0);
        assert_eq!(renewals.due_in(Duration::ZERO, now), 2 * CAP, "as long as the relay asks for");
        let view = renewals.view(Some(Duration::ZERO));
        assert_eq!((view.failures, view.last_success), (9, None));
        assert_eq!(view.last_error.unwrap().1, "later");
        renewals.succeeded();
        assert_eq!(renewals.due_in(Duration::ZERO, now), Duration::ZERO);
        let view = renewals.view(Some(Duration::ZERO));
        assert!(view.failures == 0 && view.last_success.is_some());
        renewals.failed("again", Duration::ZERO, now, 1.0);
        assert_eq!(renewals.due_in(Duration::ZERO, now), BASE, "the backoff began anew");
    }

    #[test]
    fn what_a_relay_wants_is_spread_and_comes_once() {
        let (renewals, now) = (Renewals::default(), Instant::now());
        renewals.want(24 * HOUR, now, 1.0);
        assert_eq!(renewals.due_in(HOUR, now), SPREAD);
        renewals.want(24 * HOUR, now, 0.0);
        assert_eq!(renewals.due_in(HOUR, now), SPREAD, "the second tunnel's");
        assert_eq!(renewals.due_in(Duration::ZERO, now), Duration::ZERO, "half-life comes first");
        renewals.succeeded();
        assert_eq!(renewals.due_in(HOUR, now), HOUR);
        renewals.want(Duration::from_mins(1), now, 1.0);
        assert_eq!(renewals.due_in(HOUR, now), Duration::from_secs(3), "short lives, short spans");
    }

    #[tokio::test]
    async fn one_asks_at_a_time() {
        let renewals = Renewals::default();
        let first = renewals.begin().unwrap();
        assert!(renewals.begin().is_none());
        drop(first);
        let _second = renewals.turn().await;
        assert!(renewals.begin().is_none());
    }
}
