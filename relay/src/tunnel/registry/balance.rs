//! The tunnels that may carry one service: takes what is known of them, gives one for a request by the power of two choices; a tunnel of
//! the request's own worker goes first, unless it is clearly busier than the others.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::Tunnel;
use crate::workers::WorkerId;

/// A tunnel of the own worker spares a wake of another thread, a fifth to a third of a request's cost; it is worth waiting behind that
/// many requests more than elsewhere.
const OWN_WORKER: usize = 8;

/// What carries one service.
#[derive(Debug, Default)]
pub(super) struct Carriers {
    all: Vec<Arc<Tunnel>>,
    by_worker: Vec<(WorkerId, Vec<Arc<Tunnel>>)>,
    /// Requests and streams of this service at once, whatever carries them.
    pub(super) in_flight: Arc<AtomicUsize>,
}

impl Carriers {
    /// None yet; what was in flight goes on counting.
    pub(super) fn after(before: Option<&Self>) -> Self {
        let in_flight = before.map(|before| before.in_flight.clone()).unwrap_or_default();
        Self { in_flight, ..Self::default() }
    }

    pub(super) fn push(&mut self, tunnel: &Arc<Tunnel>) {
        self.all.push(tunnel.clone());
        match self.by_worker.iter_mut().find(|(worker, _)| *worker == tunnel.worker) {
            Some((_, tunnels)) => tunnels.push(tunnel.clone()),
            None => self.by_worker.push((tunnel.worker, vec![tunnel.clone()])),
        }
    }

    pub(super) fn all(&self) -> &[Arc<Tunnel>] {
        &self.all
    }

    /// A usable tunnel that `fits`; one whose heartbeat is late only where there is no other.
    pub(super) fn pick(&self, worker: WorkerId, fits: impl Fn(&Tunnel) -> bool) -> Option<&Arc<Tunnel>> {
        let fits = |tunnel: &Tunnel| tunnel.is_usable() && fits(tunnel);
        self.choose(worker, |tunnel| tunnel.is_prompt() && fits(tunnel)).or_else(|| self.choose(worker, fits))
    }

    fn choose(&self, worker: WorkerId, fits: impl Fn(&Tunnel) -> bool) -> Option<&Arc<Tunnel>> {
        let own = self.by_worker.iter().find(|(of, _)| *of == worker);
        let own = own.and_then(|(_, tunnels)| lighter(tunnels, &fits));
        let any = if own.is_some() && self.by_worker.len() == 1 { None } else { lighter(&self.all, &fits) };
        match (own, any) {
            (Some(own), Some(any)) if own.load() > 2 * any.load() + OWN_WORKER => Some(any),
            (Some(own), _) => Some(own),
            (None, any) => any,
        }
    }
}

/// The less busy of two that fit, chosen at random: nearly as even as looking at all of them, at the cost of two.
fn lighter(tunnels: &[Arc<Tunnel>], fits: impl Fn(&Tunnel) -> bool) -> Option<&Arc<Tunnel>> {
    let count = tunnels.len();
    if count < 2 {
        return tunnels.first().filter(|tunnel| fits(tunnel));
    }
    let first = rand::random_range(0..count);
    let second = (first + rand::random_range(1..count)) % count;
    let from = |at: usize| tunnels[at..].iter().chain(&tunnels[..at]).find(|tunnel| fits(tunnel));
    let (first, second) = (from(first)?, from(second)?);
    Some(if second.load() < first.load() { second } else { first })
}
