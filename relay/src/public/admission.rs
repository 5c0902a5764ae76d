//! What may be under way at once: callers' connections in all and per address, requests in flight; and how often an address may fail to
//! authenticate, or send agents. Each admission is a guard; dropping it is the report of the end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_base::network::network;
use postern_base::sync::lock;

use crate::settings::Limits;

pub mod bucket;

use bucket::Buckets;

/// Connections that agents may try from one address at once, and in a second: a thousand agents of two tunnels each behind one address,
/// back within a second of the relay's restart. A handshake costs some 0.3 ms, so this much junk takes a good half of a core.
const AGENT_TRIES: u32 = 2000;
const SECOND: Duration = Duration::from_secs(1);

/// The counters behind the limits.
#[derive(Debug)]
pub struct Admission {
    connections: Arc<Connections>,
    requests: Arc<AtomicUsize>,
    max_requests: AtomicUsize,
    max_failed: AtomicU32,
    failed: Buckets,
    agents: Buckets,
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
    /// Whose it is, once that is known.
    of: Option<IpAddr>,
}

/// One request's place.
#[derive(Debug)]
pub struct RequestSlot(Arc<AtomicUsize>);

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
            failed: Buckets::new(SECOND),
            agents: Buckets::new(SECOND),
        }
    }

    /// Takes the limits of a new configuration; what is admitted stays.
    pub fn apply(&self, limits: &Limits) {
        self.connections.max.store(limits.connections, Ordering::Relaxed);
        self.connections.max_per_address.store(limits.per_address, Ordering::Relaxed);
        self.max_requests.store(limits.requests, Ordering::Relaxed);
        self.max_failed.store(limits.failed_auth, Ordering::Relaxed);
    }

    /// A caller's connection, or `None` when there are as many as allowed; [`ConnectionSlot::charge`] says whose it is.
    pub fn connect(&self) -> Option<ConnectionSlot> {
        let slot = ConnectionSlot { connections: self.connections.clone(), of: None };
        let before = self.connections.all.fetch_add(1, Ordering::Relaxed);
        // Over the limit the slot is dropped here, which takes the count back.
        (before < self.connections.max.load(Ordering::Relaxed)).then_some(slot)
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
        self.failed.has_room(address, self.max_failed.load(Ordering::Relaxed), now)
    }

    pub fn authentication_failed(&self, address: IpAddr, now: Instant) {
        // Where it does not fit, several failed at once: the bucket is as full as it gets.
        let _ = self.failed.take(address, self.max_failed.load(Ordering::Relaxed), now);
    }

    /// Whether an address may open another agent's connection now. Only those from a proved address are counted; the others are
    /// asked to prove it (QUIC Retry) once half of the tries are used.
    pub fn admits_agent(&self, address: IpAddr, is_proved: bool, now: Instant) -> bool {
        if is_proved {
            self.agents.take(address, AGENT_TRIES, now)
        } else {
            // Room for half a bucket: at most half of the tries are used.
            self.agents.has_room(address, 2, now)
        }
    }
}

impl ConnectionSlot {
    /// Counts the connection as nobody's: among all, but not against its address.
    pub fn release_address(&mut self) {
        let Some(key) = self.of.take() else { return };
        let mut per_address = lock(&self.connections.per_address);
        if let Some(count) = per_address.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&key);
            }
        }
    }

    /// Counts the connection as this address's; `false` when that has as many as allowed.
    pub fn charge(&mut self, address: IpAddr) -> bool {
        let key = network(address);
        let mut per_address = lock(&self.connections.per_address);
        let of_this = per_address.entry(key).or_insert(0);
        if *of_this >= self.connections.max_per_address.load(Ordering::Relaxed) {
            return false;
        }
        *of_this += 1;
        self.of = Some(key);
        true
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.all.fetch_sub(1, Ordering::Relaxed);
        self.release_address();
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
            lease_grace: Duration::ZERO,
            drain: Duration::ZERO,
        }
    }

    #[test]
    fn connections_are_counted_in_all_and_per_address() {
        let admission = Admission::new(&limits());
        let connect = |address: &str| {
            let mut slot = admission.connect()?;
            slot.charge(address.parse().unwrap()).then_some(slot)
        };
        let first = connect("2001:db8::1").unwrap();
        let _second = connect("2001:db8::2:2").unwrap();
        assert!(connect("2001:db8::1").is_none(), "two per /64");
        let _third = connect("192.0.2.1").unwrap();
        assert!(connect("192.0.2.2").is_none(), "three in all");
        drop(first);
        assert!(connect("2001:db8::1").is_some());
        assert_eq!(lock(&admission.connections.per_address).len(), 2, "refused addresses are not remembered");
    }

    #[test]
    fn a_thousand_agents_behind_one_address_come_back_within_a_second() {
        let admission = Admission::new(&limits());
        let (address, start) = ("192.0.2.1".parse().unwrap(), Instant::now());
        let admitted = (0..2000u32)
            .filter(|n| admission.admits_agent(address, true, start + SECOND * *n / 2000))
            .count();
        assert_eq!(admitted, 2000, "two tunnels each");
        let flood = (0..10_000).filter(|_| admission.admits_agent(address, true, start + SECOND)).count();
        assert!(flood < 2100, "{flood}");
        assert!(!admission.admits_agent(address, false, start + SECOND), "who is not proved is asked to");
        assert!(admission.admits_agent("192.0.2.2".parse().unwrap(), false, start));
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
