//! The agents' certificate authority: a root that agents pin, and an issuing CA that signs the leaves of agents and relays.
//!
//! Takes a directory, names and public keys; gives chains whose every field is ours. Of a certificate request only the proved key is
//! used: names, usages and extensions that it asks for are never looked at.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use postern_base::file::{self, Access};
use postern_base::id::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::seconds;

/// The root outlives every issuing CA; agents pin its key, so that a new root means inviting all of them anew.
const ROOT_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// The issuing CA's key lies on a server that faces the internet: what a thief can do with it ends by itself (protocol.md).
const ISSUING_LIFE: Duration = Duration::from_hours(90 * 24);
/// From here on the log asks for a new issuing CA.
const ISSUING_WARN: Duration = Duration::from_hours(14 * 24);
/// Clocks of agents may lag by this much, or by a tenth of the certificate's life where that is less.
const SKEW: Duration = Duration::from_mins(5);
/// An uncompressed P-256 point: the only keys that are signed here.
const P256_POINT: usize = 65;

/// Why the certificate authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("there is no certificate authority in {0}: run: postern-relay init")]
    Missing(PathBuf),
    #[error(
        "{0} is missing: restore it from a backup, or put root.key back beside it and run: postern-relay init"
    )]
    Incomplete(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a certificate or key of ours: {reason}; restore it from a backup")]
    Damaged { path: PathBuf, reason: String },
    #[error("{0} do not belong together: restore both from the same backup")]
    Mismatch(String),
    #[error(
        "the root's key is not in {0}, and a new issuing CA needs it: put root.key back for this one command"
    )]
    NoRootKey(PathBuf),
    #[error(
        "the issuing CA in {0} has expired: put root.key back there, move issuing.pem and issuing.key away, and run: postern-relay init"
    )]
    Expired(PathBuf),
    #[error("the certificate request is not good: {0}")]
    Request(String),
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// A certificate that was just signed, with its chain.
pub(super) struct Issued {
    /// Leaf, issuing CA, root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Hexadecimal.
    pub(super) serial: String,
    /// Seconds since the epoch.
    pub(super) not_after: u64,
}

/// The part of the authority that a running relay needs: no root key.
pub(super) struct Ca {
    dir: PathBuf,
    root: CertificateDer<'static>,
    issuing: CertificateDer<'static>,
    issuing_ends: SystemTime,
    key: Zeroizing<KeyPair>,
}

impl Ca {
    /// Makes what is missing in `dir`; gives the paths that it made. What is there stays as it is.
    pub(super) fn init(dir: &Path, domain: &TrustDomain, now: SystemTime) -> Result<Vec<PathBuf>, CaError> {
        file::create_private_dir(dir).map_err(io_error(dir))?;
        let paths = Paths::new(dir);
        let mut made = Vec::new();
        if !paths.root.exists() {
            if (paths.issuing.exists() || paths.issuing_key.exists()) && !paths.root_key.exists() {
                return Err(CaError::Incomplete(paths.root));
            }
            let key = load_or_make_key(&paths.root_key, &mut made)?;
            let params = authority(&format!("Postern root of {domain}"), 1, ROOT_LIFE, now)?;
            write(&paths.root, params.self_signed(&*key)?.pem().as_bytes(), Access::Public, &mut made)?;
        }
        if !paths.issuing.exists() || !paths.issuing_key.exists() {
            if !paths.root_key.exists() {
                return Err(match (paths.issuing.exists(), paths.issuing_key.exists()) {
                    (true, _) => CaError::Incomplete(paths.issuing_key),
                    (false, true) => CaError::Incomplete(paths.issuing),
                    (false, false) => CaError::NoRootKey(dir.to_owned()),
                });
            }
            let root = read_certificate(&paths.root)?;
            let root_key = read_key(&paths.root_key)?;
            belongs(&root, &root_key, "root.pem and root.key")?;
            let root = Issuer::from_ca_cert_der(&root, &*root_key)?;
            let key = load_or_make_key(&paths.issuing_key, &mut made)?;
            let mut params = authority(&format!("Postern issuing CA of {domain}"), 0, ISSUING_LIFE, now)?;
            params.use_authority_key_identifier_extension = true;
            let issuing = params.signed_by(&*key, &root)?;
            write(&paths.issuing, issuing.pem().as_bytes(), Access::Public, &mut made)?;
        }
        Ok(made)
    }

    /// Loads root certificate and issuing CA, and checks that they belong together and are in force.
    pub(super) fn open(dir: &Path, now: SystemTime) -> Result<Self, CaError> {
        let paths = Paths::new(dir);
        let needed = [&paths.root, &paths.issuing, &paths.issuing_key];
        if !needed.iter().any(|path| path.exists()) {
            return Err(CaError::Missing(dir.to_owned()));
        }
        if let Some(missing) = needed.into_iter().find(|path| !path.exists()) {
            return Err(CaError::Incomplete(missing.clone()));
        }
        let root = read_certificate(&paths.root)?;
        let issuing = read_certificate(&paths.issuing)?;
        let key = read_key(&paths.issuing_key)?;
        belongs(&issuing, &key, "issuing.pem and issuing.key")?;
        let damaged = |reason: String| CaError::Damaged { path: paths.issuing.clone(), reason };
        let ends = {
            let (_, root) = X509Certificate::from_der(&root)
                .map_err(|e| CaError::Damaged { path: paths.root.clone(), reason: e.to_string() })?;
            let (_, parsed) = X509Certificate::from_der(&issuing).map_err(|e| damaged(e.to_string()))?;
            parsed
                .verify_signature(Some(root.public_key()))
                .map_err(|_| CaError::Mismatch("root.pem and issuing.pem".into()))?;
            u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0)
        };
        let issuing_ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends);
        match issuing_ends.duration_since(now) {
            Err(_) => return Err(CaError::Expired(dir.to_owned())),
            Ok(left) if left < ISSUING_WARN => tracing::warn!(
                days = left.as_secs() / 86400,
                "the agents' issuing CA ends soon: put root.key back, move issuing.pem and issuing.key away, and run: postern-relay init"
            ),
            Ok(_) => {}
        }
        if paths.root_key.exists() {
            tracing::warn!(path = %paths.root_key.display(), "the root's key is still on this machine: move it to a safe place");
        }
        Ok(Self { dir: dir.to_owned(), root, issuing, issuing_ends, key })
    }

    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A secret for one purpose, made of the issuing key: whoever has that could sign as this relay anyway.
    pub(super) fn derived(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &Zeroizing::new(self.key.serialize_der()));
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, purpose).as_ref());
        secret
    }

    /// A fresh key and its certificate for a relay: it serves.
    pub(super) fn relay(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        let key = new_key()?;
        let issued = self.leaf(id, &*key, ExtendedKeyUsagePurpose::ServerAuth, ttl, now)?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
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
        self.leaf(id, &key, ExtendedKeyUsagePurpose::ClientAuth, ttl, now)
    }

    fn leaf(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        usage: ExtendedKeyUsagePurpose,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        if self.issuing_ends <= now {
            return Err(CaError::Expired(self.dir.clone()));
        }
        let mut serial = [0; 16];
        random(&mut serial)?;
        // A positive number whose first byte is not zero, so that DER and text agree on its digits.
        serial[0] = serial[0] & 0x7f | 0x40;
        let name = match id {
            SpiffeId::Agent { name, .. } => name.as_str(),
            SpiffeId::Relay { name, .. } => name.as_str(),
        };
        let not_after = self.issuing_ends.min(now + ttl);
        let mut params = CertificateParams::default();
        params.not_before = (now - SKEW.min(ttl / 10)).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &Issuer::from_ca_cert_der(&self.issuing, &*self.key)?)?;
        Ok(Issued {
            chain: vec![leaf.into(), self.issuing.clone(), self.root.clone()],
            serial: hex(&serial),
            not_after: seconds(not_after),
        })
    }
}

struct Paths {
    root: PathBuf,
    root_key: PathBuf,
    issuing: PathBuf,
    issuing_key: PathBuf,
}

impl Paths {
    fn new(dir: &Path) -> Self {
        Self {
            root: dir.join("root.pem"),
            root_key: dir.join("root.key"),
            issuing: dir.join("issuing.pem"),
            issuing_key: dir.join("issuing.key"),
        }
    }
}

fn authority(name: &str, depth: u8, life: Duration, now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    random(&mut serial)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn random(bytes: &mut [u8]) -> Result<(), CaError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| CaError::Signing(rcgen::Error::RingUnspecified))
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn new_key() -> Result<Zeroizing<KeyPair>, CaError> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
}

fn load_or_make_key(path: &Path, made: &mut Vec<PathBuf>) -> Result<Zeroizing<KeyPair>, CaError> {
    if path.exists() {
        return read_key(path);
    }
    let key = new_key()?;
    write(path, Zeroizing::new(key.serialize_pem()).as_bytes(), Access::Private, made)?;
    Ok(key)
}

fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, CaError> {
    file::check_private(path).map_err(io_error(path))?;
    let pem = Zeroizing::new(fs::read_to_string(path).map_err(io_error(path))?);
    KeyPair::from_pem(&pem)
        .map(Zeroizing::new)
        .map_err(|e| CaError::Damaged { path: path.to_owned(), reason: e.to_string() })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    let pem = fs::read(path).map_err(io_error(path))?;
    CertificateDer::from_pem_slice(&pem)
        .map_err(|e| CaError::Damaged { path: path.to_owned(), reason: e.to_string() })
}

fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair, what: &str) -> Result<(), CaError> {
    let mismatch = || CaError::Mismatch(what.to_owned());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| mismatch())?;
    let same = *parsed.public_key().subject_public_key.data == *key.public_key_raw();
    if same { Ok(()) } else { Err(mismatch()) }
}

fn write(path: &Path, bytes: &[u8], access: Access, made: &mut Vec<PathBuf>) -> Result<(), CaError> {
    file::write_atomic(path, bytes, access).map_err(io_error(path))?;
    made.push(path.to_owned());
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io { path, source }
}
