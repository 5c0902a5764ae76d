//! What came before: takes the hash of a proof, whose it is and how long it is good, says whether it is new, and remembers it for that
//! long. Bounded, in all and for each key, and never forgetful: what does not fit is not taken (security.md 8). In shards, so that requests
//! of different callers seldom wait for one another; which shard is ours to know, so that nobody makes proofs that crowd in one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use postern_base::sync::lock;

/// More than there are workers, so that two rarely meet.
const SHARDS: usize = 64;
/// How often a shard throws out what is over, in seconds: a small part of how long entries live, so that few are dead.
const SWEEP: u64 = 10;

pub(super) struct Replay {
    /// Keyed at random: nobody outside knows what it makes of anything.
    keyed: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Entries in each.
    room: usize,
    owners: Owners,
}

#[derive(Default)]
struct Shard {
    /// The key is 128 bits of a hash: nobody finds two alike.
    seen: HashMap<u128, Proof>,
    swept: u64,
}

struct Proof {
    /// Until when it is good, in seconds since the epoch.
    until: u64,
    owner: u64,
}

/// How many entries each key has that has any.
struct Owners {
    shards: Box<[Mutex<HashMap<u64, usize>>]>,
    /// The most.
    share: usize,
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
    /// For so many entries in all, and so many of one key.
    pub(super) fn new(capacity: usize, share: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let owners = Owners { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), share };
        Self { keyed: RandomState::new(), shards, room: capacity.div_ceil(SHARDS), owners }
    }

    /// Remembers what has this hash of at least 16 bytes, and is of this key, until `until`; both times are since the epoch.
    pub(super) fn insert(&self, owner: &[u8; 32], hash: &[u8], until: Duration, now: Duration) -> Seen {
        let Some(key) = hash.first_chunk().map(|key| u128::from_be_bytes(*key)) else { return Seen::Full };
        let owner = self.keyed.hash_one(owner);
        let mut shard = self.shard(key);
        let now = now.as_secs();
        // At most once a second, also while full.
        if now >= shard.swept + SWEEP || (shard.seen.len() >= self.room && now > shard.swept) {
            shard.sweep(now, &self.owners);
        }
        if shard.seen.contains_key(&key) {
            return Seen::Again;
        }
        if shard.seen.len() >= self.room || !self.owners.take(owner) {
            return Seen::Full;
        }
        shard.seen.insert(key, Proof { until: until.as_secs(), owner });
        Seen::New
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, Shard> {
        shard(&self.shards, self.keyed.hash_one(key))
    }
}

/// The one of these that a hash leads to. A panic in here leaves a map that is still whole.
fn shard<T>(shards: &[Mutex<T>], hash: u64) -> MutexGuard<'_, T> {
    let at = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
    lock(&shards[at])
}

impl Shard {
    fn sweep(&mut self, now: u64, owners: &Owners) {
        self.swept = now;
        self.seen.retain(|_, proof| {
            // In the second in which it ends it may still be sent.
            let is_good = proof.until >= now;
            if !is_good {
                owners.give_back(proof.owner);
            }
            is_good
        });
        shrink(&mut self.seen);
    }
}

impl Owners {
    /// Room for one more, if this one has any left. Taken while a shard of entries is held, never the other way round.
    fn take(&self, owner: u64) -> bool {
        let mut held = shard(&self.shards, owner);
        let held = held.entry(owner).or_default();
        let may = *held < self.share;
        *held += usize::from(may);
        may
    }

    fn give_back(&self, owner: u64) {
        let mut all = shard(&self.shards, owner);
        if let Entry::Occupied(mut held) = all.entry(owner) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
                shrink(&mut all);
            }
        }
    }
}

/// The memory of a flood is given back once it is over.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: [u8; 32] = [1; 32];
    const BOB: [u8; 32] = [2; 32];

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// All begin alike.
    fn hash(n: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[8..16].copy_from_slice(&n.to_be_bytes());
        hash
    }

    fn key(hash: [u8; 32]) -> u128 {
        u128::from_be_bytes(*hash.first_chunk().unwrap())
    }

    /// Hashes that lead to the same shard as the first of them all, or to others.
    fn of_shard(replay: &Replay, is_same: bool) -> Vec<[u8; 32]> {
        let at = |n| replay.keyed.hash_one(key(hash(n))) % SHARDS as u64;
        (0..5000).filter(|n| (at(*n) == at(0)) == is_same).map(hash).collect()
    }

    #[test]
    fn what_came_is_known_for_its_whole_window_and_no_longer() {
        let replay = Replay::new(1024, 1024);
        let of = of_shard(&replay, true);
        assert_eq!(replay.insert(&ADA, &of[1], at(160), at(100)), Seen::New);
        for now in [100, 101, 130, 159, 160] {
            assert_eq!(replay.insert(&ADA, &of[1], at(160), at(now)), Seen::Again, "{now}");
        }
        assert_eq!(replay.insert(&ADA, &of[2], at(160), at(100)), Seen::New);
        // A clock that goes back makes nothing new.
        assert_eq!(replay.insert(&ADA, &of[2], at(160), at(50)), Seen::Again);
        assert_eq!(replay.insert(&ADA, &of[1], at(230), at(171)), Seen::New, "over, and swept");
    }

    #[test]
    fn a_full_shard_takes_no_more_and_forgets_nothing() {
        let replay = Replay::new(SHARDS * 4, 1024);
        let of = of_shard(&replay, true);
        for (proof, until) in of.iter().zip(160..164) {
            assert_eq!(replay.insert(&ADA, proof, at(until), at(100)), Seen::New);
        }
        for now in 100..=160 {
            assert_eq!(replay.insert(&ADA, &of[9], at(220), at(now)), Seen::Full, "{now}");
            assert_eq!(replay.insert(&ADA, &of[0], at(160), at(now)), Seen::Again, "{now}");
        }
        let elsewhere = of_shard(&replay, false)[0];
        assert_eq!(replay.insert(&ADA, &elsewhere, at(220), at(100)), Seen::New, "other shards have room");
        assert_eq!(replay.insert(&ADA, &of[9], at(220), at(161)), Seen::New, "as soon as one is over");
        assert_eq!(replay.insert(&ADA, &of[10], at(220), at(161)), Seen::Full);
        assert_eq!(replay.insert(&ADA, &of[1], at(161), at(161)), Seen::Again);
    }

    #[test]
    fn nobody_chooses_the_shard() {
        // Hashes that begin alike are cheap to find: they crowd nowhere.
        let replay = Replay::new(SHARDS * 100, 10_000);
        assert!((0..2000).all(|n| replay.insert(&ADA, &hash(n), at(160), at(100)) == Seen::New));
    }

    #[test]
    fn one_key_fills_its_share_and_no_more() {
        let replay = Replay::new(SHARDS * 1000, 50);
        let taken = (0..200).filter(|n| replay.insert(&ADA, &hash(*n), at(160), at(100)) == Seen::New);
        assert_eq!(taken.count(), 50);
        assert_eq!(replay.insert(&ADA, &hash(0), at(160), at(100)), Seen::Again);
        assert_eq!(replay.insert(&BOB, &hash(1000), at(160), at(100)), Seen::New, "others have theirs");
        // Each shard gives back what is over when something comes to it.
        let again = (2000..4000).filter(|n| replay.insert(&ADA, &hash(*n), at(300), at(200)) == Seen::New);
        assert_eq!(again.count(), 50);
        assert_eq!(replay.owners.shards.iter().map(|all| all.lock().unwrap().len()).sum::<usize>(), 1);
    }

    #[test]
    fn many_threads_get_one_yes_each() {
        let replay = Replay::new(100_000, 100_000);
        let news = |_: usize| {
            (0..2000u64)
                .filter(|n| {
                    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &n.to_be_bytes());
                    replay.insert(&ADA, hash.as_ref(), at(160), at(100)) == Seen::New
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
        let replay = Replay::new(SHARDS * 10_000, 10);
        for n in 0..100_000_u64 {
            let mut owner = [0; 32];
            owner[..8].copy_from_slice(&n.to_be_bytes());
            replay.insert(&owner, &hash(n), at(160), at(100));
        }
        for n in 0..5000 {
            replay.insert(&ADA, &hash(n), at(300), at(200));
        }
        let proofs: usize = replay.shards.iter().map(|shard| shard.lock().unwrap().seen.capacity()).sum();
        let owners: usize = replay.owners.shards.iter().map(|all| all.lock().unwrap().capacity()).sum();
        assert!(proofs < 5000 && owners < 5000, "{proofs} {owners}");
    }
}
