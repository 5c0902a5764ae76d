//! Leaky buckets per address: each event fills one, and time empties it. Takes an address and now; says whether there is room. Bounded:
//! where more addresses come than it remembers, those that nothing came from for the longest are forgotten, and nobody is refused for it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postern_base::generations::Generations;
use postern_base::network::network;
use postern_base::sync::lock;

/// Addresses of one generation; two are remembered. Whoever has more than this can have any of them forgotten, and wins what the forgotten
/// one may do once more: less than all those addresses may do anyway. To refuse newcomers instead would let him shut everybody out.
const GENERATION: usize = 8 * 1024;

/// One kind of event. A bucket holds as many as its limit says and is empty again when `span` has passed.
#[derive(Debug)]
pub struct Buckets {
    span: Duration,
    /// Whether anything ever happened, so that the usual question, asked when nobody misbehaves, takes no lock.
    is_used: AtomicBool,
    /// When each bucket will be empty.
    known: Mutex<Known>,
}

type Known = Generations<IpAddr, Instant>;

/// How much of a bucket is full at `now`, in time that it takes to empty.
fn level(known: &Known, key: &IpAddr, now: Instant) -> Duration {
    known.get(key).map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
}

impl Buckets {
    pub fn new(span: Duration) -> Self {
        Self { span, is_used: AtomicBool::new(false), known: Mutex::new(Generations::new(GENERATION)) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each entry is whole by itself.
        lock(&self.known)
    }

    /// Whether one more event fits.
    pub fn has_room(&self, address: IpAddr, limit: u32, now: Instant) -> bool {
        if !self.is_used.load(Ordering::Relaxed) {
            return limit > 0;
        }
        let level = level(&self.lock(), &network(address), now);
        level + self.span / limit.max(1) <= self.span
    }

    /// Puts one event in if it fits.
    pub fn take(&self, address: IpAddr, limit: u32, now: Instant) -> bool {
        let key = network(address);
        let mut known = self.lock();
        let level = level(&known, &key, now) + self.span / limit.max(1);
        if level > self.span {
            return false;
        }
        known.put(key, now + level);
        self.is_used.store(true, Ordering::Relaxed);
        true
    }

    /// Takes one event out again.
    pub fn give_back(&self, address: IpAddr, limit: u32) {
        let (key, mut known) = (network(address), self.lock());
        if let Some(less) = known.get(&key).and_then(|at| at.checked_sub(self.span / limit.max(1))) {
            known.put(key, less);
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
    fn nobody_is_refused_for_the_many_of_others() {
        let (buckets, now) = (Buckets::new(SPAN), Instant::now());
        let (many, busy) = (u32::try_from(GENERATION).unwrap() * 5, address(u32::MAX));
        for n in 0..many {
            assert!(buckets.take(address(n), 1, now), "newcomer {n}");
            if n % 1000 == 0 {
                let _ = buckets.take(busy, 100, now);
            }
        }
        let left = (0..100).filter(|_| buckets.take(busy, 100, now)).count();
        assert_eq!(left, 100 - 41, "who goes on is not forgotten");
        assert!(!buckets.has_room(address(many - 1), 1, now), "nor the latest");
    }

    #[test]
    fn a_host_with_a_whole_network_is_one() {
        let (buckets, now) = (Buckets::new(SPAN), Instant::now());
        let of = |text: &str| buckets.take(text.parse().unwrap(), 1, now);
        assert!(of("2001:db8::1") && !of("2001:db8::2:1") && of("2001:db8:0:1::1"));
        assert!(of("192.0.2.1") && !of("::ffff:192.0.2.1"));
    }
}
