//! The agents' certificate authority: roots that agents pin, and an issuing CA that signs the leaves of agents and relays. It changes while
//! the relay runs: by rotation where it is our own, by changed files where it is somebody else's.
//!
//! Takes a directory, names and public keys; gives chains whose every field is ours. Of a certificate request only the proved key is
//! used: names, usages and extensions that it asks for are never looked at. The root's key is never in a running relay.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use postern_base::id::{SpiffeId, TrustDomain};
use postern_base::sync::lock;
use postern_wire::tls::{self, Roots, SKEW, TlsError};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{Shown, seconds};

mod error;
mod files;
mod init;
mod load;
mod make;
mod rotate;
mod show;
#[cfg(test)]
mod tests;

pub use error::CaError;
pub(super) use files::{Change, OVERLAP, commit, settle};
pub(super) use load::signed_by;
pub use make::{Signed, root_key, sign};
pub use rotate::{NewRootKey, Prepared};
pub use show::{Bearer, BehindRow, CaReport, Standing};

/// An uncompressed P-256 point: the only keys that are signed here.
const P256_POINT: usize = 65;

/// Whose authority signs the agents' certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CaSource {
    /// The one that `init` makes in the state directory.
    #[default]
    Ours,
    /// An issuing CA of the operator's own: PEM files, re-read when they change.
    Own { cert: PathBuf, key: PathBuf },
    /// Certificates are made elsewhere: here are the roots to believe, and the relay's own certificate and key.
    Elsewhere { bundle: PathBuf, cert: PathBuf, key: PathBuf },
}

/// A certificate that was just signed, with its chain.
pub(super) struct Issued {
    /// Leaf, issuing CA, what vouches for a new root, root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Hexadecimal.
    pub(super) serial: String,
    /// Seconds since the epoch.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    /// The fingerprint of the key that it certifies.
    pub(super) key: [u8; 32],
    /// Of the authority that signed it.
    pub(super) epoch: u64,
}

/// What a chain of ours says.
#[derive(Debug)]
pub(super) struct Vouched {
    pub(super) id: SpiffeId,
    pub(super) shown: Shown,
}

/// What is in force, exchanged as a whole.
struct InForce {
    /// What agents are believed under; the first is what invites pin, others are on their way out.
    trusted: Vec<CertificateDer<'static>>,
    /// What stands above a leaf: issuing CA, what vouches for a new root, root.
    above: Vec<CertificateDer<'static>>,
    epoch: u64,
    hand: Hand,
}

/// What this relay holds a key for.
enum Hand {
    /// The issuing CA.
    Signs { ends: SystemTime, key: Zeroizing<KeyPair> },
    /// Its own certificate alone.
    Shows { leaf: CertificateDer<'static>, key: Zeroizing<PrivateKeyDer<'static>> },
}

/// The authority as a running relay needs it: no root key.
pub(super) struct Ca {
    dir: PathBuf,
    source: CaSource,
    roots: Arc<Roots>,
    current: ArcSwap<InForce>,
    seed: Zeroizing<Vec<u8>>,
    /// A hash of somebody else's files as they are in use, to tell a change from a touch.
    loaded: Mutex<[u8; 32]>,
    /// A key that waits for the root's signature. Held through a whole change.
    pending: Mutex<Option<rotate::Pending>>,
}

impl Ca {
    /// Makes what is missing in `dir`; gives the paths that it made. What is there stays as it is.
    pub(super) fn init(
        dir: &Path,
        source: &CaSource,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Vec<PathBuf>, CaError> {
        init::init(dir, source, domain, now)
    }

    /// Loads the authority and checks that its parts belong together. Ends a rotation that a crash interrupted.
    pub(super) fn open(dir: &Path, source: CaSource, domain: &TrustDomain) -> Result<Self, CaError> {
        let (current, loaded) = load::load(dir, &source, domain)?;
        let seed = load::seed(dir, &current.hand)?;
        let roots = Roots::new(&current.trusted)?;
        let current = ArcSwap::from_pointee(current);
        let (loaded, pending) = (Mutex::new(loaded), Mutex::default());
        Ok(Self { dir: dir.to_owned(), source, roots, current, seed, loaded, pending })
    }

    /// Reads somebody else's files again; says whether they changed and are in use now.
    pub(super) fn refresh(&self, domain: &TrustDomain, now: SystemTime) -> Result<bool, CaError> {
        if self.source == CaSource::Ours {
            return Ok(false);
        }
        let mut loaded = lock(&self.loaded);
        let (next, hash) = load::load(&self.dir, &self.source, domain)?;
        if *loaded == hash {
            return Ok(false);
        }
        next.is_good(&self.source, now)?;
        self.put(next)?;
        *loaded = hash;
        Ok(true)
    }

    /// That agents would believe what it signs or shows now.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), CaError> {
        self.current.load().is_good(&self.source, now)
    }

    /// From now on this.
    fn put(&self, next: InForce) -> Result<(), CaError> {
        self.roots.replace(&next.trusted)?;
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// What agents are believed under, at any time.
    pub(super) fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().trusted.clone()
    }

    /// What invites pin.
    pub(super) fn root(&self) -> CertificateDer<'static> {
        // Whatever is loaded has at least one.
        self.current.load().trusted.first().cloned().unwrap_or_else(|| Vec::new().into())
    }

    /// The epoch of the issuing CA; 0 where certificates are made elsewhere.
    pub(super) fn epoch(&self) -> u64 {
        self.current.load().epoch
    }

    /// Whether agents get their certificates here.
    pub(super) fn issues(&self) -> bool {
        !matches!(self.source, CaSource::Elsewhere { .. })
    }

    /// A secret of this relay's own for one purpose.
    pub(super) fn derived(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed);
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, purpose).as_ref());
        secret
    }

    /// Chain and key with which a relay serves, fresh where they are made here. All trusted roots are in it, for agents that hold an invite to
    /// any of them.
    pub(super) fn relay(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let current = self.current.load();
        let (mut chain, key) = match &current.hand {
            Hand::Signs { .. } => {
                let key = new_key()?;
                let issued = current.leaf(names(id), &*key, ExtendedKeyUsagePurpose::ServerAuth, ttl, now)?;
                (issued.chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            }
            Hand::Shows { leaf, key } => {
                let chain = std::iter::once(leaf).chain(&current.above).cloned().collect();
                (chain, key.clone_key())
            }
        };
        if self.issues() {
            chain.extend(current.trusted.iter().skip(1).cloned());
        }
        Ok((chain, key))
    }

    /// A certificate for the key that signed `csr` (DER): it dials.
    pub(super) fn agent(
        &self,
        id: &SpiffeId,
        csr: &[u8],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let request = CertificateSigningRequestParams::from_der(&csr.into())
            .map_err(|e| CaError::Request(e.to_string()))?;
        let key = request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(CaError::Request("only ECDSA P-256 keys are signed here".into()));
        }
        self.current.load().leaf(names(id), &key, ExtendedKeyUsagePurpose::ClientAuth, ttl, now)
    }

    /// What an agent's chain says, if it was one of ours at that time.
    pub(super) fn vouches(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<Vouched, CaError> {
        self.roots.verify(chain, at)?;
        let leaf = chain.first().ok_or_else(|| TlsError::Certificate("there is none".to_owned()))?;
        Ok(Vouched { id: tls::spiffe_id(leaf)?, shown: Shown::of(chain)? })
    }

    /// Whether the authority in force issued it, which alone says that it may be believed: the key of one that was replaced may be in other
    /// hands.
    pub(super) fn is_current(&self, shown: &Shown) -> bool {
        match self.source {
            CaSource::Ours => shown.epoch >= self.epoch(),
            CaSource::Own { .. } => {
                let current = self.current.load();
                let issuing = current.above.first().and_then(|issuing| tls::pin(issuing).ok());
                issuing.is_some() && issuing == shown.issuer
            }
            CaSource::Elsewhere { .. } => true,
        }
    }
}

impl InForce {
    /// A certificate for one name; what people read is beside it.
    fn leaf(
        &self,
        (name, uri): (&str, String),
        key: &impl PublicKeyData,
        usage: ExtendedKeyUsagePurpose,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let (Hand::Signs { ends, key: signer }, Some(issuing)) = (&self.hand, self.above.first()) else {
            return Err(CaError::Elsewhere);
        };
        if *ends <= now {
            return Err(CaError::Expired);
        }
        let serial = make::serial()?;
        let not_after = (*ends).min(now + ttl);
        let mut params = CertificateParams::default();
        // The clocks of agents may lag, yet not by so much of a life that is short.
        let not_before = now - SKEW.min(ttl / 10);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.distinguished_name = make::common_name(name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &Issuer::from_ca_cert_der(issuing, &**signer)?)?;
        Ok(Issued {
            chain: std::iter::once(leaf.into()).chain(self.above.iter().cloned()).collect(),
            serial: tls::hex(&serial),
            not_before: seconds(not_before),
            not_after: seconds(not_after),
            key: tls::fingerprint(&key.subject_public_key_info()),
            epoch: self.epoch,
        })
    }
}

fn names(id: &SpiffeId) -> (&str, String) {
    let name = match id {
        SpiffeId::Agent { name, .. } => name.as_str(),
        SpiffeId::Relay { name, .. } => name.as_str(),
    };
    (name, id.to_string())
}

fn new_key() -> Result<Zeroizing<KeyPair>, CaError> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io { path, source }
}
