//! Who this agent is: one file, `identity.pem` in the state directory (0600), with its key, its chain and the pinned root. One file, so
//! that a crash leaves the old identity or the new one, never the key of one with the certificate of the other.
//!
//! Takes chains from the relay; gives the identity that tunnels show; refuses whatever does not speak for the same agent under the
//! same root.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use postern_base::file::{self, Access};
use postern_base::id::{AgentName, InstanceId, SpiffeId, TrustDomain};
use postern_wire::tls::{self, Identity, TlsError};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use zeroize::Zeroizing;

/// Leaf, issuing CA and root; a longer chain is not one of ours.
const MAX_CHAIN: usize = 4;

/// Why there is no identity to use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("this agent has no identity in {0}: ask for an invite and run: postern-agent join RELAY")]
    Missing(PathBuf),
    #[error(
        "the certificate of agent {name} expired at {at}: ask for a new invite and run: postern-agent join RELAY"
    )]
    Expired { name: AgentName, at: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged ({reason}): ask for a new invite and run: postern-agent join RELAY")]
    Damaged { path: PathBuf, reason: String },
    #[error("the relay sent a certificate that is not for this agent: {0}")]
    Foreign(String),
    #[error("an agent already runs with this state directory: stop it first")]
    Running,
    #[error("{0} was replaced by another join: restart this agent")]
    Replaced(PathBuf),
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A fresh key, and the request for a certificate that it signed.
pub struct Renewal {
    csr: Vec<u8>,
    key: Zeroizing<KeyPair>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewal(…)")
    }
}

impl Renewal {
    pub(crate) fn new() -> Result<Self, IdentityError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut params = CertificateParams::default();
        // The relay takes the key alone and writes every name itself.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "postern-agent");
        let csr = params.serialize_request(&*key)?.der().to_vec();
        Ok(Self { csr, key })
    }

    /// PKCS #10, DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }
}

/// The identity in use. It changes only by [`AgentIdentity::accept`], and then only in key, chain and dates.
#[derive(Debug)]
pub struct AgentIdentity {
    path: PathBuf,
    name: AgentName,
    instance: InstanceId,
    domain: TrustDomain,
    root: CertificateDer<'static>,
    tls: Arc<Identity>,
}

impl AgentIdentity {
    /// Reads what `join` stored.
    pub fn load(state: &Path) -> Result<Self, IdentityError> {
        let path = path(state);
        let io_error = |source| IdentityError::Io { path: path.clone(), source };
        if !path.exists() {
            return Err(IdentityError::Missing(state.to_owned()));
        }
        file::check_private(&path).map_err(io_error)?;
        let pem = Zeroizing::new(fs::read(&path).map_err(io_error)?);
        let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| damaged(e.to_string()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let mut chain = chain.map_err(|e| damaged(e.to_string()))?;
        let root = chain.pop().ok_or_else(|| damaged("no certificates".to_owned()))?;
        let leaf = chain.first().ok_or_else(|| damaged("only one certificate".to_owned()))?;
        let (start, end) = (seconds(tls::not_before(leaf)?), seconds(tls::not_after(leaf)?));
        let now = UnixTime::now().as_secs();
        // A clock that is behind, as before NTP has set it, is no reason to call the file damaged.
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.clamp(start, end)));
        let (domain, name, instance) = verify(&chain, &root, at).map_err(damaged)?;
        if now > end {
            return Err(IdentityError::Expired { name, at: text(end) });
        }
        let tls = Arc::new(Identity::new(chain, key).map_err(|e| damaged(e.to_string()))?);
        Ok(Self { path, name, instance, domain, root, tls })
    }

    /// Stores what a join was granted, in place of any identity before it.
    pub(crate) fn store(
        state: &Path,
        request: &Renewal,
        chain: Vec<Vec<u8>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let chain = without_root(chain, &root)?;
        let (domain, name, instance) =
            verify(&chain, &root, UnixTime::now()).map_err(IdentityError::Foreign)?;
        let tls = Arc::new(Identity::new(chain.clone(), der(&request.key))?);
        let path = path(state);
        write(&path, &request.key, &chain, &root)?;
        Ok(Self { path, name, instance, domain, root, tls })
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

    /// The root that the invite pinned.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// What tunnels show; renewed in place.
    pub fn tls(&self) -> Arc<Identity> {
        self.tls.clone()
    }

    /// How long until the current certificate has lived half its life; zero from then on.
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        let chain = self.tls.chain();
        let date = |of: fn(&CertificateDer<'_>) -> Result<i64, TlsError>| {
            chain.first().and_then(|leaf| of(leaf).ok())
        };
        let (start, end) =
            (date(tls::not_before).map_or(0, seconds), date(tls::not_after).map_or(0, seconds));
        let half = SystemTime::UNIX_EPOCH + Duration::from_secs(start.midpoint(end));
        half.duration_since(now).unwrap_or_default()
    }

    /// A request for the next certificate, with a new key.
    pub fn renewal(&self) -> Result<Renewal, IdentityError> {
        Renewal::new()
    }

    /// Takes the answer to a renewal into use, on disk first. Blocks on the disk.
    ///
    /// # Errors
    /// The chain is not for this agent's name and instance, not for the renewal's key, or does not end in the pinned root: then nothing
    /// changes.
    #[expect(clippy::needless_pass_by_value, reason = "a renewal's key is for one answer: it ends here")]
    pub fn accept(&self, renewal: Renewal, chain: Vec<Vec<u8>>) -> Result<(), IdentityError> {
        let chain = without_root(chain, &self.root)?;
        let (domain, name, instance) =
            verify(&chain, &self.root, UnixTime::now()).map_err(IdentityError::Foreign)?;
        if (&domain, &name, &instance) != (&self.domain, &self.name, &self.instance) {
            let text = format!("it is for {name}/{instance} of {domain}");
            return Err(IdentityError::Foreign(text));
        }
        let stored = self.path.parent().map(Self::load);
        if stored.is_some_and(|stored| stored.is_ok_and(|stored| stored.instance != self.instance)) {
            return Err(IdentityError::Replaced(self.path.clone()));
        }
        // Refuses a leaf of another key before anything is written.
        Identity::new(chain.clone(), der(&renewal.key))?;
        write(&self.path, &renewal.key, &chain, &self.root)?;
        Ok(self.tls.replace(chain, der(&renewal.key))?)
    }
}

/// Makes the state directory this process's own for as long as what is given lives: two agents would put one audit log aside over each
/// other. The kernel ends it with the process, however that ends.
pub(crate) fn only_one(state: &Path) -> Result<File, IdentityError> {
    let path = state.join("run.lock");
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = match opened {
        // As in a directory that has no identity: `join` comes first.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(IdentityError::Missing(state.to_owned()));
        }
        opened => opened.map_err(|source| IdentityError::Io { path: path.clone(), source })?,
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IdentityError::Running),
        Err(TryLockError::Error(source)) => Err(IdentityError::Io { path, source }),
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("identity.pem")
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// What is shown in handshakes: the other side has the root already.
fn without_root(
    chain: Vec<Vec<u8>>,
    root: &CertificateDer<'static>,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    if chain.len() > MAX_CHAIN {
        return Err(IdentityError::Foreign(format!("a chain of {} certificates", chain.len())));
    }
    Ok(chain.into_iter().map(CertificateDer::from).filter(|certificate| certificate != root).collect())
}

/// That `chain` ends in `root`, may be used to dial, and speaks for an agent; gives which.
fn verify(
    chain: &[CertificateDer<'static>],
    root: &CertificateDer<'static>,
    at: UnixTime,
) -> Result<(TrustDomain, AgentName, InstanceId), String> {
    let (leaf, intermediates) = chain.split_first().ok_or("it is empty")?;
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(|e| e.to_string())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    let verifier = verifier.build().map_err(|e| e.to_string())?;
    verifier.verify_client_cert(leaf, intermediates, at).map_err(|e| e.to_string())?;
    match tls::spiffe_id(leaf).map_err(|e| e.to_string())? {
        SpiffeId::Agent { domain, name, instance } => Ok((domain, name, instance)),
        SpiffeId::Relay { .. } => Err("it belongs to a relay".to_owned()),
    }
}

fn write(
    path: &Path,
    key: &KeyPair,
    chain: &[CertificateDer<'static>],
    root: &CertificateDer<'static>,
) -> Result<(), IdentityError> {
    let mut pem = Zeroizing::new(key.serialize_pem());
    for certificate in chain.iter().chain([root]) {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = BASE64.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    let written = file::write_atomic(path, pem.as_bytes(), Access::Private);
    written.map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

/// Dates before 1970 do not occur in certificates that were made today.
fn seconds(date: i64) -> u64 {
    u64::try_from(date).unwrap_or(0)
}

fn text(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
