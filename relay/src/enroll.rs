//! Enrolment: who may be an agent here. Invites become instances with certificates; instances are admitted, renewed, recovered, suspended and
//! removed.
//!
//! Takes invites' secrets, certificate requests and names; gives chains that end in the pinned root, and the answer to "is this
//! instance let in?" from memory. Refuses secrets that are unknown, used or expired. State is one redb file beside the CA.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use postern_base::clock::seconds;
use postern_base::file;
use postern_base::id::{AgentName, InstanceId, RelayName, SpiffeId, TrustDomain};
use postern_base::sync::lock;
use postern_wire::tls::{self, Roots};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;

use crate::session::LockId;
use ca::{Ca, Issued};
use list::Seen;
use store::{Change, State, Store};

mod authority;
mod backup;
mod ca;
mod invite;
mod join;
mod list;
mod locks;
mod pace;
mod recover;
mod refused;
mod store;
mod suspend;
mod taken;
#[cfg(test)]
mod tests;
mod wait;
mod who;

pub use backup::Merged;
pub use ca::{Bearer, CaError, CaReport, CaSource, NewRootKey, Prepared, Signed, Standing, root_key, sign};
pub use join::{JoinLimits, Joined, serve_join, tell_suspended};
pub use list::{AgentRow, InviteRow, SuspensionRow};
pub use pace::Paces;
pub use refused::JoinRefused;
pub use store::CertificateRecord;
pub use suspend::{Barred, Enrolled, Grounds, Shown, Suspension};
pub use taken::{TWO_KEYS, tell as tell_unrecorded};
pub use who::Who;

/// Where enrolment keeps its state, and for how long its certificates and invites are good.
#[derive(Debug, Clone)]
pub struct EnrollSettings {
    pub state: PathBuf,
    pub trust_domain: TrustDomain,
    /// Whose authority signs the certificates.
    pub ca: CaSource,
    pub cert_ttl: Duration,
    pub invite_ttl: Duration,
    /// For how long after its certificate's end an instance may recover; zero where none may.
    pub recover: Duration,
}

impl EnrollSettings {
    /// Where the authority is.
    pub fn ca_dir(&self) -> PathBuf {
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
    #[error("{} invites are waiting already: let some be used or expire", invite::MAX_INVITES)]
    TooManyInvites,
    #[error("no random numbers to be had from the system: see that it has its /dev, and try again")]
    Random,
    #[error("no agent {0} is enrolled or invited: see: postern-relay agent ls")]
    UnknownAgent(Who),
    #[error("agent {0} is not suspended: see: postern-relay agent ls")]
    NotSuspended(Who),
    #[error("agent {who} is not suspended, but of that name these are: {others}")]
    OtherSuspended { who: Who, others: String },
    #[error(
        "the reason must be 1 to {} characters: say why, for whoever finds it later",
        suspend::MAX_REASON
    )]
    Reason,
    #[error("{} agents are suspended already: resume some, or remove them", suspend::MAX_SUSPENSIONS)]
    TooManySuspensions,
    #[error("{} locks are in force already: take some away (postern-relay lock rm)", locks::MAX_LOCKS)]
    TooManyLocks,
    #[error("there is no lock {0}: see: postern-relay lock ls")]
    UnknownLock(LockId),
    #[error(
        "{0} instance(s) have not moved to the new root yet (postern-relay ca show): wait for them, or leave them behind with --force"
    )]
    Behind(usize),
    #[error("this instance asks for certificates too often: wait for ten seconds")]
    TooOften(Duration),
    #[error(transparent)]
    Barred(#[from] Barred),
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

/// What a renewal gave.
#[derive(Debug)]
pub struct Renewed {
    pub chain: Vec<CertificateDer<'static>>,
    /// It was granted on a certificate that is not on record, as after a restore: an instance has a single one who does that.
    pub is_unrecorded: bool,
}

/// Share it in an [`Arc`]. Reads come from memory; writes reach the disk first.
pub struct Enrollment {
    settings: EnrollSettings,
    ca: Ca,
    state: ArcSwap<State>,
    /// Held through a whole change: what is checked under it still holds when it is written.
    store: Mutex<Store>,
    seen: Mutex<Seen>,
    paces: Mutex<Paces>,
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
        let mut made = Ca::init(&settings.ca_dir(), &settings.ca, &settings.trust_domain, now)?;
        if Store::init(&settings.database()).map_err(|e| e.in_state(&settings.state))? {
            made.push(settings.database());
        }
        let root_key = Some(settings.ca_dir().join("root.key")).filter(|path| path.exists());
        Ok(InitReport { made, root_key })
    }

    /// Loads everything into memory and holds the database until dropped.
    pub fn open(settings: EnrollSettings) -> Result<Self, EnrollError> {
        let store = Store::open(&settings.database()).map_err(|e| e.in_state(&settings.state))?;
        // After the database: whoever holds that has the authority's files to itself, too.
        let ca = Ca::open(&settings.ca_dir(), settings.ca.clone(), &settings.trust_domain)?;
        let state = ArcSwap::from_pointee(store.load()?);
        let seen = Mutex::new(Seen::new(store.seen()?));
        Ok(Self { settings, ca, state, store: Mutex::new(store), seen, paces: Mutex::default() })
    }

    /// What agents are believed under, at any time.
    pub fn roots(&self) -> &Arc<Roots> {
        self.ca.roots()
    }

    /// The epoch of the authority in force: agents with a certificate of a lower one are to renew.
    pub fn epoch(&self) -> u64 {
        self.ca.epoch()
    }

    /// A key with its chain for this relay, fresh where it is made here; the roots are in it because joining agents look for theirs.
    pub fn relay_identity(
        &self,
        name: &RelayName,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), EnrollError> {
        let id = SpiffeId::Relay { domain: self.settings.trust_domain.clone(), name: name.clone() };
        Ok(self.ca.relay(&id, self.settings.cert_ttl, now)?)
    }

    /// A secret of this relay's own for one purpose, the same after every restart.
    pub fn derived(&self, purpose: &[u8]) -> [u8; 32] {
        self.ca.derived(purpose)
    }

    /// A new chain for the key that signed `csr`, for an instance that was let in on `grounds`. Blocks on the disk.
    pub fn renew(
        &self,
        (name, instance): (&AgentName, &InstanceId),
        grounds: &Grounds,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Renewed, EnrollError> {
        let store = self.writing();
        self.standing(name, instance)?;
        let record = self.state.load().instances.get(instance).cloned();
        let record = record.ok_or_else(|| Barred::NotEnrolled(name.clone()))?;
        self.may_have_one(instance).map_err(EnrollError::TooOften)?;
        let issued = self.sign(name, instance, csr, now)?;
        // Behind the signature: the authority may be replaced at any moment, and what follows from it is not for whoever had the key of this one.
        if !self.holds(grounds) {
            return Err(Barred::Replaced(name.clone()).into());
        }
        let key = &grounds.shown.key;
        let is_theirs = grounds.is_theirs || record.is_theirs(key);
        let is_unrecorded = !grounds.is_given && !is_theirs;
        let record = if is_unrecorded {
            record.taken_by(&grounds.shown, now)
        } else if record.is_held_by_two(is_theirs, self.ca.epoch()) {
            return Err(Barred::Two(Who::instance(name, instance)).into());
        } else {
            record
        };
        let record = if is_theirs || is_unrecorded {
            record.given_to_them(&issued, now)
        } else {
            record.given(&issued)
        };
        let instances = vec![(instance.clone(), record)];
        self.commit(&store, Change { instances, ..Change::default() })?;
        Ok(Renewed { chain: issued.chain, is_unrecorded })
    }

    /// One more certificate for an instance that is enrolled, or how long until it may have one.
    fn may_have_one(&self, instance: &InstanceId) -> Result<(), Duration> {
        // The wall clock may be set back, which must keep nobody from renewing.
        lock(&self.paces).take(instance, self.settings.cert_ttl, Instant::now())
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
        lock(&self.store)
    }

    fn commit(&self, store: &Store, change: Change) -> Result<(), EnrollError> {
        store.commit(&change).map_err(|e| e.in_state(&self.settings.state))?;
        let mut next = State::clone(&self.state.load());
        change.apply(&mut next);
        self.state.store(Arc::new(next));
        Ok(())
    }
}
