//! When to dial again, without clock or I/O: takes how the last try failed, the time and a random number; gives the wait.
//!
//! Two things hold at once. Requests succeed again within 5 s of a path's return, so whoever meets silence waits 2 s at most: that costs
//! a relay nothing, for it is not there, and when it is back the tries of a thousand agents are spread evenly over those seconds (full
//! jitter). And agents do not fall over each other: a relay that is there but cannot take them says so, by refusing or by not getting
//! round to an answer, and each such failure doubles the span over which the next tries are spread, up to 30 s. A relay that said goodbye
//! refuses because it leaves, however long its last requests take: until the next one is there that is met like silence.

use std::time::Duration;

use postern_base::backoff::Backoff;
use postern_base::defaults::{RECONNECT_BASE, RECONNECT_CAP};
use tokio::time::Instant;

/// See above; together with the second that passes at most between two packets of a dial it stays well below 5 s.
const SILENT_CAP: Duration = Duration::from_secs(2);
/// For so long after a goodbye a relay is expected back: it restarts.
const HURRY: Duration = Duration::from_secs(5);
/// For so long its refusals mean no more than that: many times what a drain may take.
const LEAVING: Duration = Duration::from_mins(2);
const HURRY_LEAST: Duration = Duration::from_millis(100);
const HURRY_SPREAD: Duration = Duration::from_millis(150);
/// A relay that names a time names it to many.
pub(super) const SPREAD: Duration = Duration::from_secs(1);

/// How a try failed, or a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody was there, as far as one can tell from here.
    Silent,
    /// Somebody answered, and it led to nothing.
    Refused,
    /// The relay said when to come back.
    Asked(Duration),
}

/// See above.
#[derive(Debug)]
pub(crate) struct Pace {
    silent: Backoff,
    refused: Backoff,
    hurry_until: Option<Instant>,
    leaving_until: Option<Instant>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            silent: Backoff::new(RECONNECT_BASE, SILENT_CAP),
            refused: Backoff::new(RECONNECT_BASE, RECONNECT_CAP),
            hurry_until: None,
            leaving_until: None,
        }
    }

    /// The wait before the next try; `random` is uniform in `0.0..1.0`.
    pub(crate) fn failed(&mut self, how: Failure, now: Instant, random: f64) -> Duration {
        match how {
            Failure::Asked(wait) => wait + SPREAD.mul_f64(random),
            Failure::Silent | Failure::Refused if self.is_hurried(now) => {
                HURRY_LEAST + HURRY_SPREAD.mul_f64(random)
            }
            Failure::Silent => self.silent.next(random),
            Failure::Refused if self.leaving_until.is_some_and(|until| now < until) => {
                self.silent.next(random)
            }
            Failure::Refused => self.refused.next(random),
        }
    }

    /// Whether the relay is expected back just now.
    pub(crate) fn is_hurried(&self, now: Instant) -> bool {
        self.hurry_until.is_some_and(|until| now < until)
    }

    /// The relay said goodbye, or ended after it.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.hurry_until = Some(now + HURRY);
        self.leaving_until = Some(now + LEAVING);
    }

    /// There is a tunnel again: what is refused from now on is refused by a relay that stays.
    pub(crate) fn back(&mut self) {
        self.leaving_until = None;
    }

    /// A tunnel proved itself for long enough.
    pub(crate) fn healthy(&mut self) {
        self.silent.reset();
        self.refused.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_of(pace: &mut Pace, how: Failure, random: f64) -> Duration {
        (0..20).map(|_| pace.failed(how, Instant::now(), random)).last().unwrap()
    }

    #[test]
    fn silence_is_met_with_short_waits_and_refusal_with_long_ones() {
        let mut pace = Pace::new();
        assert_eq!(pace.failed(Failure::Silent, Instant::now(), 1.0), RECONNECT_BASE);
        assert_eq!(last_of(&mut pace, Failure::Silent, 1.0), Duration::from_secs(2));
        assert_eq!(pace.failed(Failure::Refused, Instant::now(), 1.0), RECONNECT_BASE);
        assert_eq!(last_of(&mut pace, Failure::Refused, 1.0), Duration::from_secs(30));
        assert_eq!(last_of(&mut pace, Failure::Refused, 0.0), Duration::ZERO);
        pace.healthy();
        assert_eq!(pace.failed(Failure::Refused, Instant::now(), 1.0), RECONNECT_BASE);
    }

    #[test]
    fn what_the_relay_asks_for_is_honoured_and_spread() {
        let asked = Failure::Asked(Duration::from_mins(1));
        let mut pace = Pace::new();
        pace.hurry(Instant::now());
        assert_eq!(pace.failed(asked, Instant::now(), 0.0), Duration::from_mins(1));
        assert_eq!(pace.failed(asked, Instant::now(), 1.0), Duration::from_secs(61));
    }

    #[test]
    fn after_a_goodbye_the_relay_is_expected_back_soon() {
        let start = Instant::now();
        let mut pace = Pace::new();
        pace.hurry(start);
        for _ in 0..20 {
            assert_eq!(pace.failed(Failure::Refused, start + Duration::from_secs(4), 0.0), HURRY_LEAST);
            assert_eq!(
                pace.failed(Failure::Silent, start + Duration::from_secs(4), 1.0),
                HURRY_LEAST + HURRY_SPREAD
            );
        }
        assert_eq!(pace.failed(Failure::Silent, start + HURRY, 1.0), RECONNECT_BASE);
    }

    #[test]
    fn a_relay_that_drains_for_long_is_not_given_up() {
        let start = Instant::now();
        let mut pace = Pace::new();
        pace.hurry(start);
        let waits: Vec<_> = (6..26)
            .map(|second| pace.failed(Failure::Refused, start + Duration::from_secs(second), 1.0))
            .collect();
        assert_eq!(waits.last(), Some(&SILENT_CAP));
        pace.back();
        assert_eq!(pace.failed(Failure::Refused, start + HURRY, 1.0), RECONNECT_BASE, "nothing was counted");
        let waits = (0..10).map(|_| pace.failed(Failure::Refused, start + HURRY, 1.0));
        assert_eq!(waits.last(), Some(RECONNECT_CAP));
    }

    #[test]
    fn a_thousand_agents_come_back_evenly() {
        // Silence for a minute, then the relay is back: within each tenth of the next wait about a tenth of them dials.
        let mut tenths = [0_u32; 10];
        for agent in 0..1000_u32 {
            let mut pace = Pace::new();
            last_of(&mut pace, Failure::Silent, 0.5);
            let wait = pace.failed(Failure::Silent, Instant::now(), f64::from(agent) / 1000.0);
            tenths[usize::try_from(wait.as_millis() / 200).unwrap().min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| (90..=110).contains(count)), "{tenths:?}");
    }
}
