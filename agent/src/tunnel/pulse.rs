//! A tunnel's pulse, without clock or I/O: takes the time and what was answered; gives when the next heartbeat is due, when the relay is
//! late with an answer, and when it counts as gone.

use std::time::Duration;

use tokio::time::Instant;

/// A relay that leaves heartbeats unanswered for this many beats is gone, whatever the transport says.
const SILENCE: u32 = 4;
/// An answer may take this long, or four times as long as the last one did. Shorter would start needless dials on slow paths; longer
/// would cost the 5 s in which requests succeed again once a path is back.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first answer shows how long answers take; until then as long as a handshake may.
const FIRST: Duration = Duration::from_secs(4);
/// While an answer is late: new packets find a path that came back sooner than the transport's own, ever slower repetitions.
const WHILE_LATE: Duration = Duration::from_secs(1);

/// See above.
#[derive(Debug)]
pub(super) struct Pulse {
    every: Duration,
    seq: u64,
    due: Instant,
    /// The first heartbeat that has no answer.
    open: Option<(u64, Instant)>,
    /// When the tunnel last showed that it works both ways.
    alive: Instant,
    patience: Duration,
}

impl Pulse {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        Self { every, seq: 0, due: now, open: None, alive: now, patience: FIRST }
    }

    /// When to send the next heartbeat.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A heartbeat is being sent; gives its number.
    pub(super) fn beat(&mut self, now: Instant) -> u64 {
        self.seq += 1;
        self.open.get_or_insert((self.seq, now));
        self.due = now + if self.is_late(now) { WHILE_LATE.min(self.every) } else { self.every };
        self.seq
    }

    /// Gives how long the answer took, where it was waited for.
    pub(super) fn answered(&mut self, seq: u64, now: Instant) -> Option<Duration> {
        self.alive = now;
        let (_, sent) = self.open.filter(|(first, _)| seq >= *first)?;
        self.patience = (4 * (now - sent)).clamp(PATIENCE, 2 * self.every.max(PATIENCE));
        self.due = self.due.max(now + WHILE_LATE);
        // Those sent meanwhile have their own time to be answered.
        self.open = (seq < self.seq).then_some((seq + 1, now));
        Some(now - sent)
    }

    /// When the relay will be late; `None` while nothing is unanswered.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.open.map(|(_, sent)| sent + self.patience)
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.late_at().is_some_and(|late| late <= now)
    }

    /// An answer is late: the next heartbeat does not wait for its time.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.due = self.due.min(now + WHILE_LATE);
    }

    /// When the relay counts as gone.
    pub(super) fn gone_at(&self) -> Instant {
        self.alive + self.every * SILENCE
    }

    /// This process or machine slept: what is open gets a new start, and the next heartbeat, which is due now, a short time.
    pub(super) fn woke(&mut self, now: Instant) {
        self.patience = PATIENCE;
        self.open = None;
        self.due = now;
        // The answers may wait in a socket that nobody has read yet.
        self.alive = self.alive.max(now - (self.every * SILENCE).saturating_sub(2 * PATIENCE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn an_answer_in_time_keeps_the_pace() {
        let start = Instant::now();
        let mut pulse = Pulse::new(EVERY, start);
        assert_eq!(pulse.due(), start);
        assert_eq!(pulse.beat(start), 1);
        assert_eq!(pulse.late_at(), Some(start + FIRST));
        pulse.answered(1, after(start, 30));
        assert_eq!(pulse.late_at(), None);
        assert_eq!((pulse.due(), pulse.patience), (start + EVERY, PATIENCE));
        assert_eq!(pulse.gone_at(), after(start, 20_030));
        pulse.beat(start + EVERY);
        assert_eq!(pulse.late_at(), Some(start + EVERY + PATIENCE));
    }

    #[test]
    fn a_late_answer_is_asked_for_more_often_until_the_relay_counts_as_gone() {
        let start = Instant::now();
        let mut pulse = Pulse::new(EVERY, start);
        pulse.beat(start);
        pulse.answered(1, start);
        pulse.beat(after(start, 5000));
        assert!(!pulse.is_late(after(start, 6999)));
        assert!(pulse.is_late(after(start, 7000)));
        pulse.beat(after(start, 7000));
        assert_eq!(pulse.due(), after(start, 8000));
        assert_eq!(pulse.gone_at(), after(start, 20_000));
        // The first answer that comes ends it, and whoever is slow is given more time.
        pulse.answered(2, after(start, 9000));
        assert!(!pulse.is_late(after(start, 9000)));
        pulse.answered(3, after(start, 9001));
        assert_eq!(pulse.late_at(), None);
        pulse.beat(after(start, 12_000));
        pulse.answered(4, after(start, 15_000));
        assert_eq!(pulse.patience, 2 * EVERY);
    }

    #[test]
    fn whoever_slept_asks_at_once_and_waits_shortly() {
        let start = Instant::now();
        let mut pulse = Pulse::new(EVERY, start);
        pulse.beat(start);
        pulse.answered(1, start);
        let woke = after(start, 90_000);
        pulse.woke(woke);
        assert_eq!(pulse.due(), woke);
        pulse.beat(woke);
        assert_eq!(pulse.late_at(), Some(woke + PATIENCE));
        assert!(pulse.gone_at() > woke + PATIENCE);
    }
}
