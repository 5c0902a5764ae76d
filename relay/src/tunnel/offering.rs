//! Changes of what an agent offers while its tunnel lives. Takes each one as it comes, gives the newest at a pace: every change rebuilds the
//! registry, so of those that come faster only the last one counts. Refuses nothing, since whoever flaps ends up with what is true.

use std::time::Duration;

use postern_wire::control::ServiceOffer;
use tokio::time::Instant;

/// Changes taken up at once: services fall ill and come back together.
const AT_ONCE: u32 = 10;
/// After which one more is taken up.
const EACH: Duration = Duration::from_secs(1);

/// What an agent said that it offers and that is not taken up yet.
#[derive(Debug)]
pub(super) struct Offering {
    newest: Option<Vec<ServiceOffer>>,
    /// When all of [`AT_ONCE`] may be had again.
    whole: Instant,
}

impl Offering {
    pub(super) fn new(now: Instant) -> Self {
        Self { newest: None, whole: now }
    }

    /// The agent offers this from now on.
    pub(super) fn change(&mut self, offers: Vec<ServiceOffer>) {
        self.newest = Some(offers);
    }

    /// When the newest change may be taken up; nothing where there is none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let after = self.whole.saturating_duration_since(now) + EACH;
        self.newest.as_ref().map(|_| now + after.saturating_sub(EACH * AT_ONCE))
    }

    /// The newest change, once it is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Vec<ServiceOffer>> {
        self.due(now).filter(|due| *due <= now)?;
        self.whole = self.whole.max(now) + EACH;
        self.newest.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_taken_up_at_once_and_of_a_flood_the_last() {
        let start = Instant::now();
        let mut offering = Offering::new(start);
        assert_eq!((offering.take(start), offering.due(start)), (None, None), "nothing changed");
        let offers = |count: usize| {
            let offer = ServiceOffer {
                name: "wiki".into(),
                kind: postern_wire::control::ServiceKind::Http,
                healthy: true,
                wants_caller_token: false,
            };
            vec![offer; count]
        };
        let taken = (0..1000).filter_map(|count| {
            offering.change(offers(count));
            offering.take(start)
        });
        assert_eq!(taken.count(), 10);
        assert_eq!(offering.due(start), Some(start + EACH));
        assert_eq!(offering.take(start + EACH / 2), None, "too early");
        assert_eq!(offering.take(start + EACH).map(|newest| newest.len()), Some(999), "the last one counts");
        offering.change(offers(1));
        assert_eq!(offering.take(start + EACH), None, "one a second");
        assert_eq!(offering.take(start + 2 * EACH).map(|newest| newest.len()), Some(1));
    }
}
