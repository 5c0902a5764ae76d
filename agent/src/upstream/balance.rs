//! Which address is next: takes a place among a service's requests, gives the healthy address with the fewest requests in flight;
//! addresses that failed lately or fail their checks come last, and are tried only where there is nothing better. Shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{CallError, Upstream};
use crate::settings::Service;

/// How long an address that took no connection is left for the others.
const ASIDE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Balance {
    members: Box<[Member]>,
    in_flight: AtomicUsize,
    limit: Option<usize>,
    /// Where the next look begins, so that equals take turns.
    turn: AtomicUsize,
    began: Instant,
}

/// One address.
#[derive(Debug, Default)]
struct Member {
    in_flight: AtomicUsize,
    /// Milliseconds since `Balance::began`.
    aside_until: AtomicU64,
    /// Its checks fail.
    is_down: AtomicBool,
}

impl Balance {
    pub(super) fn new(service: &Service) -> Self {
        Self::of(service.addresses.len(), service.limit.concurrent)
    }

    fn of(members: usize, limit: Option<usize>) -> Self {
        Self {
            members: std::iter::repeat_with(Member::default).take(members).collect(),
            in_flight: AtomicUsize::new(0),
            limit,
            turn: AtomicUsize::new(0),
            began: Instant::now(),
        }
    }

    /// Whether any address passes its checks.
    pub fn is_healthy(&self) -> bool {
        self.members.iter().any(|member| !member.is_down.load(Ordering::Relaxed))
    }

    /// Whether no address fails its checks.
    pub(super) fn is_whole(&self) -> bool {
        self.members.iter().all(|member| !member.is_down.load(Ordering::Relaxed))
    }

    /// What the checks found; true where that is new.
    pub(super) fn set_down(&self, member: usize, is_down: bool) -> bool {
        let member = &self.members[member];
        if !is_down {
            member.aside_until.store(0, Ordering::Relaxed);
        }
        member.is_down.swap(is_down, Ordering::Relaxed) != is_down
    }

    /// An address took no connection; true where that is new.
    pub(super) fn set_aside(&self, member: usize) -> bool {
        let now = self.now();
        let until = now.saturating_add(millis(ASIDE));
        self.members[member].aside_until.swap(until, Ordering::Relaxed) <= now
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// The best address that is not among `tried`.
    fn choose(&self, tried: u64) -> Option<usize> {
        let count = self.members.len();
        if count == 1 {
            return (tried == 0).then_some(0);
        }
        let (now, turn) = (self.now(), self.turn.fetch_add(1, Ordering::Relaxed));
        let order = (0..count).map(|step| turn.wrapping_add(step) % count);
        order.filter(|member| tried & (1 << member) == 0).min_by_key(|index| {
            let member = &self.members[*index];
            let is_aside = member.aside_until.load(Ordering::Relaxed) > now;
            let in_flight = member.in_flight.load(Ordering::Relaxed);
            (member.is_down.load(Ordering::Relaxed), is_aside, in_flight)
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request's place at an upstream, and later at one of its addresses; dropping it makes room.
#[derive(Debug)]
pub struct Place {
    upstream: Arc<Upstream>,
    member: Option<usize>,
}

impl Place {
    /// # Errors
    /// `limit.concurrent` is reached.
    pub fn take(upstream: &Arc<Upstream>) -> Result<Self, CallError> {
        let Balance { in_flight, limit, .. } = &upstream.balance;
        let before = in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Self { upstream: upstream.clone(), member: None };
        match *limit {
            Some(limit) if before >= limit => Err(CallError::Busy(limit)),
            _ => Ok(place),
        }
    }

    /// Moves to the best address that is not among `tried`, a set of bits.
    pub(super) fn choose(&mut self, tried: u64) -> Option<usize> {
        self.leave();
        self.member = self.upstream.balance.choose(tried);
        if let Some(member) = self.member {
            self.upstream.balance.members[member].in_flight.fetch_add(1, Ordering::Relaxed);
        }
        self.member
    }

    fn leave(&mut self) {
        if let Some(member) = self.member.take() {
            self.upstream.balance.members[member].in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        self.upstream.balance.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_busy_healthy_address_is_chosen_and_equals_take_turns() {
        let balance = Balance::of(3, None);
        let first: Vec<_> = (0..6).filter_map(|_| balance.choose(0)).collect();
        assert_eq!(first, [0, 1, 2, 0, 1, 2]);
        balance.members[0].in_flight.store(2, Ordering::Relaxed);
        balance.members[2].in_flight.store(1, Ordering::Relaxed);
        assert!((0..6).all(|_| balance.choose(0) == Some(1)));
        assert!((0..6).all(|_| balance.choose(0b010) == Some(2)));
        assert_eq!(balance.choose(0b111), None);
    }

    #[test]
    fn what_failed_comes_last_and_is_still_better_than_nothing() {
        let balance = Balance::of(2, None);
        assert!(balance.set_aside(0) && !balance.set_aside(0), "news once");
        assert!((0..4).all(|_| balance.choose(0) == Some(1)), "aside");
        assert!(balance.set_down(1, true) && !balance.set_down(1, true), "news once");
        assert!((0..4).all(|_| balance.choose(0) == Some(0)), "down is worse than aside");
        assert!(balance.is_healthy());
        balance.set_down(0, true);
        assert!(!balance.is_healthy() && balance.choose(0).is_some());
        assert!(balance.set_down(0, false));
        assert!((0..4).all(|_| balance.choose(0) == Some(0)), "a check that succeeds takes it back");
    }
}
