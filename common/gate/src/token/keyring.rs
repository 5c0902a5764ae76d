//! Takes requests for one issuer's keys from any thread; gives the keys, old ones while the issuer is silent; keeps fetches few.
//!
//! One fetch runs at a time, in a task of its own that no caller's disconnection ends; callers wait for it, with a deadline. After a
//! fetch that succeeded the next may begin `min_ttl` (5 s) later, however many unknown keys are asked for; after one that failed, 0.2 s
//! later, doubling to 5 s. Keys older than `max_ttl` (10 minutes) are fetched again while they serve on; when the issuer stays silent
//! they serve until they are as old as `stale` allows, then no more. A file is looked at in the same way, but every second.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use postern_base::backoff::Backoff;
use postern_base::defaults::HTTP_CLIENT_TIMEOUT;
use postern_base::sync::lock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::discovery::{FetchError, fetch};
use super::jws::Jws;
use super::key::Key;
use super::settings::KeySource;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Up to three requests follow each other (two documents, the keys), each with a limit of its own; together they get two such limits.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// A fetch that has not ended by then never will: its runtime no longer runs.
const LOST: Duration = Duration::from_secs(15);
/// Signatures tried for one token that does not name its key.
const MAX_TRIES: usize = 8;

/// The keys of one successful fetch, or of several that brought the same.
pub(super) struct KeySet {
    /// Grows whenever the keys change: what was verified with other keys is verified again.
    pub(super) generation: u64,
    fetched: SystemTime,
    keys: Arc<[Key]>,
}

/// What a set of keys says of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// The key that the token names did not make it.
    Forged,
    /// No key that the token can mean is here.
    NoKey,
}

impl KeySet {
    pub(super) fn verify(&self, jws: &Jws<'_>) -> Verdict {
        let of_kind = || self.keys.iter().filter(|key| key.algorithm() == jws.algorithm);
        let named = || of_kind().filter(|key| key.kid() == jws.kid.as_deref() && jws.kid.is_some());
        // Some issuers publish keys without names, and some leave the name out of their tokens.
        let unnamed = || of_kind().filter(|key| key.kid().is_none() || jws.kid.is_none());
        if named().chain(unnamed()).take(MAX_TRIES).any(|key| key.verifies(jws.signed, jws.signature)) {
            Verdict::Good
        } else if named().next().is_some() {
            Verdict::Forged
        } else {
            Verdict::NoKey
        }
    }
}

/// One issuer's keys and how they are fetched.
pub(super) struct Keyring {
    source: KeySource,
    current: ArcSwapOption<KeySet>,
    fetching: Mutex<Fetching>,
    /// Owns the fetch under way. Apart from its state: a runtime that is shutting down drops the task, and so ends the fetch, at once.
    task: Mutex<JoinSet<()>>,
    /// Counts ended fetches.
    ended: watch::Sender<u64>,
}

struct Fetching {
    running_since: Option<SystemTime>,
    not_before: Option<SystemTime>,
    backoff: Backoff,
    /// Why the last fetch failed; none after one that succeeded.
    error: Option<String>,
}

/// What is known of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyHealth {
    pub(super) keys: usize,
    pub(super) fetched: Option<SystemTime>,
    pub(super) usable_until: Option<SystemTime>,
    pub(super) error: Option<String>,
}

impl Keyring {
    pub(super) fn new(source: KeySource) -> Self {
        Self {
            source,
            current: ArcSwapOption::empty(),
            fetching: Mutex::new(Fetching {
                running_since: None,
                not_before: None,
                backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
                error: None,
            }),
            task: Mutex::default(),
            ended: watch::Sender::new(0),
        }
    }

    pub(super) fn source(&self) -> &KeySource {
        &self.source
    }

    /// The generation of the keys that may be used now; has them fetched anew when they grow old.
    pub(super) fn generation(self: &Arc<Self>, now: SystemTime) -> Option<u64> {
        let current = self.current.load();
        let set = current.as_ref().filter(|set| self.is_usable(set, now))?;
        if age(set.fetched, now) > self.source.max_ttl {
            self.start(now);
        }
        Some(set.generation)
    }

    /// The keys that may be used now. Waits for a fetch only when there are none.
    pub(super) async fn keys(self: &Arc<Self>, now: SystemTime) -> Option<Arc<KeySet>> {
        if self.generation(now).is_none() {
            wait(self.start(now)).await;
        }
        self.current.load_full().filter(|set| self.is_usable(set, now))
    }

    /// The keys after a fetch, where one may be made; none when the issuer does not answer.
    pub(super) async fn newest(self: &Arc<Self>, now: SystemTime) -> Option<Arc<KeySet>> {
        wait(self.start(now)).await;
        let silent = {
            let fetching = self.lock();
            fetching.running_since.is_some() || fetching.error.is_some()
        };
        if silent { None } else { self.current.load_full() }
    }

    pub(super) fn health(&self) -> KeyHealth {
        let set = self.current.load_full();
        KeyHealth {
            keys: set.as_ref().map_or(0, |set| set.keys.len()),
            fetched: set.as_ref().map(|set| set.fetched),
            usable_until: set.as_ref().map(|set| set.fetched + self.limit()),
            error: self.lock().error.clone(),
        }
    }

    fn limit(&self) -> Duration {
        self.source.stale.max(self.source.max_ttl)
    }

    fn is_usable(&self, set: &KeySet, now: SystemTime) -> bool {
        age(set.fetched, now) <= self.limit()
    }

    /// Starts a fetch where one may start; gives what tells of the end of the one that runs.
    fn start(self: &Arc<Self>, now: SystemTime) -> Option<watch::Receiver<u64>> {
        let end = {
            let mut fetching = self.lock();
            let end = self.ended.subscribe();
            if fetching.running_since.is_some_and(|since| age(since, now) < LOST) {
                return Some(end);
            }
            // No wait is longer than this, unless the clock was set back.
            let longest = self.source.min_ttl.max(LAST_RETRY).as_nanos();
            let early = |at: SystemTime| (1..=longest).contains(&age(now, at).as_nanos());
            if fetching.not_before.is_some_and(early) {
                return None;
            }
            fetching.running_since = Some(now);
            end
        };
        let flight = Flight { keyring: Arc::clone(self), began: now, clock: Instant::now(), outcome: None };
        let mut task = lock(&self.task);
        while task.try_join_next().is_some() {}
        task.spawn(flight.run());
        Some(end)
    }

    fn end(&self, began: SystemTime, took: Duration, outcome: Result<Vec<Key>, FetchError>) {
        let mut fetching = self.lock();
        if fetching.running_since != Some(began) {
            // Given up as lost; what it brings is older than what came since.
            return;
        }
        let issuer = &self.source.name;
        match outcome {
            Ok(keys) => {
                let before = self.current.load_full();
                let same = before.as_ref().filter(|before| *before.keys == *keys);
                let generation = before.as_ref().map_or(1, |set| set.generation + u64::from(same.is_none()));
                if same.is_none() || fetching.error.is_some() {
                    tracing::info!(%issuer, keys = keys.len(), "fetched the issuer's keys");
                }
                let keys = keys.into();
                self.current.store(Some(Arc::new(KeySet { generation, fetched: began, keys })));
                fetching.not_before = Some(began + self.source.min_ttl);
                fetching.backoff.reset();
                fetching.error = None;
            }
            Err(error) => {
                tracing::warn!(%issuer, %error, "cannot fetch the issuer's keys");
                // In full: that many callers ask at once is prevented here already, so there is nothing to spread.
                fetching.not_before = Some(began + took + fetching.backoff.next(1.0));
                fetching.error = Some(error.to_string());
            }
        }
        fetching.running_since = None;
        self.ended.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Fetching> {
        // Nothing that panics runs under the lock.
        lock(&self.fetching)
    }
}

fn age(at: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

async fn wait(end: Option<watch::Receiver<u64>>) {
    if let Some(mut end) = end {
        // In time or not: what there is by then is looked at.
        let _ = timeout(HTTP_CLIENT_TIMEOUT, end.changed()).await;
    }
}

/// A fetch under way. However it ends, also when its runtime is shut down, the end is told.
struct Flight {
    keyring: Arc<Keyring>,
    began: SystemTime,
    clock: Instant,
    outcome: Option<Result<Vec<Key>, FetchError>>,
}

impl Flight {
    async fn run(mut self) {
        let fetched = timeout(FETCH_LIMIT, fetch(&self.keyring.source)).await;
        self.outcome = Some(fetched.unwrap_or(Err(FetchError::Late)));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Err(FetchError::Cut));
        self.keyring.end(self.began, self.clock.elapsed(), outcome);
    }
}

#[cfg(test)]
mod tests;
