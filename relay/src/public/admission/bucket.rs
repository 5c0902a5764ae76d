//! Leaky buckets per address: each event fills one, and time empties it. Takes an address and now; says whether there is room. Bounded:
//! when more addresses than it remembers have something in their buckets, newcomers find theirs full.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postern_base::sync::lock;

use super::network;

/// Addresses remembered at one time; beyond it those whose buckets are empty are forgotten first.
const ADDRESSES: usize = 16 * 1024;

/// One kind of event. A bucket holds as many as its limit says and is empty again when `span` has passed.
#[derive(Debug)]
pub struct Buckets {
    span: Duration,
    /// How many addresses are remembered, so that the usual question, asked when nobody misbehaves, takes no lock.
    known: AtomicUsize,
    /// When each bucket will be empty.
    empty_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Buckets {
    pub fn new(span: Duration) -> Self {
        Self { span, known: AtomicUsize::new(0), empty_at: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        // Each entry is whole by itself.
        lock(&self.empty_at)
    }

    /// How much of a bucket is full at `now`, in time that it takes to empty.
    fn level(empty_at: Option<&Instant>, now: Instant) -> Duration {
        empty_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Whether one more event fits.
    pub fn has_room(&self, address: IpAddr, limit: u32, now: Instant) -> bool {
        if self.known.load(Ordering::Relaxed) == 0 {
            return limit > 0;
        }
        let level = Self::level(self.lock().get(&network(address)), now);
        level + self.span / limit.max(1) <= self.span
    }

    /// Puts one event in if it fits.
    pub fn take(&self, address: IpAddr, limit: u32, now: Instant) -> bool {
        let (key, drop) = (network(address), self.span / limit.max(1));
        let mut buckets = self.lock();
        if buckets.len() >= ADDRESSES && !buckets.contains_key(&key) {
            buckets.retain(|_, empty_at| *empty_at > now);
            self.known.store(buckets.len(), Ordering::Relaxed);
            if buckets.len() >= ADDRESSES {
                // More addresses than this within one span are an attack: closed for newcomers.
                return false;
            }
        }
        let level = Self::level(buckets.get(&key), now) + drop;
        if level > self.span {
            return false;
        }
        buckets.insert(key, now + level);
        self.known.store(buckets.len(), Ordering::Relaxed);
        true
    }

    /// Takes one event out again.
    pub fn give_back(&self, address: IpAddr, limit: u32) {
        if let Some(empty_at) = self.lock().get_mut(&network(address)) {
            *empty_at = empty_at.checked_sub(self.span / limit.max(1)).unwrap_or(*empty_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_mins(1);

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn as_many_as_the_limit_at_once_and_then_at_its_pace() {
        let (buckets, one, start) = (Buckets::new(SPAN), address(1), Instant::now());
        assert!(buckets.has_room(one, 20, start));
        let taken = (0..50).filter(|_| buckets.take(one, 20, start)).count();
        assert_eq!(taken, 20);
        assert!(!buckets.has_room(one, 20, start));
        assert!(buckets.take(address(2), 20, start), "another address");
        let later = start + SPAN / 20;
        assert!(buckets.take(one, 20, later), "room for one");
        assert!(!buckets.take(one, 20, later), "and no more");
        let taken = (0..50).filter(|_| buckets.take(one, 20, later + SPAN)).count();
        assert_eq!(taken, 20, "empty again");
    }

    #[test]
    fn what_is_given_back_makes_room() {
        let (buckets, one, now) = (Buckets::new(SPAN), address(1), Instant::now());
        for _ in 0..100 {
            assert!(buckets.take(one, 2, now));
            buckets.give_back(one, 2);
        }
        assert!(buckets.take(one, 2, now) && buckets.take(one, 2, now) && !buckets.take(one, 2, now));
    }

    #[test]
    fn memory_is_bounded_and_closed_for_newcomers() {
        let (buckets, now) = (Buckets::new(SPAN), Instant::now());
        let known = u32::try_from(ADDRESSES).unwrap();
        assert!((0..known).all(|n| buckets.take(address(n), 2, now)));
        assert!(!buckets.take(address(known), 2, now));
        assert!(buckets.take(address(0), 2, now), "those remembered go on");
        assert!(buckets.take(address(known), 2, now + SPAN), "the empty ones are forgotten");
        assert_eq!(buckets.lock().len(), 1);
    }
}
