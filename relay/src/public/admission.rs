//! What may be under way at once: callers' connections in all and per address, requests in flight, and failed authentications per
//! address. Each admission is a guard; dropping it is the report of the end.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::settings::Limits;

/// Addresses remembered for failed authentications; beyond it those whose second is over are forgotten first.
const FAILING_ADDRESSES: usize = 16 * 1024;
/// Connections that agents may try from one address in a second: a site of many agents behind one address, restarting.
const AGENT_TRIES: u32 = 200;

/// The counters behind the limits.
#[derive(Debug)]
pub struct Admission {
    connections: Arc<Connections>,
    requests: Arc<AtomicUsize>,
    max_requests: AtomicUsize,
    max_failed: AtomicU32,
    failed: PerSecond,
    agents: PerSecond,
}

#[derive(Debug)]
struct Connections {
    all: AtomicUsize,
    max: AtomicUsize,
    max_per_address: AtomicUsize,
    per_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place.
#[derive(Debug)]
pub struct ConnectionSlot {
    connections: Arc<Connections>,
    key: IpAddr,
}

/// One request's place.
#[derive(Debug)]
pub struct RequestSlot(Arc<AtomicUsize>);

/// IPv6 networks hand a /64 to every host, so that is what counts as one address.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters are valid at every point where a panic could have left them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    pub fn new(limits: &Limits) -> Self {
        let connections = Connections {
            all: AtomicUsize::new(0),
            max: AtomicUsize::new(limits.connections),
            max_per_address: AtomicUsize::new(limits.per_address),
            per_address: Mutex::default(),
        };
        Self {
            connections: Arc::new(connections),
            requests: Arc::default(),
            max_requests: AtomicUsize::new(limits.requests),
            max_failed: AtomicU32::new(limits.failed_auth),
            failed: PerSecond::default(),
            agents: PerSecond::default(),
        }
    }

    /// Takes the limits of a new configuration; what is admitted stays.
    pub fn apply(&self, limits: &Limits) {
        self.connections.max.store(limits.connections, Ordering::Relaxed);
        self.connections.max_per_address.store(limits.per_address, Ordering::Relaxed);
        self.max_requests.store(limits.requests, Ordering::Relaxed);
        self.max_failed.store(limits.failed_auth, Ordering::Relaxed);
    }

    /// A caller's connection, or `None` over a limit.
    pub fn connect(&self, address: IpAddr) -> Option<ConnectionSlot> {
        let (connections, key) = (&self.connections, key(address));
        let mut per_address = lock(&connections.per_address);
        let of_this = per_address.entry(key).or_insert(0);
        let is_over = connections.all.load(Ordering::Relaxed) >= connections.max.load(Ordering::Relaxed)
            || *of_this >= connections.max_per_address.load(Ordering::Relaxed);
        if is_over {
            if *of_this == 0 {
                per_address.remove(&key);
            }
            return None;
        }
        *of_this += 1;
        connections.all.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionSlot { connections: connections.clone(), key })
    }

    /// A request, or `None` when as many as allowed are in flight.
    pub fn request(&self) -> Option<RequestSlot> {
        let slot = RequestSlot(self.requests.clone());
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        // Over the limit the slot is dropped here, which takes the count back.
        (before < self.max_requests.load(Ordering::Relaxed)).then_some(slot)
    }

    /// Whether an address may try to authenticate, judged by its failures in this second.
    pub fn may_authenticate(&self, address: IpAddr, now: Instant) -> bool {
        self.failed.count(key(address), now) < self.max_failed.load(Ordering::Relaxed)
    }

    pub fn authentication_failed(&self, address: IpAddr, now: Instant) {
        self.failed.add(key(address), now);
    }

    /// Whether an address may open another agent's connection in this second; only those from a proved address are counted.
    pub fn admits_agent(&self, address: IpAddr, is_proved: bool) -> bool {
        let (key, now) = (key(address), Instant::now());
        if is_proved {
            self.agents.add(key, now) <= AGENT_TRIES
        } else {
            self.agents.count(key, now) < AGENT_TRIES / 2
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.all.fetch_sub(1, Ordering::Relaxed);
        let mut per_address = lock(&self.connections.per_address);
        if let Some(count) = per_address.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.key);
            }
        }
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Events per address in the running second; empty, it costs one atomic read.
#[derive(Debug, Default)]
struct PerSecond {
    known: AtomicUsize,
    windows: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl PerSecond {
    fn count(&self, address: IpAddr, now: Instant) -> u32 {
        if self.known.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        match lock(&self.windows).get(&address) {
            Some((since, count)) if now.duration_since(*since) < Duration::from_secs(1) => *count,
            _ => 0,
        }
    }

    fn add(&self, address: IpAddr, now: Instant) -> u32 {
        let mut windows = lock(&self.windows);
        if windows.len() >= FAILING_ADDRESSES && !windows.contains_key(&address) {
            windows.retain(|_, (since, _)| now.duration_since(*since) < Duration::from_secs(1));
            if windows.len() >= FAILING_ADDRESSES {
                // An attack from more addresses than this within a second: fail closed for newcomers.
                return u32::MAX;
            }
        }
        let (since, count) = windows.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        let count = *count;
        self.known.store(windows.len(), Ordering::Relaxed);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            workers: 1,
            connections: 3,
            per_address: 2,
            requests: 1,
            handshake: Duration::ZERO,
            first_byte_in: Duration::ZERO,
            head: Duration::ZERO,
            body_stall: Duration::ZERO,
            keepalive: Duration::ZERO,
            headers: 0,
            fields: 0,
            failed_auth: 2,
            drain: Duration::ZERO,
        }
    }

    #[test]
    fn connections_are_counted_in_all_and_per_address() {
        let admission = Admission::new(&limits());
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let same_64: IpAddr = "2001:db8::2:2".parse().unwrap();
        let first = admission.connect(one).unwrap();
        let _second = admission.connect(same_64).unwrap();
        assert!(admission.connect(one).is_none(), "two per /64");
        let _third = admission.connect("192.0.2.1".parse().unwrap()).unwrap();
        assert!(admission.connect("192.0.2.2".parse().unwrap()).is_none(), "three in all");
        drop(first);
        assert!(admission.connect(one).is_some());
        assert_eq!(lock(&admission.connections.per_address).len(), 2, "refused addresses are not remembered");
    }

    #[test]
    fn requests_and_failures_are_bounded() {
        let admission = Admission::new(&limits());
        let slot = admission.request().unwrap();
        assert!(admission.request().is_none());
        drop(slot);
        assert!(admission.request().is_some());
        let (address, now) = ("192.0.2.1".parse().unwrap(), Instant::now());
        assert!(admission.may_authenticate(address, now));
        admission.authentication_failed(address, now);
        admission.authentication_failed(address, now);
        assert!(!admission.may_authenticate(address, now));
        assert!(admission.may_authenticate("192.0.2.2".parse().unwrap(), now));
        assert!(admission.may_authenticate(address, now + Duration::from_millis(1001)));
    }
}
