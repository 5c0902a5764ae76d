//! Enrolment: who may be an agent here. Invites become instances with certificates; instances are admitted, renewed and removed.
//!
//! Takes invites' secrets, certificate requests and names; gives chains that end in the pinned root, and the answer to "is this
//! instance enrolled?" from memory. Refuses secrets that are unknown, used or expired. State is one redb file beside the CA.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_base::file;
use postern_base::id::{AgentName, InstanceId, RelayName, ServiceName, SpiffeId, TrustDomain};
use postern_wire::join::{Invite, JoinAnswer, JoinRequest};
use postern_wire::tls;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;

use crate::session::LockId;
use ca::{Ca, Issued};
use store::{Change, InstanceRecord, InviteRecord, State, Store};

mod ca;
mod invite;
mod join;
mod list;
mod locks;
mod store;
#[cfg(test)]
mod tests;

pub use ca::CaError;
pub use invite::JoinRefused;
pub use join::{JoinLimits, Joined, serve_join};
pub use list::{AgentRow, InviteRow};
pub use store::CertificateRecord;

/// Invites that wait at one time; a join compares with each of them.
const MAX_INVITES: usize = 1000;
/// Spent invites are kept this long, so that their refusal can say what happened and `agent ls` shows them.
const KEEP_SPENT: Duration = Duration::from_hours(7 * 24);

/// Where enrolment keeps its state, and for how long its certificates and invites are good.
#[derive(Debug, Clone)]
pub struct EnrollSettings {
    pub state: PathBuf,
    pub trust_domain: TrustDomain,
    pub cert_ttl: Duration,
    pub invite_ttl: Duration,
}

impl EnrollSettings {
    fn ca(&self) -> PathBuf {
        self.state.join("ca")
    }

    fn database(&self) -> PathBuf {
        self.state.join("postern.redb")
    }
}

/// Why enrolment cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("there is no enrolment database at {0}: run: postern-relay init")]
    NotInitialised(PathBuf),
    #[error("{0} is in use by another process, a relay or a command: wait for it to end and try again")]
    Held(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the enrolment database: {0}; if this stays, restore it from a backup")]
    Database(Box<redb::Error>),
    #[error("the enrolment database cannot grow, the disk is full: make room on {0} and try again")]
    Full(PathBuf),
    #[error(
        "the enrolment database has format {0}, which this version does not know: use the version that wrote it"
    )]
    Schema(u64),
    #[error("the enrolment database holds a row that cannot be read: restore it from a backup")]
    Row,
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("{MAX_INVITES} invites are waiting already: let some be used or expire")]
    TooManyInvites,
    #[error("no random numbers to be had from the system")]
    Random,
    #[error("no agent named {0} is enrolled or invited: see: postern-relay agent ls")]
    UnknownAgent(AgentName),
    #[error("{} locks are in force already: take some away (postern-relay lock rm)", locks::MAX_LOCKS)]
    TooManyLocks,
    #[error("there is no lock {0}: see: postern-relay lock ls")]
    UnknownLock(LockId),
    #[error("instance {instance} of agent {name} is not enrolled here, or was removed")]
    NotEnrolled { name: AgentName, instance: InstanceId },
}

impl EnrollError {
    /// A full disk damages nothing, so that it is not what a backup is for.
    fn in_state(self, state: &Path) -> Self {
        let full = matches!(
            &self,
            Self::Database(e) if matches!(&**e, redb::Error::Io(e) if e.kind() == ErrorKind::StorageFull)
        );
        if full { Self::Full(state.to_owned()) } else { self }
    }
}

/// What `init` found and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// Files made now; empty when all was there.
    pub made: Vec<PathBuf>,
    /// Where the root's key is, if it is still here: for the operator to take away.
    pub root_key: Option<PathBuf>,
}

/// An admitted instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// What its invite narrowed it to; `None` is everything that relay.toml assigns to its name.
    pub services: Option<Vec<ServiceName>>,
}

/// Share it in an [`Arc`]. Reads come from memory; writes reach the disk first.
pub struct Enrollment {
    settings: EnrollSettings,
    ca: Ca,
    state: ArcSwap<State>,
    /// Held through a whole change: what is checked under it still holds when it is written.
    store: Mutex<Store>,
}

impl std::fmt::Debug for Enrollment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrollment").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Enrollment {
    /// Makes what is missing of state directory, certificate authority and database. Run twice it changes nothing.
    pub fn init(settings: &EnrollSettings, now: SystemTime) -> Result<InitReport, EnrollError> {
        let io_error = |source| EnrollError::Io { path: settings.state.clone(), source };
        file::create_private_dir(&settings.state).map_err(io_error)?;
        let mut made = Ca::init(&settings.ca(), &settings.trust_domain, now)?;
        if Store::init(&settings.database()).map_err(|e| e.in_state(&settings.state))? {
            made.push(settings.database());
        }
        let root_key = Some(settings.ca().join("root.key")).filter(|path| path.exists());
        Ok(InitReport { made, root_key })
    }

    /// Loads everything into memory and holds the database until dropped.
    pub fn open(settings: EnrollSettings, now: SystemTime) -> Result<Self, EnrollError> {
        let ca = Ca::open(&settings.ca(), now)?;
        let store = Store::open(&settings.database()).map_err(|e| e.in_state(&settings.state))?;
        let state = ArcSwap::from_pointee(store.load()?);
        Ok(Self { settings, ca, state, store: Mutex::new(store) })
    }

    /// What agents pin and relays trust.
    pub fn root(&self) -> CertificateDer<'static> {
        self.ca.root().clone()
    }

    /// A fresh key with its chain (leaf, issuing CA, root) for this relay; the root is in it because joining agents look for it.
    pub fn relay_identity(
        &self,
        name: &RelayName,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), EnrollError> {
        let id = SpiffeId::Relay { domain: self.settings.trust_domain.clone(), name: name.clone() };
        let (issued, key) = self.ca.relay(&id, self.settings.cert_ttl, now)?;
        Ok((issued.chain, key))
    }

    /// A secret of this relay's own for one purpose, the same after every restart.
    pub fn derived(&self, purpose: &[u8]) -> [u8; 32] {
        self.ca.derived(purpose)
    }

    /// A new invite for one instance of `agent`; only a hash of it is kept.
    pub fn invite(
        &self,
        agent: &AgentName,
        services: Option<Vec<ServiceName>>,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Invite, EnrollError> {
        let secret = invite::secret()?;
        let store = self.writing();
        let now = seconds(now);
        let (spent, waiting): (Vec<_>, Vec<_>) = {
            let state = self.state.load();
            let rows =
                state.invites.iter().map(|(hash, invite)| (*hash, invite.used.unwrap_or(invite.expires)));
            rows.partition(|(_, end)| end + KEEP_SPENT.as_secs() < now)
        };
        let is_open = |(hash, _): &&([u8; 32], u64)| {
            self.state
                .load()
                .invites
                .get(hash)
                .is_some_and(|invite| invite.used.is_none() && invite.expires >= now)
        };
        if waiting.iter().filter(is_open).count() >= MAX_INVITES {
            return Err(EnrollError::TooManyInvites);
        }
        let expires = now.saturating_add(ttl.unwrap_or(self.settings.invite_ttl).as_secs());
        let record = InviteRecord { agent: agent.clone(), services, made: now, expires, used: None };
        let mut invites: Vec<_> = spent.into_iter().map(|(hash, _)| (hash, None)).collect();
        invites.push((invite::hash(&secret), Some(record)));
        self.commit(&store, Change { invites, ..Change::default() })?;
        Ok(Invite { pin: tls::pin(self.ca.root())?, secret })
    }

    /// Turns an invite into an enrolled instance; of two that race with one invite exactly one wins. Blocks on the disk.
    pub fn join(&self, request: &JoinRequest, now: SystemTime) -> Result<Joined, JoinRefused> {
        let at = seconds(now);
        // Strangers with a wrong secret cost a comparison, not a turn at the database.
        invite::find(&self.state.load(), &request.secret, at)?;
        let store = self.writing();
        let state = self.state.load_full();
        let (hash, invite) = invite::find(&state, &request.secret, at)?;
        let agent = invite.agent.clone();
        let bad = |why: String| JoinRefused::BadRequest { agent: agent.clone(), why };
        let instance: InstanceId =
            request.instance.parse().map_err(|_| bad("malformed instance id".into()))?;
        if state.instances.contains_key(&instance) {
            return Err(bad("this instance id is taken".into()));
        }
        let issued = self.sign(&agent, &instance, &request.csr, now).map_err(|e| match e {
            CaError::Request(why) => bad(why),
            CaError::Missing(_)
            | CaError::Incomplete(_)
            | CaError::Io { .. }
            | CaError::Damaged { .. }
            | CaError::Mismatch(_)
            | CaError::NoRootKey(_)
            | CaError::Expired(_)
            | CaError::Signing(_) => {
                JoinRefused::Unavailable { agent: Some(agent.clone()), why: e.to_string() }
            }
        })?;
        let record = InstanceRecord {
            name: agent.clone(),
            services: invite.services.clone(),
            enrolled: at,
            latest: CertificateRecord { serial: issued.serial, not_after: issued.not_after },
            previous: None,
            removed: None,
        };
        let invites = vec![(hash, Some(InviteRecord { used: Some(at), ..invite.clone() }))];
        self.commit(
            &store,
            Change { invites, instances: vec![(instance.clone(), record)], ..Change::default() },
        )
        .map_err(|e| JoinRefused::Unavailable { agent: Some(agent.clone()), why: e.to_string() })?;
        let answer = JoinAnswer::Granted {
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            trust_domain: self.settings.trust_domain.to_string(),
        };
        Ok(Joined { agent, instance, answer })
    }

    /// Whether this instance is enrolled; `None` where it never was or was removed. Hot: memory alone.
    pub fn admit(&self, name: &AgentName, instance: &InstanceId) -> Option<Enrolled> {
        let state = self.state.load();
        let record = state.instances.get(instance)?;
        let admitted = record.name == *name && record.removed.is_none();
        admitted.then(|| Enrolled { services: record.services.clone() })
    }

    /// A new chain (leaf, issuing CA, root) for the key that signed `csr`. Blocks on the disk.
    pub fn renew(
        &self,
        name: &AgentName,
        instance: &InstanceId,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, EnrollError> {
        let store = self.writing();
        let not_enrolled = || EnrollError::NotEnrolled { name: name.clone(), instance: instance.clone() };
        self.admit(name, instance).ok_or_else(not_enrolled)?;
        let mut record = self.state.load().instances.get(instance).cloned().ok_or_else(not_enrolled)?;
        let issued = self.sign(name, instance, csr, now)?;
        let latest = CertificateRecord { serial: issued.serial, not_after: issued.not_after };
        record.previous = Some(std::mem::replace(&mut record.latest, latest));
        self.commit(&store, Change { instances: vec![(instance.clone(), record)], ..Change::default() })?;
        Ok(issued.chain)
    }

    /// Puts every instance of `name` out for good and voids its open invites; gives how many instances that were. The caller cuts
    /// their tunnels. Blocks on the disk.
    pub fn remove(&self, name: &AgentName, now: SystemTime) -> Result<usize, EnrollError> {
        let store = self.writing();
        let state = self.state.load_full();
        let mut change = Change::default();
        for (instance, record) in &state.instances {
            if record.name == *name && record.removed.is_none() {
                let removed = InstanceRecord { removed: Some(seconds(now)), ..record.clone() };
                change.instances.push((instance.clone(), removed));
            }
        }
        for (hash, invite) in &state.invites {
            if invite.agent == *name && invite.used.is_none() {
                change.invites.push((*hash, None));
            }
        }
        if change.instances.is_empty() && change.invites.is_empty() {
            return Err(EnrollError::UnknownAgent(name.clone()));
        }
        let removed = change.instances.len();
        self.commit(&store, change)?;
        Ok(removed)
    }

    fn sign(
        &self,
        name: &AgentName,
        instance: &InstanceId,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let (name, instance) = (name.clone(), instance.clone());
        let id = SpiffeId::Agent { domain: self.settings.trust_domain.clone(), name, instance };
        self.ca.agent(&id, csr, self.settings.cert_ttl, now)
    }

    fn writing(&self) -> MutexGuard<'_, Store> {
        // Nothing under this lock leaves a half-made change behind: the disk has transactions, memory is swapped whole.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, store: &Store, change: Change) -> Result<(), EnrollError> {
        store.commit(&change).map_err(|e| e.in_state(&self.settings.state))?;
        let mut next = State::clone(&self.state.load());
        change.apply(&mut next);
        self.state.store(Arc::new(next));
        Ok(())
    }
}

/// Seconds since the epoch; zero before it.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
