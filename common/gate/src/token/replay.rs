//! What came before: takes the hash of a proof and how long it is good, says whether it is new, and remembers it for that long. Bounded
//! and never forgetful: what does not fit is not taken (security.md 8). In shards, so that requests of different callers seldom wait for
//! one another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// More than there are workers, so that two rarely meet.
const SHARDS: usize = 64;
/// How often a shard throws out what is over, in seconds: a small part of how long entries live, so that few are dead.
const SWEEP: u64 = 10;

pub(super) struct Replay {
    shards: Box<[Mutex<Shard>]>,
    /// Entries in each.
    room: usize,
}

#[derive(Default)]
struct Shard {
    /// Until when each is good, in seconds since the epoch. The key is 128 bits of a hash: nobody finds two alike.
    seen: HashMap<u128, u64>,
    swept: u64,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    Again,
    /// It was not remembered, and must not be taken.
    Full,
}

impl Replay {
    pub(super) fn new(capacity: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, room: capacity.div_ceil(SHARDS) }
    }

    /// Remembers what has this hash of at least 16 bytes until `until`; both times are since the epoch.
    pub(super) fn insert(&self, hash: &[u8], until: Duration, now: Duration) -> Seen {
        let Some(key) = hash.first_chunk().map(|key| u128::from_be_bytes(*key)) else { return Seen::Full };
        let shard = usize::from(hash[0]) % SHARDS;
        let Some(shard) = self.shards.get(shard) else { return Seen::Full };
        // A panic in here leaves a map that is still whole.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.as_secs();
        // At most once a second, also while full.
        if now >= shard.swept + SWEEP || (shard.seen.len() >= self.room && now > shard.swept) {
            shard.sweep(now);
        }
        if shard.seen.contains_key(&key) {
            return Seen::Again;
        }
        if shard.seen.len() >= self.room {
            return Seen::Full;
        }
        shard.seen.insert(key, until.as_secs());
        Seen::New
    }
}

impl Shard {
    fn sweep(&mut self, now: u64) {
        self.swept = now;
        // In the second in which it ends it may still be sent.
        self.seen.retain(|_, until| *until >= now);
        // The memory of a flood is given back once it is over.
        if self.seen.len() < self.seen.capacity() / 4 {
            self.seen.shrink_to(self.seen.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Of one shard.
    fn hash(n: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[8..16].copy_from_slice(&n.to_be_bytes());
        hash
    }

    #[test]
    fn what_came_is_known_for_its_whole_window_and_no_longer() {
        let replay = Replay::new(1024);
        assert_eq!(replay.insert(&hash(1), at(160), at(100)), Seen::New);
        for now in [100, 101, 130, 159, 160] {
            assert_eq!(replay.insert(&hash(1), at(160), at(now)), Seen::Again, "{now}");
        }
        assert_eq!(replay.insert(&hash(2), at(160), at(100)), Seen::New);
        // A clock that goes back makes nothing new.
        assert_eq!(replay.insert(&hash(2), at(160), at(50)), Seen::Again);
        assert_eq!(replay.insert(&hash(1), at(230), at(171)), Seen::New, "over, and swept");
    }

    #[test]
    fn a_full_shard_takes_no_more_and_forgets_nothing() {
        let replay = Replay::new(SHARDS * 4);
        for n in 0..4 {
            assert_eq!(replay.insert(&hash(n), at(160 + n), at(100)), Seen::New);
        }
        for now in 100..=160 {
            assert_eq!(replay.insert(&hash(9), at(220), at(now)), Seen::Full, "{now}");
            assert_eq!(replay.insert(&hash(0), at(160), at(now)), Seen::Again, "{now}");
        }
        let mut elsewhere = hash(9);
        elsewhere[0] = 1;
        assert_eq!(replay.insert(&elsewhere, at(220), at(100)), Seen::New, "other shards have room");
        assert_eq!(replay.insert(&hash(9), at(220), at(161)), Seen::New, "as soon as one is over");
        assert_eq!(replay.insert(&hash(10), at(220), at(161)), Seen::Full);
        assert_eq!(replay.insert(&hash(1), at(161), at(161)), Seen::Again);
    }

    #[test]
    fn many_threads_get_one_yes_each() {
        let replay = Replay::new(100_000);
        let news = |_: usize| {
            (0..2000u64)
                .filter(|n| {
                    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &n.to_be_bytes());
                    replay.insert(hash.as_ref(), at(160), at(100)) == Seen::New
                })
                .count()
        };
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || news(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(total, 2000);
        let held: usize = replay.shards.iter().map(|shard| shard.lock().unwrap().seen.len()).sum();
        assert_eq!(held, 2000);
    }

    #[test]
    fn the_memory_of_a_flood_is_given_back() {
        let replay = Replay::new(SHARDS * 10_000);
        for n in 0..10_000 {
            replay.insert(&hash(n), at(160), at(100));
        }
        replay.insert(&hash(1), at(300), at(200));
        assert!(replay.shards[0].lock().unwrap().seen.capacity() < 1000);
    }
}
