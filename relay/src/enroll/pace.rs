//! How often one instance may have what it asks for: takes instance, pace and now; refuses who asks again and again, with how long to wait. A
//! certificate costs a signature and a write to the disk, so an enrolled agent gone bad must not have them in a loop.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use postern_base::id::InstanceId;

/// Certificates at once: half-life comes once, a new authority asks once more, and lost answers are asked for again.
const AT_ONCE: u32 = 6;
/// After which one more may be had; of a life that is short, an eighth, so that half-life is never too early.
const EACH: Duration = Duration::from_secs(10);
/// Instances remembered before those that have all again are forgotten. Only who is enrolled gets here, so there are never many more.
const SWEEP: usize = 1024;

/// When each instance has all of its tries again.
#[derive(Debug, Default)]
pub struct Paces(HashMap<InstanceId, Instant>);

impl Paces {
    /// One more certificate of this life, or how long to wait for it.
    pub(super) fn take(
        &mut self,
        instance: &InstanceId,
        life: Duration,
        now: Instant,
    ) -> Result<(), Duration> {
        self.spend(instance, (AT_ONCE, EACH.min(life / 8)), now)
    }

    /// One more of what may be had so often at once and then once in `each`, or how long to wait for it.
    pub fn spend(
        &mut self,
        instance: &InstanceId,
        (at_once, each): (u32, Duration),
        now: Instant,
    ) -> Result<(), Duration> {
        let used = self.0.get(instance).map_or(Duration::ZERO, |whole| whole.saturating_duration_since(now));
        let after = used + each;
        if let Some(wait) = after.checked_sub(each * at_once).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        if self.0.len() >= SWEEP && !self.0.contains_key(instance) {
            self.0.retain(|_, whole| *whole > now);
        }
        self.0.insert(instance.clone(), now + after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_loop_gets_a_few_and_then_its_pace() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let (one, other) = (InstanceId::random(), InstanceId::random());
        let mut asks = |who: &InstanceId, at: Duration| paces.take(who, DAY, start + at);
        assert_eq!((0..1000).filter(|_| asks(&one, Duration::ZERO).is_ok()).count(), 6);
        assert_eq!(asks(&one, Duration::ZERO), Err(EACH));
        assert_eq!(asks(&other, Duration::ZERO), Ok(()), "another instance");
        let minute = (0..6000).filter(|n| asks(&one, Duration::from_millis(n * 10)).is_ok()).count();
        assert!((5..=6).contains(&minute), "{minute} in a minute");
        assert_eq!((0..99).filter(|_| asks(&one, DAY).is_ok()).count(), 6, "all again");
    }

    #[test]
    fn short_lives_renew_at_half_of_them() {
        for life in [Duration::from_secs(6), Duration::from_mins(1), DAY] {
            let (mut paces, start, who) = (Paces::default(), Instant::now(), InstanceId::random());
            // Each one asked for twice, since an answer may be lost.
            let refused = (0..2000).filter(|n| paces.take(&who, life, start + life / 2 * (n / 2)).is_err());
            assert_eq!(refused.count(), 0, "{life:?}");
        }
    }

    #[test]
    fn who_has_all_again_is_forgotten() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        for n in 0..10 * SWEEP {
            let now = start + EACH * u32::try_from(n).unwrap();
            assert_eq!(paces.take(&InstanceId::random(), DAY, now), Ok(()));
        }
        assert!(paces.0.len() <= SWEEP);
    }
}
