//! What `status` shows of an agent: each tunnel keeps an entry here while it lives, and what went wrong last is kept too. Nothing here
//! decides anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use postern_base::sync::lock;
use postern_wire::control::{SUSPENDED_AGAIN, ServiceRefusal};
use postern_wire::link::{Link, LinkKind};

use crate::identity::renewals::RenewalView;
use crate::settings::RelayAddress;
use crate::supervisor::{Agent, Usable};

/// One tunnel, as it stands now.
#[derive(Debug, Clone)]
pub struct TunnelView {
    pub relay: RelayAddress,
    pub link: LinkKind,
    pub since: SystemTime,
    /// A request would succeed.
    pub usable: bool,
    /// As the transport sees it; over TCP, how long the last heartbeat's answer took. None before that.
    pub round_trip: Option<Duration>,
    /// What the relay does not let this agent serve, and why; neither text is to be trusted on a terminal.
    pub refused: Vec<ServiceRefusal>,
}

/// All that is shown.
#[derive(Debug, Default)]
pub struct View {
    tunnels: Mutex<Vec<Arc<Entry>>>,
    last_error: Mutex<Option<(SystemTime, String)>>,
    suspended: Mutex<Option<SystemTime>>,
}

#[derive(Debug)]
struct Entry {
    relay: RelayAddress,
    link: Link,
    since: SystemTime,
    refused: Vec<ServiceRefusal>,
    usable: AtomicBool,
    /// In microseconds; zero before the first.
    answered_in: AtomicU64,
}

/// A tunnel's entry; it goes with the tunnel.
#[derive(Debug)]
pub(super) struct Shown {
    agent: Arc<Agent>,
    entry: Arc<Entry>,
    usable: Option<Usable>,
}

impl Shown {
    pub(super) fn new(
        agent: &Arc<Agent>,
        relay: &RelayAddress,
        link: &Link,
        refused: Vec<ServiceRefusal>,
    ) -> Self {
        let entry = Arc::new(Entry {
            relay: relay.clone(),
            link: link.clone(),
            since: SystemTime::now(),
            refused,
            usable: AtomicBool::new(false),
            answered_in: AtomicU64::new(0),
        });
        lock(&agent.view.tunnels).push(entry.clone());
        Self { agent: agent.clone(), entry, usable: None }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.usable.is_some()
    }

    pub(super) fn set_usable(&mut self, usable: bool) {
        self.entry.usable.store(usable, Ordering::Relaxed);
        self.usable = usable.then(|| self.agent.usable(self.entry.link.kind()));
        if usable {
            // What went wrong before is no cause of anything now.
            lock(&self.agent.view.last_error).take();
        }
    }

    /// A heartbeat was answered after this time.
    pub(super) fn answered(&self, after: Duration) {
        let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX).max(1);
        self.entry.answered_in.store(after, Ordering::Relaxed);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        lock(&self.agent.view.tunnels).retain(|entry| !Arc::ptr_eq(entry, &self.entry));
    }
}

impl Entry {
    fn view(&self) -> TunnelView {
        let answered = self.answered_in.load(Ordering::Relaxed);
        let answered = (answered > 0).then(|| Duration::from_micros(answered));
        TunnelView {
            relay: self.relay.clone(),
            link: self.link.kind(),
            since: self.since,
            usable: self.usable.load(Ordering::Relaxed),
            round_trip: self.link.round_trip().or(answered),
            refused: self.refused.clone(),
        }
    }
}

impl Agent {
    /// Every tunnel that lives, the oldest first; also those that only finish what they have.
    pub fn tunnels(&self) -> Vec<TunnelView> {
        lock(&self.view.tunnels).iter().map(|entry| entry.view()).collect()
    }

    /// How the certificate's renewal stands.
    pub fn renewal(&self) -> RenewalView {
        self.renewals.view(self.identity.renew_in(self.now()))
    }

    /// By how many milliseconds this machine's clock is ahead of the relay's; negative where it is behind, none before a relay has said.
    pub fn clock_offset(&self) -> Option<i64> {
        self.clock.offset()
    }

    /// What went wrong last between this agent and its relays, until a tunnel was usable again.
    pub fn last_error(&self) -> Option<(SystemTime, String)> {
        lock(&self.view.last_error).clone()
    }

    /// Since when a relay says that this agent is suspended; none where none does.
    pub fn suspended(&self) -> Option<SystemTime> {
        *lock(&self.view.suspended)
    }

    /// Now, by the relay's clock as far as it is known: it made the certificates.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now(SystemTime::now())
    }

    pub(crate) fn failed(&self, error: &str) {
        *lock(&self.view.last_error) = Some((SystemTime::now(), error.to_owned()));
    }

    /// Takes note that a relay calls this agent suspended; said once, however often it asks.
    pub(crate) fn suspended_by(&self, relay: &RelayAddress, reason: &str) {
        self.failed(&format!("suspended, until an operator resumes this agent: {reason}"));
        let mut since = lock(&self.view.suspended);
        if since.is_none() {
            *since = Some(SystemTime::now());
            let (name, instance) = (self.identity.name(), self.identity.instance());
            tracing::error!(
                %relay, %reason,
                "this agent is suspended; it asks again every {} s. To take it back: postern-relay agent resume {name}, or {name}/{instance} where \
                 that alone is suspended",
                SUSPENDED_AGAIN.as_secs()
            );
        }
    }

    /// Takes note that a relay took this agent; whether that is news.
    pub(crate) fn is_resumed(&self) -> bool {
        lock(&self.view.suspended).take().is_some()
    }
}
