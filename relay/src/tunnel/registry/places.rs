//! How much of a service is taken: takes a service's count and a caller, gives a place for one request; refuses the caller who holds a
//! whole share, and everybody where the service has as many requests as it takes. Atomic counters alone, and of fixed size.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use postern_base::id::{IssuerName, ServiceName};

/// A tunnel carries up to 1,024 streams (what agents permit when busy); one caller may hold half of them, and the other half stays for
/// everybody else.
const SHARE_OF_TUNNEL: usize = 512;
/// Counters of each row. Callers that meet in one row are told apart by the other: with ten callers that hold much, a stranger shares
/// both counters with them once in 160,000 times. Two rows take 32 KiB.
const COUNTERS: usize = 4096;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The service has this many requests, its `limit.concurrent`.
    Service(usize),
    /// The caller has this many, and there have to be some for others.
    Share(usize),
}

/// What each caller holds of each service, counted by hash in two rows of counters of which the smaller tells.
#[derive(Debug)]
pub(super) struct Shares {
    /// Unknown to callers, so that nobody can look for a subject that meets another's.
    hashing: RandomState,
    rows: [Box<[AtomicU32]>; 2],
}

/// One request's place at its service, until it is dropped.
#[derive(Debug)]
pub struct ServicePlace {
    service: Arc<AtomicUsize>,
    shares: Arc<Shares>,
    at: [usize; 2],
}

impl Default for Shares {
    fn default() -> Self {
        let row = || (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Self { hashing: RandomState::new(), rows: [row(), row()] }
    }
}

/// What one caller may hold of a service with so many tunnels, at a relay that serves at most `requests` at once: of that too but half,
/// unless it is so little that a single tunnel would do.
pub(super) fn share(tunnels: usize, requests: usize) -> usize {
    let most = (requests / 2).max(SHARE_OF_TUNNEL);
    tunnels.max(1).saturating_mul(SHARE_OF_TUNNEL).min(most)
}

/// A place for one more request of `who`: issuer and subject.
pub(super) fn take(
    shares: &Arc<Shares>,
    in_flight: &Arc<AtomicUsize>,
    service: &ServiceName,
    who: (&IssuerName, &str),
    (concurrent, share): (Option<usize>, usize),
) -> Result<ServicePlace, Full> {
    let hash = shares.hashing.hash_one((service, who));
    // Two independent parts of one hash.
    let at = [hash, hash >> 32].map(|part| usize::try_from(part % COUNTERS as u64).unwrap_or(0));
    let place = ServicePlace { service: in_flight.clone(), shares: shares.clone(), at };
    let of_service = in_flight.fetch_add(1, Ordering::Relaxed);
    let held = [0, 1].map(|row| place.counter(row).fetch_add(1, Ordering::Relaxed) as usize);
    // Refused, the place is dropped here, which takes its counts back.
    match concurrent {
        Some(limit) if of_service >= limit => Err(Full::Service(limit)),
        _ if held[0].min(held[1]) >= share => Err(Full::Share(share)),
        _ => Ok(place),
    }
}

impl ServicePlace {
    fn counter(&self, row: usize) -> &AtomicU32 {
        &self.shares.rows[row][self.at[row]]
    }
}

impl Drop for ServicePlace {
    fn drop(&mut self) {
        self.service.fetch_sub(1, Ordering::Relaxed);
        self.counter(0).fetch_sub(1, Ordering::Relaxed);
        self.counter(1).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_takes_so_many_and_one_caller_a_share_of_them() {
        let (shares, in_flight) = (Arc::<Shares>::default(), Arc::default());
        let (service, other): (ServiceName, ServiceName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let issuer: IssuerName = "corp".parse().unwrap();
        let enter = |service, subject, limits| take(&shares, &in_flight, service, (&issuer, subject), limits);
        let limits = (Some(5), 3);
        let held: Vec<ServicePlace> = (0..3).map(|_| enter(&service, "ada", limits).unwrap()).collect();
        assert_eq!(enter(&service, "ada", limits).unwrap_err(), Full::Share(3));
        let _fourth = enter(&service, "bob", limits).unwrap();
        let _elsewhere = enter(&other, "ada", limits).unwrap();
        assert_eq!(enter(&service, "bob", limits).unwrap_err(), Full::Service(5));
        drop(held);
        assert!(enter(&service, "ada", limits).is_ok());
        assert_eq!(in_flight.load(Ordering::Relaxed), 2, "every place was given back, refused ones too");
    }

    #[test]
    fn every_count_returns_to_nothing() {
        let (shares, in_flight) = (Arc::<Shares>::default(), Arc::default());
        let (service, issuer): (ServiceName, IssuerName) = ("a".parse().unwrap(), "corp".parse().unwrap());
        for n in 0..10_000 {
            // Nobody is kept out by strangers who hold nothing.
            take(&shares, &in_flight, &service, (&issuer, &n.to_string()), (None, 1)).unwrap();
        }
        assert!(shares.rows.iter().flatten().all(|counter| counter.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_share_leaves_half_for_others() {
        assert_eq!(share(2, 10_000), 1024);
        assert_eq!(share(1000, 10_000), 5000);
        assert_eq!(share(5, 8), 512);
    }
}
