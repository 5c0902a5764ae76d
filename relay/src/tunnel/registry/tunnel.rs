//! One live tunnel as requests see it: whose it is, what it offers, whether it takes requests, and how many run on it. Every question of
//! the hot path is one atomic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_gate::policy::ServiceKind;
use postern_wire::control::RelayMessage;
use postern_wire::link::Link;
use serde::{Serialize, Serializer};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::enroll::Grounds;
use crate::settings::Settings;
use crate::workers::WorkerId;

/// A service that an agent offers, healthy; audit lines name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub name: ServiceName,
    pub kind: ServiceKind,
}

impl Offer {
    /// Whether relay.toml gives it to this agent, as this kind.
    pub fn is_assigned(&self, settings: &Settings, agent: &AgentName) -> bool {
        let service = settings.services.get(&self.name);
        service.is_some_and(|service| service.kind == self.kind && service.agents.contains(agent))
    }
}

impl Serialize for Offer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.name.serialize(serializer)
    }
}

/// One agent's tunnel as requests see it.
#[derive(Debug)]
pub struct Tunnel {
    id: u64,
    pub agent: AgentName,
    pub instance: InstanceId,
    pub link: Link,
    pub worker: WorkerId,
    pub since: SystemTime,
    /// On what the agent was let in.
    pub grounds: Grounds,
    /// The protocol's minor version that the agent speaks.
    minor: u16,
    /// What other rooms have to say to the agent; boxed, since the queue of an idle tunnel has room for 32 of them.
    words: mpsc::Sender<Box<RelayMessage>>,
    /// What the agent offers and its invite allows; the configuration in force has the last word.
    offers: ArcSwap<Vec<Offer>>,
    /// [`NEW`], [`USABLE`], [`LATE`] or [`RETIRED`].
    state: AtomicU8,
    /// Fires when the agent was removed.
    pub cut: CancellationToken,
    in_flight: AtomicUsize,
    /// Told when the last request ends on a retired tunnel.
    emptied: Notify,
}

/// A tunnel before it is registered.
#[derive(Debug)]
pub struct NewTunnel {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub link: Link,
    pub worker: WorkerId,
    pub since: SystemTime,
    pub grounds: Grounds,
    pub offers: Vec<Offer>,
    pub minor: u16,
    pub words: mpsc::Sender<Box<RelayMessage>>,
}

/// How long the agent may be behind with what was said before.
const SAY: Duration = Duration::from_secs(2);

/// Welcomed, but not yet proved to work both ways.
const NEW: u8 = 0;
const USABLE: u8 = 1;
/// The agent said goodbye or is gone: never usable again.
const RETIRED: u8 = 2;
/// Usable, but its heartbeat is late: it carries requests only where no other can.
const LATE: u8 = 3;

impl Tunnel {
    pub(super) fn new(id: u64, new: NewTunnel) -> Self {
        let NewTunnel { agent, instance, link, worker, since, grounds, offers, minor, words } = new;
        Self {
            id,
            agent,
            instance,
            link,
            worker,
            since,
            grounds,
            minor,
            words,
            offers: ArcSwap::from_pointee(offers),
            state: AtomicU8::new(NEW),
            cut: CancellationToken::new(),
            in_flight: AtomicUsize::new(0),
            emptied: Notify::new(),
        }
    }

    pub(super) fn offers(&self) -> Arc<Vec<Offer>> {
        self.offers.load_full()
    }

    pub(super) fn offer(&self, services: Vec<Offer>) {
        self.offers.store(Arc::new(services));
    }

    /// Says a message on the control stream, behind what is said there already. False where the agent does not know such messages, is
    /// gone, or is too far behind.
    pub async fn say(&self, message: RelayMessage) -> bool {
        self.minor >= message.since_minor() && self.words.send_timeout(Box::new(message), SAY).await.is_ok()
    }

    /// The same without waiting: for what comes again soon.
    pub fn try_say(&self, message: RelayMessage) -> bool {
        self.minor >= message.since_minor() && self.words.try_send(Box::new(message)).is_ok()
    }

    /// A heartbeat came after the welcome: the tunnel works both ways. Says whether that is news.
    pub fn proved(&self) -> bool {
        // They fail where the tunnel is usable already or retired for good; both are right as they are.
        let _ = self.state.compare_exchange(LATE, USABLE, Ordering::AcqRel, Ordering::Relaxed);
        self.state.compare_exchange(NEW, USABLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A heartbeat is overdue, until the next one comes.
    pub fn late(&self) {
        let _ = self.state.compare_exchange(USABLE, LATE, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Takes no more requests; those under way finish.
    pub fn retire(&self) {
        self.state.store(RETIRED, Ordering::SeqCst);
    }

    pub fn is_retired(&self) -> bool {
        self.state.load(Ordering::SeqCst) == RETIRED
    }

    /// Resolves once nothing runs on a retired tunnel: whatever was answered has arrived here to its last byte.
    pub async fn emptied(&self) {
        while self.in_flight.load(Ordering::SeqCst) > 0 {
            self.emptied.notified().await;
        }
    }

    pub fn is_usable(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        matches!(state, USABLE | LATE)
    }

    /// The agent was removed: no more requests, and those under way end.
    pub fn sever(&self) {
        self.cut.cancel();
        self.retire();
    }

    /// Whether there is no reason to prefer another one.
    pub(super) fn is_prompt(&self) -> bool {
        self.state.load(Ordering::Acquire) == USABLE
    }

    /// Tells it from all others of this relay's life.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Counts a request on this tunnel until the guard is dropped.
    pub fn occupy(self: &Arc<Self>) -> Occupied {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Occupied(self.clone())
    }

    /// Requests and streams on this tunnel.
    pub(super) fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// A request's place on a tunnel.
#[derive(Debug)]
pub struct Occupied(Arc<Tunnel>);

impl Occupied {
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.0
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        // In one order with the retiring, so that one of the two sees the other.
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.is_retired() {
            self.0.emptied.notify_one();
        }
    }
}
