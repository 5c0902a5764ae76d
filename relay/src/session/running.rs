//! One thing that runs: an admitted request, or the live stream that came of it. It knows whose it is and what it was permitted, so that it
//! can be found and judged again, and it can be cut from anywhere; whoever carries it learns that at once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use http::Method;
use postern_base::id::RequestId;
use postern_base::secret::Secret;
use postern_base::sync::lock;
use postern_gate::policy::{Context, Denial, Target};
use postern_gate::principal::{Principal, TokenId};
use postern_wire::pipe::Counts;

use super::lease::LeaseId;
use super::lock::{LockId, Locks};
use super::seconds;
use crate::relay::Snapshot;
use crate::request::route::{Place, Routed};
use crate::settings::Service;
use crate::tunnel::registry::Tunnel;

/// Why something that ran was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its token, user, client or issuer is locked.
    Locked(LockId),
    /// Its service or agent is locked, or everything.
    Withheld(LockId),
    /// Its token expired, and was not renewed or had its grace.
    Expired,
    /// The policy in force does not permit it any more.
    Reloaded,
    /// Its token's issuer says that the token is not good any more.
    Inactive,
    /// Its token's issuer was to be asked again and did not answer.
    Unasked,
}

impl Cut {
    /// As audit lines say it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Locked(_) => "locked",
            Self::Withheld(_) => "service-locked",
            Self::Expired => "expired",
            Self::Reloaded => "permit-gone",
            Self::Inactive => "token-inactive",
            Self::Unasked => "issuer-unavailable",
        }
    }

    pub fn lock(self) -> Option<LockId> {
        match self {
            Self::Locked(lock) | Self::Withheld(lock) => Some(lock),
            Self::Expired | Self::Reloaded | Self::Inactive | Self::Unasked => None,
        }
    }
}

/// What a request is when it is admitted.
#[derive(Debug)]
pub struct New {
    pub request_id: RequestId,
    pub address: IpAddr,
    pub method: Method,
    pub routed: Arc<Routed>,
    pub service: Arc<Service>,
    pub principal: Arc<Principal>,
    pub bytes: Arc<Counts>,
    pub now: SystemTime,
    /// How long it may run on after its token expired.
    pub grace: Duration,
}

#[derive(Debug)]
pub struct Running {
    pub request_id: RequestId,
    pub address: IpAddr,
    pub service: Arc<Service>,
    /// When it was permitted; how old its caller's login may be was judged then.
    pub opened: SystemTime,
    pub bytes: Arc<Counts>,
    method: Method,
    routed: Arc<Routed>,
    /// Of the token that it was opened with.
    first: TokenId,
    /// Seconds since the epoch.
    until: AtomicU64,
    /// When the token's issuer is to be asked again, in seconds since the epoch; [`NEVER`] where it is not, or is being asked.
    ask_at: AtomicU64,
    /// Live streams have one.
    lease: OnceLock<LeaseId>,
    held: Mutex<Held>,
    cut: OnceLock<Cut>,
    carrier: AtomicWaker,
}

/// Renewals of one stream that are remembered: those before them were of tokens that expired long ago.
const SHOWN: usize = 64;

/// What may change while it runs.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) principal: Arc<Principal>,
    /// The tokens that were shown for it lately, beside the first: whoever had one of them may have it still.
    shown: VecDeque<TokenId>,
    pub(super) tunnel: Option<Arc<Tunnel>>,
    /// The token of a live stream whose issuer is to be asked again.
    pub(super) token: Option<Arc<Secret>>,
    /// Since when the issuer has been asked in vain.
    pub(super) in_vain: Option<SystemTime>,
}

pub(super) const NEVER: u64 = u64::MAX;

impl Running {
    pub(super) fn new(new: New) -> Self {
        let New { request_id, address, method, routed, service, principal, bytes, now, grace } = new;
        Self {
            request_id,
            address,
            service,
            opened: now,
            bytes,
            method,
            routed,
            first: principal.token_id(),
            until: AtomicU64::new(principal.expires().saturating_add(grace.as_secs())),
            ask_at: AtomicU64::new(NEVER),
            lease: OnceLock::new(),
            held: Mutex::new(Held {
                principal,
                shown: VecDeque::new(),
                tunnel: None,
                token: None,
                in_vain: None,
            }),
            cut: OnceLock::new(),
            carrier: AtomicWaker::new(),
        }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        // Each change is one assignment.
        lock(&self.held)
    }

    /// Whose it is: of the newest token that was shown for it.
    pub fn principal(&self) -> Arc<Principal> {
        self.held().principal.clone()
    }

    pub fn lease(&self) -> Option<&LeaseId> {
        self.lease.get()
    }

    /// Seconds since the epoch.
    pub fn until(&self) -> u64 {
        self.until.load(Ordering::Relaxed)
    }

    pub fn was_cut(&self) -> Option<Cut> {
        self.cut.get().copied()
    }

    /// It becomes a live stream: it may run until its token expires.
    pub(super) fn lives(&self, lease: LeaseId, token: &str, now: SystemTime) {
        if self.lease.set(lease).is_ok() {
            self.renewed(self.principal(), token, now);
        }
    }

    /// A token was shown for it, and judged.
    pub(super) fn renewed(&self, principal: Arc<Principal>, token: &str, now: SystemTime) {
        let mut held = self.held();
        // Kept only where it will be needed.
        held.token = principal.asked_again_at().map(|_| Arc::new(Secret::new(token)));
        self.holds(&mut held, principal, now);
    }

    /// Its token's issuer was asked again, and says this of it; unless another token was shown meanwhile.
    pub(super) fn confirmed(&self, principal: Arc<Principal>, now: SystemTime) {
        let mut held = self.held();
        if held.principal.token_id() == principal.token_id() {
            self.holds(&mut held, principal, now);
        }
    }

    fn holds(&self, held: &mut Held, principal: Arc<Principal>, now: SystemTime) {
        // An issuer whose word holds for no time at all is still not asked all the time.
        let ask_at = principal.asked_again_at().map_or(NEVER, |at| seconds(at.max(now)).saturating_add(1));
        self.until.store(principal.expires(), Ordering::Relaxed);
        self.ask_at.store(ask_at, Ordering::Relaxed);
        held.in_vain = None;
        held.shows(principal.token_id(), self.first);
        held.principal = principal;
    }

    pub(super) fn ask_at(&self) -> u64 {
        self.ask_at.load(Ordering::Relaxed)
    }

    /// What the issuer is to be asked about; it is not to be asked by anybody else meanwhile.
    pub(super) fn asking(&self) -> Option<(Arc<Secret>, Arc<Principal>)> {
        let held = self.held();
        self.ask_at.store(NEVER, Ordering::Relaxed);
        Some((held.token.clone()?, held.principal.clone()))
    }

    /// The issuer said nothing about this token; says since when.
    pub(super) fn unanswered(&self, token: TokenId, now: SystemTime, again: Duration) -> Option<SystemTime> {
        let mut held = self.held();
        if held.principal.token_id() != token {
            return None;
        }
        self.ask_at.store(seconds(now + again), Ordering::Relaxed);
        Some(*held.in_vain.get_or_insert(now))
    }

    /// It goes over this tunnel now.
    pub(super) fn goes_over(&self, tunnel: &Arc<Tunnel>) {
        self.held().tunnel = Some(tunnel.clone());
    }

    pub fn tunnel(&self) -> Option<Arc<Tunnel>> {
        self.held().tunnel.clone()
    }

    /// Says whether it ran until now.
    pub(super) fn cut(&self, why: Cut) -> bool {
        let is_first = self.cut.set(why).is_ok();
        self.carrier.wake();
        is_first
    }

    /// Resolves when it is cut. One task at a time waits for that: the one that carries it.
    pub async fn is_cut(&self) -> Cut {
        std::future::poll_fn(|cx| {
            if self.cut.get().is_none() {
                self.carrier.register(cx.waker());
            }
            // Asked again, for it may have been cut before the waker was there.
            self.cut.get().map_or(Poll::Pending, |cut| Poll::Ready(*cut))
        })
        .await
    }

    /// Does some of its work, unless it is cut.
    pub async fn or_cut<T>(&self, work: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::select! {
            biased;
            cut = self.is_cut() => Err(cut),
            done = work => Ok(done),
        }
    }

    /// Whether some lock is for it.
    pub(super) fn locked_by(&self, locks: &Locks) -> Option<Cut> {
        let held = self.held();
        let mut shown = std::iter::once(&self.first).chain(&held.shown);
        let token = shown.find_map(|token| locks.token(*token)).or_else(|| locks.principal(&held.principal));
        let place = || {
            let agent = held.tunnel.as_ref().and_then(|tunnel| locks.agent(&tunnel.agent));
            agent.or_else(|| locks.service(&self.service.name))
        };
        token.map(Cut::Locked).or_else(|| place().map(Cut::Withheld))
    }

    /// Whether a configuration permits this principal what runs. How old a login may be counts as of the opening.
    pub(super) fn permitted(&self, snapshot: &Snapshot, principal: &Principal) -> Result<(), Unfit> {
        let service = snapshot.settings.services.get(&self.service.name);
        let service = service.filter(|service| service.kind == self.service.kind).ok_or(Unfit::Service)?;
        snapshot.issuers.accepts(principal, service.accept()).map_err(|_| Unfit::Token)?;
        let target = Target { service: &service.name, method: self.method.as_str(), path: &self.routed.path };
        let context = Context { address: self.address, now: self.opened };
        snapshot.policy.decide(principal, &target, &context).map(drop).map_err(Unfit::Denied)
    }

    /// Whether it may not go on after a reload from `before`. Settings that judge tokens otherwise did not judge its own.
    pub(super) fn is_void(&self, snapshot: &Snapshot, before: &Snapshot) -> bool {
        let principal = self.principal();
        !snapshot.issuers.judges_like(&before.issuers, principal.issuer())
            || self.permitted(snapshot, &principal).is_err()
    }

    /// What switched, for operators.
    pub fn protocol(&self) -> &'static str {
        match &self.routed.place {
            Place::Service(service) if service.kind == postern_gate::policy::ServiceKind::Tcp => "tcp",
            Place::Service(_) | Place::Own(_) | Place::Unknown => "websocket",
        }
    }
}

impl Held {
    fn shows(&mut self, token: TokenId, first: TokenId) {
        if token == first || self.shown.contains(&token) {
            return;
        }
        if self.shown.len() == SHOWN {
            self.shown.pop_front();
        }
        self.shown.push_back(token);
    }
}

/// Why a principal may not have what runs.
#[derive(Debug)]
pub(super) enum Unfit {
    /// There is no such service any more.
    Service,
    /// The service takes no such tokens.
    Token,
    Denied(Denial),
}
