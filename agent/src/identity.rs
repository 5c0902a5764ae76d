//! Who this agent is: one file, `identity.pem` in the state directory (0600), with its key, its chain and the pinned root. One file, so
//! that a crash leaves the old identity or the new one, never the key of one with the certificate of the other. Or three files that were
//! made elsewhere (`identity` in agent.toml).
//!
//! Takes chains from the relay; gives the identity that tunnels show; refuses whatever does not speak for the same agent under the
//! same root, or under the one that its root vouches for, or comes from an authority that was replaced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use postern_base::id::{AgentName, InstanceId, TrustDomain};
use postern_base::sync::lock;
use postern_wire::tls::{self, Identity, TlsError};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use zeroize::Zeroizing;

pub mod elsewhere;
mod proof;
pub mod renewals;
mod request;
mod stored;

use elsewhere::Files;
use proof::Proved;
pub use request::Renewal;
pub(crate) use request::{OwnKey, Recovery};
pub(crate) use stored::only_one;

/// Why there is no identity to use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("this agent has no identity in {0}: ask for an invite and run: postern-agent join RELAY")]
    Missing(PathBuf),
    #[error("{path}: {source}; see that the agent's user may read and write it, and that its disk has room")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged ({reason}): ask for a new invite and run: postern-agent join RELAY")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} is not this agent's: {reason}; see identity in agent.toml")]
    Unfit { path: PathBuf, reason: String },
    #[error("the relay sent a certificate that is not for this agent: {0}; see the relay's log")]
    Foreign(String),
    #[error("its certificate is made elsewhere (identity in agent.toml): it is renewed there")]
    Elsewhere,
    #[error("an agent already runs with this state directory: stop it first")]
    Running,
    #[error("{0} was replaced by another join: restart this agent")]
    Replaced(PathBuf),
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The identity in use. It changes in key, chain, dates and root, never in whom it speaks for.
#[derive(Debug)]
pub struct AgentIdentity {
    source: Source,
    name: AgentName,
    instance: InstanceId,
    domain: TrustDomain,
    trust: Mutex<Trust>,
    tls: Arc<Identity>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
enum Source {
    /// The state directory.
    State(PathBuf),
    Elsewhere(Files),
}

/// What relays are judged by.
#[derive(Debug, Clone)]
struct Trust {
    roots: Vec<CertificateDer<'static>>,
    /// The highest epoch of an issuing CA that this agent has seen; below it is nobody's.
    floor: u64,
}

impl AgentIdentity {
    /// Reads what `join` stored. The certificate may have ended: then it is good for a recovery.
    pub fn load(state: &Path) -> Result<Self, IdentityError> {
        let stored = stored::read(state)?;
        let damaged = |reason: String| IdentityError::Damaged { path: stored::path(state), reason };
        let at = proof::within_life(&stored.chain)?;
        let roots = vec![stored.root];
        let Proved { domain, name, instance } = proof::of(&stored.chain, &roots, at).map_err(damaged)?;
        let floor = stored::floor(state).max(tls::epoch(&stored.chain));
        let tls = Identity::new(stored.chain, stored.key).map_err(|e| damaged(e.to_string()))?;
        let trust = Trust { roots, floor };
        Ok(Self::new(Source::State(state.to_owned()), (domain, name, instance), trust, tls))
    }

    /// Reads what was made elsewhere.
    pub fn elsewhere(files: &Files) -> Result<Self, IdentityError> {
        let read = files.read()?;
        let Proved { domain, name, instance } = read.proved;
        let trust = Trust { roots: read.roots, floor: 0 };
        let tls = Identity::new(read.chain, read.key)?;
        Ok(Self::new(Source::Elsewhere(files.clone()), (domain, name, instance), trust, tls))
    }

    /// Stores what a join was granted, in place of any identity before it.
    pub(crate) fn store(
        state: &Path,
        request: &Renewal,
        chain: Vec<Vec<u8>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let chain = proof::without_roots(proof::parsed(chain)?, &[&root]);
        let at = proof::about_now(&chain)?;
        let roots = vec![root];
        let proved = proof::of(&chain, &roots, at).map_err(IdentityError::Foreign)?;
        let tls = Identity::new(chain.clone(), stored::der(request.key()))?;
        let floor = tls::epoch(&chain);
        // The floor first: one that is too high for this identity would keep it out for good.
        stored::keep_floor(state, floor)?;
        stored::write(state, request.key(), &chain, &roots[0])?;
        stored::forget_next_key(state);
        let whose = (proved.domain, proved.name, proved.instance);
        Ok(Self::new(Source::State(state.to_owned()), whose, Trust { roots, floor }, tls))
    }

    fn new(
        source: Source,
        (domain, name, instance): (TrustDomain, AgentName, InstanceId),
        trust: Trust,
        tls: Identity,
    ) -> Self {
        let (trust, tls) = (Mutex::new(trust), Arc::new(tls));
        Self { source, name, instance, domain, trust, tls, changes: watch::Sender::new(()) }
    }

    pub fn name(&self) -> &AgentName {
        &self.name
    }

    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root that the invite pinned, or the one that followed it; of an identity made elsewhere, those of its bundle.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.trust().roots.clone()
    }

    /// Relays below this epoch are refused.
    pub fn floor(&self) -> u64 {
        self.trust().floor
    }

    /// What tunnels show; renewed in place.
    pub fn tls(&self) -> Arc<Identity> {
        self.tls.clone()
    }

    /// Fires when the certificate was renewed, recovered or read again.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// How long until the current certificate has lived half its life, zero from then on; none where it is renewed elsewhere.
    pub fn renew_in(&self, now: SystemTime) -> Option<Duration> {
        let Source::State(_) = &self.source else { return None };
        let (start, end) = self.dates();
        let half = SystemTime::UNIX_EPOCH + Duration::from_secs(start.midpoint(end));
        Some(half.duration_since(now).unwrap_or_default())
    }

    /// From the certificate's first second to its last.
    pub fn life(&self) -> Duration {
        let (start, end) = self.dates();
        Duration::from_secs(end.saturating_sub(start))
    }

    /// When the certificate begins.
    pub fn not_before(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.dates().0)
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.dates().1)
    }

    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after()
    }

    /// The certificate's first and last second, since the epoch.
    fn dates(&self) -> (u64, u64) {
        proof::dates(&self.tls.chain()).unwrap_or_default()
    }

    /// Where certificates made elsewhere are read from.
    pub fn files(&self) -> Option<&Files> {
        match &self.source {
            Source::State(_) => None,
            Source::Elsewhere(files) => Some(files),
        }
    }

    fn state(&self) -> Result<&Path, IdentityError> {
        match &self.source {
            Source::State(state) => Ok(state),
            Source::Elsewhere(_) => Err(IdentityError::Elsewhere),
        }
    }

    /// A request for the next certificate. Its key is on disk from now on until its certificate is: were the answer lost, the relay would
    /// know that key as the newest. Blocks on the disk.
    pub fn renewal(&self) -> Result<Renewal, IdentityError> {
        Ok(self.next()?.0)
    }

    /// The same, and whether the key was there before.
    fn next(&self) -> Result<(Renewal, bool), IdentityError> {
        let state = self.state()?;
        let own = self.tls.chain().first().map(tls::public_key).transpose()?;
        // A crash may have left it behind after its certificate was stored.
        let is_new = |key: &Zeroizing<KeyPair>| Some(key.subject_public_key_info()) != own;
        if let Some(key) = stored::next_key(state)?.filter(is_new) {
            return Ok((Renewal::of(key)?, true));
        }
        let key = stored::new_key()?;
        stored::keep_next_key(state, &key)?;
        Ok((Renewal::of(key)?, false))
    }

    /// What to recover with. Blocks on the disk.
    pub(crate) fn recovery(&self) -> Result<Recovery, IdentityError> {
        let own = stored::own_key(self.state()?)?;
        let (next, is_asked) = self.next()?;
        Ok(Recovery { next, is_asked, own: OwnKey(own) })
    }

    /// Takes the answer to a renewal or recovery into use, on disk first. Blocks on the disk.
    ///
    /// # Errors
    /// The chain is not for this agent's name and instance, not for the renewal's key, of an authority that was replaced, or does not end in
    /// the pinned root or the one that follows it: then nothing changes.
    #[expect(clippy::needless_pass_by_value, reason = "a renewal's key is for one answer: it ends here")]
    pub fn accept(&self, renewal: Renewal, chain: Vec<Vec<u8>>) -> Result<(), IdentityError> {
        let state = self.state()?;
        let Trust { roots, floor } = self.trust().clone();
        let old = roots.first().ok_or(IdentityError::Elsewhere)?;
        let chain = proof::parsed(chain)?;
        let root = tls::successor(old, &chain);
        let has_moved = root.is_some();
        let root = root.unwrap_or_else(|| old.clone());
        let chain = proof::without_roots(chain, &[old, &root]);
        let at = proof::about_now(&chain)?;
        let roots = vec![root];
        let Proved { domain, name, instance } =
            proof::of(&chain, &roots, at).map_err(IdentityError::Foreign)?;
        if (&domain, &name, &instance) != (&self.domain, &self.name, &self.instance) {
            let text = format!("it is for {name}/{instance} of {domain}");
            return Err(IdentityError::Foreign(text));
        }
        let epoch = tls::epoch(&chain);
        if epoch < floor {
            let text = format!("its authority has epoch {epoch}, and {floor} was seen before");
            return Err(IdentityError::Foreign(text));
        }
        if Self::load(state).is_ok_and(|stored| stored.instance != self.instance) {
            return Err(IdentityError::Replaced(stored::path(state)));
        }
        // Refuses a leaf of another key before anything is written.
        Identity::new(chain.clone(), stored::der(renewal.key()))?;
        stored::write(state, renewal.key(), &chain, &roots[0])?;
        self.tls.replace(chain, stored::der(renewal.key()))?;
        if has_moved {
            tracing::info!("this agent trusts the relay's new root from now on");
        }
        self.trust().roots = roots;
        self.saw(epoch);
        stored::forget_next_key(state);
        self.changes.send_replace(());
        Ok(())
    }

    /// An issuing CA of this epoch stands behind a chain that was proved: none before it counts any more. Blocks on the disk where that is
    /// news.
    pub(crate) fn saw(&self, epoch: u64) {
        // Elsewhere's authorities may bear such numbers for reasons of their own.
        let Source::State(state) = &self.source else { return };
        if epoch <= self.floor() {
            return;
        }
        self.trust().floor = epoch;
        if let Err(error) = stored::keep_floor(state, epoch) {
            tracing::error!(%error, "the newest authority's epoch is not on disk");
        }
    }

    /// Reads files made elsewhere once more and takes them into use. Blocks on the disk.
    ///
    /// # Errors
    /// They do not speak for this agent, or do not belong together: then nothing changes.
    pub(crate) fn read_again(&self) -> Result<(), IdentityError> {
        let Source::Elsewhere(files) = &self.source else { return Ok(()) };
        let read = files.read()?;
        let Proved { domain, name, instance } = &read.proved;
        if (domain, name, instance) != (&self.domain, &self.name, &self.instance) {
            let reason =
                format!("it is for {name}/{instance} of {domain}; restart this agent if it is to be that");
            return Err(IdentityError::Unfit { path: files.cert.clone(), reason });
        }
        self.tls.replace(read.chain, read.key)?;
        self.trust().roots = read.roots;
        self.changes.send_replace(());
        Ok(())
    }

    /// What is kept is whole at every point where a panic could have left it.
    fn trust(&self) -> MutexGuard<'_, Trust> {
        lock(&self.trust)
    }
}

#[cfg(test)]
pub(crate) mod tests;
