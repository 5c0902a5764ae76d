//! The live tunnels: which there are, which services each may carry now, a place for a request at its service, and the choice of a tunnel
//! for it. Reading takes no lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_base::sync::lock;
use postern_gate::principal::Principal;
use postern_wire::link::LinkKind;

use crate::enroll::{Paces, Who};
use crate::relay::Snapshot;
use crate::settings::Service;
use crate::workers::WorkerId;

mod balance;
mod places;
mod tunnel;

pub use places::{Full, ServicePlace};
pub use tunnel::{NewTunnel, Occupied, Offer, Tunnel};

use balance::Carriers;
use places::Shares;

/// Tunnels of one instance beyond which its oldest takes no more requests: agents keep at most 16, and for a moment as many again while they
/// exchange them.
const TUNNELS: usize = 32;
/// Tunnels that one instance may open at once, and then one in so long: all that an agent may keep, eight times in a row. Each one writes two lines
/// to the audit log, and whoever opens and closes them in a loop must not fill it.
const OPENED: (u32, Duration) = (128, Duration::from_secs(1));

/// A tunnel as operators see it.
#[derive(Debug, Clone)]
pub struct TunnelInfo {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub address: SocketAddr,
    pub since: SystemTime,
    pub link: LinkKind,
    /// The round trip, where the transport says it.
    pub round_trip: Option<Duration>,
    pub usable: bool,
    /// Usable, but its heartbeat is late.
    pub late: bool,
    /// Requests and streams on it.
    pub load: usize,
    pub services: Vec<ServiceName>,
}

/// The tunnels that may carry each service.
type ByService = HashMap<ServiceName, Carriers>;

/// All live tunnels.
#[derive(Debug, Default)]
pub struct Registry {
    /// What requests read: rebuilt whenever a tunnel comes, changes or goes.
    by_service: ArcSwap<ByService>,
    shares: Arc<Shares>,
    tunnels: Mutex<Vec<Arc<Tunnel>>>,
    /// Since when a service that had a tunnel has none, in seconds since the epoch.
    down: Mutex<HashMap<ServiceName, u64>>,
    next: AtomicU64,
    paces: Mutex<Paces>,
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
    pub fn offer(&self, services: Vec<Offer>) {
        self.tunnel.offer(services);
        self.registry.rebuild(self.current);
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.tunnel.retire();
        self.registry.lock().retain(|tunnel| tunnel.id() != self.tunnel.id());
        self.registry.rebuild(self.current);
    }
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tunnel>>> {
        // The list is valid at every point where a panic could have left it.
        lock(&self.tunnels)
    }

    /// Whether an instance may open one more tunnel now, or how long it is to wait.
    pub fn may_open(&self, instance: &InstanceId, now: Instant) -> Result<(), Duration> {
        lock(&self.paces).spend(instance, OPENED, now)
    }

    pub fn register<'a>(&'a self, new: NewTunnel, current: &'a ArcSwap<Snapshot>) -> Registered<'a> {
        let tunnel = Arc::new(Tunnel::new(self.next.fetch_add(1, Ordering::Relaxed), new));
        {
            let mut tunnels = self.lock();
            let of_instance =
                || tunnels.iter().filter(|old| old.instance == tunnel.instance && !old.is_retired());
            if of_instance().count() >= TUNNELS {
                of_instance().take(1).for_each(|oldest| oldest.retire());
            }
            tunnels.push(tunnel.clone());
        }
        self.rebuild(current);
        Registered { registry: self, current, tunnel }
    }

    /// Recomputes which tunnel may carry which service; called after every change and every reload.
    pub fn rebuild(&self, current: &ArcSwap<Snapshot>) {
        // The lock is held from reading the configuration to storing what follows from it, so that the last change wins.
        let tunnels = self.lock();
        let settings = current.load().settings.clone();
        let before = self.by_service.load();
        let mut after = ByService::new();
        for tunnel in tunnels.iter() {
            for offer in tunnel.offers().iter().filter(|offer| offer.is_assigned(&settings, &tunnel.agent)) {
                let name = &offer.name;
                let carriers = after.entry(name.clone()).or_insert_with(|| Carriers::after(before.get(name)));
                carriers.push(tunnel);
            }
        }
        self.note_down(&before, &after);
        self.by_service.store(Arc::new(after));
    }

    fn note_down(&self, before: &ByService, after: &ByService) {
        let now = postern_base::clock::seconds(SystemTime::now());
        let mut down = lock(&self.down);
        for service in before.keys().filter(|service| !after.contains_key(*service)) {
            down.insert(service.clone(), now);
        }
        down.retain(|service, _| !after.contains_key(service));
    }

    /// Since when a service has been without any tunnel; `None` while it has one, or never had.
    pub fn down_since(&self, service: &ServiceName) -> Option<u64> {
        lock(&self.down).get(service).copied()
    }

    /// A place at a service for one more request of a caller; `requests` is what the relay serves at once. `None` where no agent has
    /// the service, so that nothing of it is taken either.
    pub fn place(
        &self,
        service: &Service,
        principal: &Principal,
        requests: usize,
    ) -> Result<Option<ServicePlace>, Full> {
        let by_service = self.by_service.load();
        let Some(carriers) = by_service.get(&service.name) else { return Ok(None) };
        let limits = (service.concurrent, places::share(carriers.all().len(), requests));
        let who = (principal.issuer(), principal.subject());
        places::take(&self.shares, &carriers.in_flight, &service.name, who, limits).map(Some)
    }

    /// A usable tunnel for a service that `fits` leaves: one of this worker's, or one that is less busy.
    pub fn pick(
        &self,
        service: &ServiceName,
        worker: WorkerId,
        fits: impl Fn(&Tunnel) -> bool,
    ) -> Option<Occupied> {
        let by_service = self.by_service.load();
        by_service.get(service)?.pick(worker, fits).map(Tunnel::occupy)
    }

    /// Whether a request for this service would find a tunnel, and the agents that hold one.
    pub fn agents_of(&self, service: &ServiceName) -> Vec<AgentName> {
        let by_service = self.by_service.load();
        let carriers = by_service.get(service).map_or(&[][..], Carriers::all);
        let usable = carriers.iter().filter(|tunnel| tunnel.is_usable());
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
                link: tunnel.link.kind(),
                round_trip: tunnel.link.round_trip(),
                usable: tunnel.is_usable(),
                late: tunnel.is_usable() && !tunnel.is_prompt(),
                load: tunnel.load(),
                services: tunnel.offers().iter().map(|offer| offer.name.clone()).collect(),
            })
            .collect()
    }

    /// All that there are.
    pub fn all(&self) -> Vec<Arc<Tunnel>> {
        self.lock().clone()
    }

    /// The tunnels of one agent, or of one of its instances, to be cut.
    pub fn of_agent(&self, who: &Who) -> Vec<Arc<Tunnel>> {
        self.lock().iter().filter(|tunnel| who.covers(&tunnel.agent, &tunnel.instance)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_and_closes_in_a_loop_gets_its_pace_and_restarts_never_meet_it() {
        let (registry, start) = (Registry::default(), Instant::now());
        let (bad, good) = (InstanceId::random(), InstanceId::random());
        let opened =
            (0..60_000).filter(|ms| registry.may_open(&bad, start + Duration::from_millis(*ms)).is_ok());
        assert_eq!(opened.count(), 128 + 59);
        let refused = registry.may_open(&bad, start + Duration::from_millis(59_999));
        assert!(refused.is_err_and(|wait| wait <= Duration::from_secs(1)));
        // An agent of sixteen connections that restarts every sixteen seconds.
        for restart in 0..100 {
            let now = start + Duration::from_secs(16 * restart);
            assert!((0..16).all(|_| registry.may_open(&good, now).is_ok()), "restart {restart}");
        }
    }
}
