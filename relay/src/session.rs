//! What runs and what is locked. Every admitted request enters here with its permit, and leaves when its record ends; a lock, a reload or
//! the end of a token finds it here and cuts it. Takes principals and targets; refuses those that are locked.
//!
//! A request costs two turns of its own worker's table, and where there are no locks one atomic load. An order and a request that cross
//! cannot miss each other: a request enters before it looks at the orders, and an order is in force before it looks at what runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_base::admin::Actor;
use postern_base::clock::seconds;
use postern_base::id::{AgentName, ServiceName};
use postern_base::sync::lock;
use postern_gate::principal::Principal;
use serde_json::{Value, json};
use slab::Slab;
use tokio::task::JoinSet;

use crate::relay::{Relay, Snapshot};
use crate::tunnel::registry::Tunnel;
use crate::workers::WorkerId;

mod again;
mod lease;
mod lock;
mod running;
mod view;

use again::NextQuestion;
pub use lease::LeaseId;
pub use lock::{Lock, LockError, LockId, LockOn, Locks, Wanted};
pub use running::{Cut, New, Running};
pub use view::StreamView;

/// How often tokens and locks are looked at whose time may be over: half of the second within which all must be cut.
const LOOK: Duration = Duration::from_millis(500);

/// Entries of a worker's table that are looked at while it waits.
const TURN: usize = 1000;

/// All that runs, and all locks.
#[derive(Debug)]
pub struct Session {
    /// Whether there are locks at all.
    is_locked: AtomicBool,
    locks: ArcSwap<Locks>,
    /// Held while the locks change, so that what is in force is what was written last.
    changing: Mutex<()>,
    /// One for each worker, so that no two threads meet but when somebody is looked for.
    shards: Vec<Arc<Shard>>,
    next_question: Arc<NextQuestion>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    running: Mutex<Slab<Arc<Running>>>,
    /// The live streams among them.
    leases: Mutex<HashMap<LeaseId, Arc<Running>>>,
    /// The session's.
    next_question: Arc<NextQuestion>,
}

impl Shard {
    /// Those that run of which `pick` says yes, found by some at a time: between two such turns the worker has its own. What enters
    /// meanwhile may be left out.
    fn pick(&self, mut pick: impl FnMut(&Running) -> bool) -> impl Iterator<Item = Arc<Running>> {
        let mut next = 0;
        let turns = std::iter::from_fn(move || {
            if next > 0 {
                std::thread::yield_now();
            }
            let all = lock(&self.running);
            let turn = next..all.capacity().min(next + TURN);
            next = turn.end;
            let picked = |key| all.get(key).filter(|running| pick(running)).cloned();
            (!turn.is_empty()).then(|| turn.filter_map(picked).collect::<Vec<_>>())
        });
        turns.flatten()
    }
}

/// Keeps what runs in the table; dropping it takes it out, however it ended.
#[derive(Debug)]
pub struct Admitted {
    running: Arc<Running>,
    shard: Arc<Shard>,
    key: usize,
}

impl Admitted {
    pub fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// It becomes a live stream, opened with this token: gives its lease.
    pub fn lease(&self, token: &str, now: SystemTime) -> LeaseId {
        let lease = LeaseId::random();
        self.running.lives(lease, token, now);
        lock(&self.shard.leases).insert(lease, self.running.clone());
        self.shard.next_question.is_for(&self.running);
        lease
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.shard.running).try_remove(self.key);
        if let Some(lease) = self.running.lease() {
            lock(&self.shard.leases).remove(lease);
        }
    }
}

impl Session {
    pub fn new(workers: usize, locks: &[Lock], now: SystemTime) -> Self {
        let next_question = Arc::new(NextQuestion::default());
        let shard = |_| Arc::new(Shard { next_question: next_question.clone(), ..Shard::default() });
        let session = Self {
            is_locked: AtomicBool::new(false),
            locks: ArcSwap::default(),
            changing: Mutex::default(),
            shards: (0..workers.max(1)).map(shard).collect(),
            next_question,
        };
        session.enforce(locks, now);
        session
    }

    fn locks(&self) -> Option<arc_swap::Guard<Arc<Locks>>> {
        self.is_locked.load(Ordering::Acquire).then(|| self.locks.load())
    }

    /// Whether this caller is locked.
    pub fn refuses(&self, principal: &Principal) -> Result<(), Cut> {
        let lock = self.locks().and_then(|locks| locks.principal(principal));
        lock.map_or(Ok(()), |lock| Err(Cut::Locked(lock)))
    }

    pub fn refuses_agent(&self, agent: &AgentName) -> Option<Cut> {
        self.locks()?.agent(agent).map(Cut::Withheld)
    }

    pub fn refuses_service(&self, service: &ServiceName) -> Option<Cut> {
        self.locks()?.service(service).map(Cut::Withheld)
    }

    /// Something permitted begins to run. `snapshot` is what permitted it.
    pub fn admit(
        &self,
        relay: &Relay,
        snapshot: &Arc<Snapshot>,
        worker: WorkerId,
        new: New,
    ) -> Result<Admitted, Cut> {
        let running = Arc::new(Running::new(new));
        let shard = self.shards[worker.index() % self.shards.len()].clone();
        let key = lock(&shard.running).insert(running.clone());
        let admitted = Admitted { running, shard, key };
        self.look_again(&admitted.running, relay, snapshot);
        admitted.running.was_cut().map_or(Ok(admitted), Err)
    }

    /// It goes over a tunnel from now on; says whether it may.
    pub fn goes_over(&self, running: &Running, tunnel: &Arc<Tunnel>) -> Result<(), Cut> {
        running.goes_over(tunnel);
        let Some(cut) = self.locks().and_then(|locks| running.locked_by(&locks)) else { return Ok(()) };
        running.cut(cut);
        Err(cut)
    }

    /// Cuts what an order is for that came while this was judged by `snapshot`.
    fn look_again(&self, running: &Running, relay: &Relay, snapshot: &Arc<Snapshot>) {
        if let Some(cut) = self.locks().and_then(|locks| running.locked_by(&locks)) {
            running.cut(cut);
        }
        let current = relay.current().load();
        if !Arc::ptr_eq(&current, snapshot) && running.is_void(&current, snapshot) {
            running.cut(Cut::Reloaded);
        }
    }

    fn by_lease(&self, lease: &str) -> Option<Arc<Running>> {
        let lease = LeaseId::read(lease)?;
        self.shards.iter().find_map(|shard| lock(&shard.leases).get(&lease).cloned())
    }

    /// The live stream of a lease; for its target alone: whose it is must still be judged.
    pub fn service_of(&self, lease: &str) -> Option<ServiceName> {
        self.by_lease(lease).map(|running| running.service.name.clone())
    }

    /// Cuts whatever `why` says; gives how many.
    fn sweep(&self, why: impl Fn(&Running) -> Option<Cut>) -> usize {
        let mut cut = 0;
        // Judged outside the lock, so that the worker goes on meanwhile. What enters meanwhile sees the order itself.
        for running in self.shards.iter().flat_map(|shard| shard.pick(|_| true)) {
            if let Some(why) = why(&running)
                && running.cut(why)
            {
                cut += 1;
            }
        }
        cut
    }

    /// Locks stay as they are until this is dropped: a reload must not take the name away that a new one is for.
    pub fn holding_locks(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// A reload swapped the configuration: what it does not permit is cut, and what the one before proved by other settings of its issuer.
    /// Gives how much that was.
    pub fn after_reload(&self, snapshot: &Snapshot, before: &Snapshot) -> usize {
        self.sweep(|running| running.is_void(snapshot, before).then_some(Cut::Reloaded))
    }

    /// Puts these locks in force, and no others; cuts what they are for.
    fn enforce(&self, locks: &[Lock], now: SystemTime) -> usize {
        let locks = Arc::new(Locks::new(locks.iter(), seconds(now)));
        self.locks.store(locks.clone());
        self.is_locked.store(!locks.is_empty(), Ordering::Release);
        if locks.is_empty() { 0 } else { self.sweep(|running| running.locked_by(&locks)) }
    }

    /// A new lock: on disk and in force, with everything cut that it is for. Gives how much that was. Blocks on the disk.
    pub fn lock(
        &self,
        relay: &Relay,
        wanted: &Wanted,
        ttl: Option<Duration>,
        reason: &str,
        by: u32,
    ) -> Result<(Lock, usize), LockError> {
        let now = SystemTime::now();
        let _one = lock(&self.changing);
        let on = wanted.resolve(&relay.snapshot().settings)?;
        let made = relay.enrollment().lock(on, ttl, reason, by, now)?;
        let cut = self.enforce(&relay.enrollment().locks(now), now);
        let mut detail = made.told();
        detail["cut"] = cut.into();
        relay.audit().event("lock", detail);
        Ok((made, cut))
    }

    /// Puts in force what the database holds, after it changed beside `lock` and `unlock`; gives how much that cut.
    pub fn take_up_locks(&self, relay: &Relay) -> usize {
        let now = SystemTime::now();
        let _one = lock(&self.changing);
        self.enforce(&relay.enrollment().locks(now), now)
    }

    /// Takes a lock away. Blocks on the disk.
    pub fn unlock(&self, relay: &Relay, id: LockId, by: u32) -> Result<Lock, LockError> {
        let now = SystemTime::now();
        let _one = lock(&self.changing);
        let removed = relay.enrollment().unlock(id)?;
        self.enforce(&relay.enrollment().locks(now), now);
        relay.audit().event("unlock", removed.undone(by));
        Ok(removed)
    }

    /// Cuts what outlived its token, and says whether a lock's time is over.
    fn expire(&self, now: SystemTime) -> bool {
        let now = seconds(now);
        for running in self.shards.iter().flat_map(|shard| shard.pick(move |running| running.until() <= now))
        {
            running.cut(Cut::Expired);
        }
        self.locks.load().next_end.is_some_and(|end| end <= now)
    }

    /// Ends locks whose time is over. Blocks on the disk.
    fn end_locks(&self, relay: &Relay, now: SystemTime) -> Result<(), LockError> {
        let _one = lock(&self.changing);
        let ended = relay.enrollment().end_locks(now)?;
        self.enforce(&relay.enrollment().locks(now), now);
        for lock in ended {
            relay
                .audit()
                .event("unlock", json!({ "lock": lock.id, "on": lock.on, "reason": "its time is over" }));
        }
        Ok(())
    }
}

impl Lock {
    /// For the audit log.
    pub fn told(&self) -> Value {
        let Self { id, on, reason, expires, by, .. } = self;
        let mut told = json!({ "lock": id, "on": on, "reason": reason, "expires": expires });
        Actor::of(*by).sign(&mut told);
        told
    }

    /// The same when it is taken away.
    pub fn undone(&self, by: u32) -> Value {
        let mut told = json!({ "lock": self.id, "on": self.on });
        Actor::of(by).sign(&mut told);
        told
    }
}

/// Looks after what is over, and what has to be asked again, until dropped.
pub async fn keep(relay: Arc<Relay>) {
    let mut asking = JoinSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = SystemTime::now();
        again::ask(&relay, &mut asking, now);
        if !relay.session().expire(now) {
            continue;
        }
        let ending = relay.clone();
        let ended = tokio::task::spawn_blocking(move || ending.session().end_locks(&ending, now)).await;
        if let Ok(Err(error)) = ended {
            tracing::error!(%error, "a lock whose time is over stays in force");
        }
    }
}
