//! Takes the number of failures so far and a random number; gives how long to wait before the next try (full jitter).

use std::time::Duration;

/// Exponential back-off with full jitter: the n-th wait is uniform between zero and `base * 2^n`, at most `cap`.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The next wait; `random` is uniform in `0.0..1.0` and comes from the caller so that tests choose it.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling =
            self.base.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Call once a connection has proved itself, not as soon as it opened.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        let waits: Vec<_> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next(0.5).as_millis(), 125);
        for _ in 0..100 {
            assert!(backoff.next(0.99) <= Duration::from_secs(30));
        }
    }
}
