//! Reads the authority that is to be in force, whosever it is. Takes a directory or the operator's files; gives the whole, with a hash of what
//! was read; refuses parts that do not belong together, keys that others may read, and authorities whose certificates nobody would believe.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use postern_base::id::{SpiffeId, TrustDomain};
use postern_wire::tls::{self, Identity, Roots};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::files::{self, ISSUING, ISSUING_KEY, OVERLAP, ROOT, SEED, read_private};
use super::{CaError, CaSource, Hand, InForce, io_error, make, new_key};

type Hash = [u8; 32];

pub(super) fn load(dir: &Path, source: &CaSource, domain: &TrustDomain) -> Result<(InForce, Hash), CaError> {
    match source {
        CaSource::Ours => Ok((ours(dir)?, Hash::default())),
        CaSource::Own { cert, key } => own(cert, key),
        CaSource::Elsewhere { bundle, cert, key } => elsewhere(bundle, cert, key, domain),
    }
}

/// What the relay's own secrets are made of: the same after every restart and rotation. State directories of before have none, and there the
/// key at hand serves until the next rotation.
pub(super) fn seed(dir: &Path, hand: &Hand) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let path = dir.join(SEED);
    if path.exists() {
        return read_private(&path);
    }
    Ok(match hand {
        Hand::Signs { key, .. } => Zeroizing::new(key.serialize_der()),
        Hand::Shows { key, .. } => Zeroizing::new(key.secret_der().to_vec()),
    })
}

/// What `init` and rotations made.
pub(super) fn ours(dir: &Path) -> Result<InForce, CaError> {
    files::settle(dir)?;
    let paths: [PathBuf; 3] = [ROOT, ISSUING, ISSUING_KEY].map(|name| dir.join(name));
    match files::missing(&paths) {
        none if none.is_empty() => {}
        all if all.len() == paths.len() => return Err(CaError::Missing(dir.to_owned())),
        mut some => return Err(CaError::Incomplete(some.swap_remove(0))),
    }
    let [root_path, issuing_path, key_path] = &paths;
    let root = files::read_certificate(root_path)?;
    let issuing = files::read_certificate(issuing_path)?;
    let key = files::read_key(key_path)?;
    make::belongs(&issuing, &*key, || "issuing.pem and issuing.key".to_owned())?;
    if !signed_by(&issuing, &root) {
        return Err(CaError::Mismatch("root.pem and issuing.pem".to_owned()));
    }
    let overlap = dir.join(OVERLAP);
    let overlap = overlap.exists().then(|| files::read_certificates(&overlap)).transpose()?;
    let overlap = overlap.unwrap_or_default();
    if let [cross, before] = overlap.as_slice()
        && tls::successor(before, &[cross.clone(), root.clone()]).as_ref() != Some(&root)
    {
        return Err(CaError::Mismatch("root.pem and overlap.pem".to_owned()));
    }
    InForce::ours(root, issuing, key, overlap)
}

impl InForce {
    /// Of our own parts; `overlap` is empty, or what vouches for the root and the root before.
    pub(super) fn ours(
        root: CertificateDer<'static>,
        issuing: CertificateDer<'static>,
        key: Zeroizing<KeyPair>,
        overlap: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CaError> {
        let epoch = tls::own_epoch(&issuing);
        let ends = ends(&issuing)?;
        let mut overlap = overlap.into_iter();
        let (cross, before) = (overlap.next(), overlap.next());
        let above = std::iter::once(issuing).chain(cross).chain([root.clone()]).collect();
        let trusted = std::iter::once(root).chain(before).collect();
        Ok(Self { trusted, above, epoch, hand: Hand::Signs { ends, key } })
    }

    /// What it signs or shows is in force, and an agent with a certificate of this authority's would be believed, under each of the roots by
    /// itself.
    pub(super) fn is_good(&self, source: &CaSource, now: SystemTime) -> Result<(), CaError> {
        let expired = |path: &Path| CaError::OwnExpired(path.to_owned());
        let path = match source {
            CaSource::Ours => None,
            CaSource::Own { cert, .. } | CaSource::Elsewhere { cert, .. } => Some(cert.as_path()),
        };
        match &self.hand {
            Hand::Signs { ends, .. } if *ends <= now => return Err(path.map_or(CaError::Expired, expired)),
            Hand::Shows { leaf, .. } => {
                let over = ends(leaf)? <= now;
                return if over { Err(path.map_or(CaError::Expired, expired)) } else { Ok(()) };
            }
            Hand::Signs { .. } => {}
        }
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let names = ("trial", "spiffe://trial.invalid/trial".to_owned());
        let trial = self.leaf(names, &*new_key()?, usage, Duration::from_mins(1), now)?;
        for root in &self.trusted {
            let believed = Roots::new(std::slice::from_ref(root))?.verify(&trial.chain, now);
            believed.map_err(|e| match path {
                Some(path) => CaError::Damaged {
                    path: path.to_owned(),
                    reason: format!("nobody would believe what it signs: {e}"),
                },
                None => CaError::Foreign(e),
            })?;
        }
        Ok(())
    }
}

/// An issuing CA of the operator's: the certificate, then those above it, up to and with the root. Of several self-signed ones the first is the
/// root, others are roots before it that are to be believed still.
fn own(cert: &Path, key: &Path) -> Result<(InForce, Hash), CaError> {
    let (certificates, secret) = (std::fs::read(cert).map_err(io_error(cert))?, read_private(key)?);
    let hash = hash(&[&certificates, &secret]);
    let chain = files::certificates_in(&certificates, cert)?;
    let key = files::key_in(&secret, key)?;
    let issuing = chain.first().ok_or_else(|| CaError::Missing(cert.to_owned()))?.clone();
    make::belongs(&issuing, &*key, || format!("the first certificate in {} and its key", cert.display()))?;
    let mut trusted: Vec<_> = chain.iter().filter(|one| signed_by(one, one)).cloned().collect();
    if trusted.is_empty() {
        let reason = "the root is not in it: put it at the end, since agents pin it".to_owned();
        return Err(CaError::Damaged { path: cert.to_owned(), reason });
    }
    trusted.dedup();
    let above = chain.into_iter().filter(|one| !trusted.iter().skip(1).any(|old| old == one)).collect();
    let (epoch, ends) = (tls::own_epoch(&issuing), ends(&issuing)?);
    Ok((InForce { trusted, above, epoch, hand: Hand::Signs { ends, key } }, hash))
}

/// Roots to believe, and a certificate for this relay.
fn elsewhere(
    bundle: &Path,
    cert: &Path,
    key: &Path,
    domain: &TrustDomain,
) -> Result<(InForce, Hash), CaError> {
    let read = |path: &Path| std::fs::read(path).map_err(io_error(path));
    let (roots, certificates, secret) = (read(bundle)?, read(cert)?, read_private(key)?);
    let hash = hash(&[&roots, &certificates, &secret]);
    let damaged = |reason: String| CaError::Damaged { path: cert.to_owned(), reason };
    let trusted = files::certificates_in(&roots, bundle)?;
    let mut above = files::certificates_in(&certificates, cert)?;
    let chain = above.clone();
    let leaf = above.remove(0);
    match tls::spiffe_id(&leaf).map_err(|e| damaged(e.to_string()))? {
        SpiffeId::Relay { domain: found, .. } if found == *domain => {}
        other @ (SpiffeId::Relay { .. } | SpiffeId::Agent { .. }) => {
            return Err(damaged(format!("it is for {other}, not for a relay of {domain}")));
        }
    }
    let private = PrivateKeyDer::from_pem_slice(&secret);
    let key = private.map_err(|e| CaError::Damaged { path: key.to_owned(), reason: e.to_string() })?;
    let key = Zeroizing::new(key);
    Identity::new(chain, key.clone_key()).map_err(|e| damaged(e.to_string()))?;
    Ok((InForce { trusted, above, epoch: 0, hand: Hand::Shows { leaf, key } }, hash))
}

pub(in crate::enroll) fn signed_by(certificate: &CertificateDer<'_>, by: &CertificateDer<'_>) -> bool {
    let parsed = (X509Certificate::from_der(certificate), X509Certificate::from_der(by));
    let (Ok((_, certificate)), Ok((_, by))) = parsed else { return false };
    certificate.issuer() == by.subject() && certificate.verify_signature(Some(by.public_key())).is_ok()
}

pub(super) fn ends(certificate: &CertificateDer<'_>) -> Result<SystemTime, CaError> {
    let seconds = u64::try_from(tls::not_after(certificate)?).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
