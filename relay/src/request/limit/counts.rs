//! What callers used of rules' limits: takes a limit and whose it is, counts one request or only looks; refuses what is over the limit,
//! and everybody new where more callers are counted than there is memory for; addresses are forgotten instead. Counts belong to the relay, not to a configuration, so
//! they outlive a reload as long as the rule says the same. Time comes in as an argument.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use postern_base::generations::Generations;
use postern_base::sync::lock;
use postern_gate::policy::{LimitKind, Per, Rate};
use smallvec::SmallVec;

const SHARDS: usize = 64;
/// Counts in each shard: some 260,000 in all, which take at most 20 MiB. What is forgotten would be given twice, so nothing is.
const PER_SHARD: usize = 4096;
/// Counts of addresses in each shard beside them, twice: some 130,000 in all, which take at most 10 MiB. Of IPv6 anybody can own more than any
/// table holds, and has as many times what a rule gives to one. So a full table keeps nobody out: who was not there for the longest is forgotten.
const ADDRESSES: usize = 1024;

/// The counts of all limits.
#[derive(Debug)]
pub struct Counts {
    /// Two, so that no two callers meet, and unknown to them.
    hashing: [RandomState; 2],
    shards: Vec<Mutex<Shard>>,
    origin: Instant,
}

#[derive(Debug)]
struct Shard {
    /// Of users, clients and services.
    kept: HashMap<[u64; 2], Count>,
    addresses: Generations<[u64; 2], Count>,
}

impl Shard {
    fn new() -> Self {
        Self { kept: HashMap::new(), addresses: Generations::new(ADDRESSES) }
    }

    fn get(&self, key: &[u64; 2]) -> Option<Count> {
        self.kept.get(key).or_else(|| self.addresses.get(key)).copied()
    }

    fn make_room(&mut self, per: Per, key: &[u64; 2], now: Duration) -> Result<(), CountsFull> {
        if per != Per::Ip && self.kept.len() >= PER_SHARD && !self.kept.contains_key(key) {
            self.kept.retain(|_, count| now < count.until);
            if self.kept.len() >= PER_SHARD {
                return Err(CountsFull);
            }
        }
        Ok(())
    }

    fn put(&mut self, per: Per, key: [u64; 2], count: Count) {
        if per == Per::Ip {
            self.addresses.put(key, count);
        } else {
            self.kept.insert(key, count);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    /// Of a rate: when it will be whole again, in nanoseconds after the origin. Of a quota: how much of it was used.
    state: u64,
    /// After this it is as good as new.
    until: Duration,
}

/// How one limit stands for one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub kind: LimitKind,
    pub rate: Rate,
    pub left: u32,
    /// Until all of it is there again.
    pub reset: Duration,
    /// Until there is room for one more; none where there is.
    pub wait: Option<Duration>,
}

/// How a rule's limits stand: no rule has more than two, so this is no allocation.
pub type Standings = SmallVec<[Standing; 2]>;

/// There is no memory for another count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more callers are counted than there is memory for")]
pub struct CountsFull;

/// Whether a request is counted, or only what would come of it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Take,
    Look,
}

impl Counts {
    pub fn new(origin: Instant) -> Self {
        let hashing = [RandomState::new(), RandomState::new()];
        Self { hashing, shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect(), origin }
    }

    /// One request at all of these limits, each with whose it is. Where one of them has no room, nothing is taken of any, and its `wait`
    /// says for how long.
    pub fn ask<W: Hash>(
        &self,
        limits: impl Iterator<Item = (LimitKind, Rate, W)>,
        now: Instant,
        mode: Mode,
    ) -> Result<Standings, CountsFull> {
        let now = now.saturating_duration_since(self.origin);
        let mut asked: SmallVec<[_; 2]> = SmallVec::new();
        let mut full = None;
        for (kind, rate, whose) in limits {
            let key = self.hashing.each_ref().map(|hashing| hashing.hash_one(&whose));
            match self.one((kind, rate), key, now, mode) {
                Ok(standing) => asked.push((key, standing)),
                Err(error) => full = Some(error),
            }
        }
        let refused = full.is_some() || asked.iter().any(|(_, standing)| standing.wait.is_some());
        if refused && mode == Mode::Take {
            for (key, standing) in asked.iter_mut().filter(|(_, standing)| standing.wait.is_none()) {
                self.give_back(*key, standing);
            }
        }
        full.map_or_else(|| Ok(asked.into_iter().map(|(_, standing)| standing).collect()), Err)
    }

    fn one(
        &self,
        (kind, rate): (LimitKind, Rate),
        key: [u64; 2],
        now: Duration,
        mode: Mode,
    ) -> Result<Standing, CountsFull> {
        let mut shard = self.shard(key);
        let known = shard.get(&key).filter(|count| now < count.until);
        if mode == Mode::Take {
            shard.make_room(rate.per, &key, now)?;
        }
        let (mut standing, after) = match kind {
            LimitKind::Rate => trickle(rate, known, now),
            LimitKind::Quota => window(rate, known, now),
        };
        match (mode, after) {
            // Where nothing was granted, what is known is put again: whoever goes on asking is not forgotten.
            (Mode::Take, after) => {
                if let Some(count) = after.or(known) {
                    shard.put(rate.per, key, count);
                }
            }
            (Mode::Look, Some(_)) => standing.left = standing.left.saturating_add(1),
            (Mode::Look, None) => {}
        }
        Ok(standing)
    }

    fn give_back(&self, key: [u64; 2], standing: &mut Standing) {
        standing.left = standing.left.saturating_add(1);
        let mut shard = self.shard(key);
        if let Some(count) = shard.get(&key) {
            let one = if standing.kind == LimitKind::Rate { step(standing.rate) } else { 1 };
            let count = Count { state: count.state.saturating_sub(one), ..count };
            shard.put(standing.rate.per, key, count);
        }
    }

    fn shard(&self, key: [u64; 2]) -> std::sync::MutexGuard<'_, Shard> {
        let at = usize::try_from(key[0] % SHARDS as u64).unwrap_or(0);
        // A count is valid at every point where a panic could have left it.
        lock(&self.shards[at])
    }
}

/// A window that begins with its first use.
fn window(rate: Rate, known: Option<Count>, now: Duration) -> (Standing, Option<Count>) {
    let count = known.unwrap_or(Count { state: 0, until: now + rate.window() });
    let room = u64::from(rate.count.get()).saturating_sub(count.state);
    let reset = count.until.saturating_sub(now);
    let left = u32::try_from(room.saturating_sub(1)).unwrap_or(u32::MAX);
    let wait = (room == 0).then_some(reset);
    let after = (room > 0).then_some(Count { state: count.state + 1, ..count });
    (Standing { kind: LimitKind::Quota, rate, left, reset, wait }, after)
}

/// All at once, and then one each time that a part of the window has passed (GCRA).
fn trickle(rate: Rate, known: Option<Count>, now: Duration) -> (Standing, Option<Count>) {
    let began = nanos(now);
    // The limiter begins its life with this request: what it knows of others is relative to now.
    let slot = Slot(Cell::new(known.map(|count| count.state.saturating_sub(began))));
    // A step is never nothing, so there is always one.
    let each = Quota::with_period(Duration::from_nanos(step(rate)));
    let quota = each.unwrap_or(Quota::per_second(rate.count)).allow_burst(rate.count);
    let limiter = RateLimiter::<_, _, _, StateInformationMiddleware>::new(quota, slot, Start);
    let (left, wait) = match limiter.check() {
        Ok(snapshot) => (snapshot.remaining_burst_capacity(), None),
        Err(until) => (0, Some(until.wait_time_from(Duration::ZERO))),
    };
    let whole = limiter.into_state_store().0.get().unwrap_or(0);
    let reset = Duration::from_nanos(whole);
    let after = Count { state: began.saturating_add(whole), until: now + reset };
    (Standing { kind: LimitKind::Rate, rate, left, reset, wait }, wait.is_none().then_some(after))
}

/// After how long one request of a rate is there again, in nanoseconds.
fn step(rate: Rate) -> u64 {
    nanos(rate.window() / rate.count.get()).max(1)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One rate's state while it is looked at.
struct Slot(Cell<Option<u64>>);

impl StateStore for Slot {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &Self::Key, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, next) = f(self.0.get().map(Nanos::new))?;
        self.0.set(Some(next.as_u64()));
        Ok(outcome)
    }
}

/// The clock of a limiter that lives for one request.
struct Start;

impl Clock for Start {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests;
