//! The live tunnels: which there are, which services each may carry now, and the choice of one for a request. Reading takes no lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_wire::link::Link;
use tokio_util::sync::CancellationToken;

use crate::relay::Snapshot;
use crate::workers::WorkerId;

/// One agent's tunnel as requests see it.
#[derive(Debug)]
pub struct Tunnel {
    id: u64,
    pub agent: AgentName,
    pub instance: InstanceId,
    pub link: Link,
    pub worker: WorkerId,
    pub since: SystemTime,
    /// What the agent offers and its invite allows; the configuration in force has the last word.
    offers: ArcSwap<Vec<ServiceName>>,
    /// [`NEW`], [`USABLE`] or [`RETIRED`].
    state: AtomicU8,
    /// Fires when the agent was removed.
    pub cut: CancellationToken,
    in_flight: AtomicUsize,
}

/// Welcomed, but not yet proved to work both ways.
const NEW: u8 = 0;
const USABLE: u8 = 1;
/// The agent said goodbye or is gone: never usable again.
const RETIRED: u8 = 2;

impl Tunnel {
    /// A heartbeat came after the welcome: the tunnel works both ways.
    pub fn proved(&self) {
        // Fails where the tunnel is usable already or retired for good; both are right as they are.
        let _ = self.state.compare_exchange(NEW, USABLE, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Takes no more requests; those under way finish.
    pub fn retire(&self) {
        self.state.store(RETIRED, Ordering::Release);
    }

    pub fn is_usable(&self) -> bool {
        self.state.load(Ordering::Acquire) == USABLE && !self.cut.is_cancelled() && !self.link.is_closed()
    }

    /// Counts a request on this tunnel until the guard is dropped.
    pub fn occupy(self: &Arc<Self>) -> Occupied {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Occupied(self.clone())
    }

    pub fn offers(&self) -> Arc<Vec<ServiceName>> {
        self.offers.load_full()
    }
}

/// A request's place on a tunnel.
#[derive(Debug)]
pub struct Occupied(Arc<Tunnel>);

impl Occupied {
    pub fn tunnel(&self) -> &Tunnel {
        &self.0
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A tunnel as operators see it.
#[derive(Debug, Clone)]
pub struct TunnelInfo {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub address: SocketAddr,
    pub since: SystemTime,
    pub usable: bool,
    pub services: Vec<ServiceName>,
}

/// The tunnels that may carry each service.
type Carriers = HashMap<ServiceName, Vec<Arc<Tunnel>>>;

/// All live tunnels.
#[derive(Debug, Default)]
pub struct Registry {
    /// What requests read: rebuilt whenever a tunnel comes, changes or goes.
    by_service: ArcSwap<Carriers>,
    tunnels: Mutex<Vec<Arc<Tunnel>>>,
    /// Since when a service that had a tunnel has none, in seconds since the epoch.
    down: Mutex<HashMap<ServiceName, u64>>,
    next: AtomicU64,
}

/// Keeps a tunnel registered; dropping it takes the tunnel out, however it ended.
#[derive(Debug)]
pub struct Registered<'a> {
    registry: &'a Registry,
    current: &'a ArcSwap<Snapshot>,
    tunnel: Arc<Tunnel>,
}

impl Registered<'_> {
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }

    /// The agent changed what it offers.
    pub fn offer(&self, services: Vec<ServiceName>) {
        self.tunnel.offers.store(Arc::new(services));
        self.registry.rebuild(self.current);
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.tunnel.retire();
        self.registry.lock().retain(|tunnel| tunnel.id != self.tunnel.id);
        self.registry.rebuild(self.current);
    }
}

/// A tunnel before it is registered.
#[derive(Debug)]
pub struct NewTunnel {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub link: Link,
    pub worker: WorkerId,
    pub since: SystemTime,
    pub offers: Vec<ServiceName>,
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tunnel>>> {
        // The list is valid at every point where a panic could have left it.
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn register<'a>(&'a self, new: NewTunnel, current: &'a ArcSwap<Snapshot>) -> Registered<'a> {
        let NewTunnel { agent, instance, link, worker, since, offers } = new;
        let tunnel = Arc::new(Tunnel {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            agent,
            instance,
            link,
            worker,
            since,
            offers: ArcSwap::from_pointee(offers),
            state: AtomicU8::new(NEW),
            cut: CancellationToken::new(),
            in_flight: AtomicUsize::new(0),
        });
        self.lock().push(tunnel.clone());
        self.rebuild(current);
        Registered { registry: self, current, tunnel }
    }

    /// Recomputes which tunnel may carry which service; called after every change and every reload.
    pub fn rebuild(&self, current: &ArcSwap<Snapshot>) {
        // The lock is held from reading the configuration to storing what follows from it, so that the last change wins.
        let tunnels = self.lock();
        let settings = current.load().settings.clone();
        let mut carriers = Carriers::new();
        for tunnel in tunnels.iter() {
            for name in tunnel.offers.load().iter() {
                if settings.services.get(name).is_some_and(|service| service.agents.contains(&tunnel.agent)) {
                    carriers.entry(name.clone()).or_default().push(tunnel.clone());
                }
            }
        }
        self.note_down(&self.by_service.load(), &carriers);
        self.by_service.store(Arc::new(carriers));
    }

    fn note_down(&self, before: &Carriers, after: &Carriers) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        for service in before.keys().filter(|service| !after.contains_key(*service)) {
            down.insert(service.clone(), now);
        }
        down.retain(|service, _| !after.contains_key(service));
    }

    /// Since when a service has been without any tunnel; `None` while it has one, or never had.
    pub fn down_since(&self, service: &ServiceName) -> Option<u64> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).get(service).copied()
    }

    /// The usable tunnel for a service with the fewest requests in flight, of this worker where it has one; those in `tried` last failed.
    pub fn pick(&self, service: &ServiceName, worker: WorkerId, tried: &[u64]) -> Option<(u64, Occupied)> {
        let carriers = self.by_service.load();
        let best = carriers
            .get(service)?
            .iter()
            .filter(|tunnel| tunnel.is_usable() && !tried.contains(&tunnel.id))
            .min_by_key(|tunnel| (tunnel.worker != worker, tunnel.in_flight.load(Ordering::Relaxed)))?;
        Some((best.id, best.occupy()))
    }

    /// Whether a request for this service would find a tunnel, and the agents that hold one.
    pub fn agents_of(&self, service: &ServiceName) -> Vec<AgentName> {
        let carriers = self.by_service.load();
        let usable = carriers.get(service).into_iter().flatten().filter(|tunnel| tunnel.is_usable());
        let mut agents: Vec<_> = usable.map(|tunnel| tunnel.agent.clone()).collect();
        agents.sort();
        agents.dedup();
        agents
    }

    /// Whether any of these agents holds a usable tunnel, whatever it offers.
    pub fn has_any_of(&self, agents: &[AgentName]) -> bool {
        self.lock().iter().any(|tunnel| tunnel.is_usable() && agents.contains(&tunnel.agent))
    }

    pub fn tunnels(&self) -> Vec<TunnelInfo> {
        self.lock()
            .iter()
            .map(|tunnel| TunnelInfo {
                agent: tunnel.agent.clone(),
                instance: tunnel.instance.clone(),
                address: tunnel.link.peer_address(),
                since: tunnel.since,
                usable: tunnel.is_usable(),
                services: tunnel.offers.load().to_vec(),
            })
            .collect()
    }

    /// The tunnels of one agent, to be cut.
    pub fn of_agent(&self, agent: &AgentName) -> Vec<Arc<Tunnel>> {
        self.lock().iter().filter(|tunnel| tunnel.agent == *agent).cloned().collect()
    }
}
