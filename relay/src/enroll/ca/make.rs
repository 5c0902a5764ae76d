//! What the root's key is needed for: new roots, certificates that vouch for them, and issuing CAs. Takes keys and dates; gives certificates.
//! This runs in commands, which end when they are done: the root's key never enters a relay that runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postern_base::id::TrustDomain;
use postern_wire::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::files::{self, NEXT_ROOT_KEY, ROOT, ROOT_KEY, certificate_in};
use super::load::signed_by;
use super::rotate::Prepared;
use super::{CaError, SKEW, io_error, seconds};

/// The root outlives every issuing CA.
const ROOT_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// The issuing CA's key lies on a server that faces the internet: what a thief can do with it ends by itself (protocol.md).
const ISSUING_LIFE: Duration = Duration::from_hours(90 * 24);
/// X.520's serialNumber of a name: where an authority bears its epoch.
const EPOCH: [u64; 4] = [2, 5, 4, 5];
/// Below a root stand the cross certificate of the next one and its issuing CA; below that certificate the issuing CA; below that leaves.
const ROOT_DEPTH: u8 = 2;
const CROSS_DEPTH: u8 = 1;
const ISSUING_DEPTH: u8 = 0;

/// By how many seconds a relay's clock may be ahead of the command's. An epoch that the root signed is never taken back, so that one far ahead
/// would lock everybody out.
const AHEAD: u64 = 3600;

/// What the root's key signed, PEM.
#[derive(Debug, Serialize, Deserialize)]
pub struct Signed {
    pub issuing: String,
    pub root: Option<NewRoot>,
}

/// A root in place of the one before.
#[derive(Debug, Serialize, Deserialize)]
pub struct NewRoot {
    pub root: String,
    /// The same name and key, signed by the root before: agents that pin that one believe it, and move.
    pub cross: String,
}

/// The key of the root that is to sign, and where it is: the operator's file, or in the authority's directory as the configuration has it.
/// What the relay says of places counts for nothing: this may be root's doing.
///
/// # Errors
/// It is not there, others may read it, or it is no key.
pub fn root_key(
    prepared: &Prepared,
    dir: &Path,
    given: Option<&Path>,
) -> Result<(PathBuf, Zeroizing<KeyPair>), CaError> {
    if let Some(path) = given {
        return Ok((path.to_owned(), files::read_key(path)?));
    }
    let (place, next) = (dir.join(ROOT_KEY), dir.join(NEXT_ROOT_KEY));
    if next.exists() {
        // A crash came between a new root and its key's taking its place.
        let root = certificate_in(prepared.root.as_bytes(), Path::new(ROOT))?;
        let key = files::read_key(&next)?;
        if belongs(&root, &*key, String::new).is_ok() {
            fs::rename(&next, &place).map_err(io_error(&place))?;
        }
    }
    if !place.exists() {
        return Err(CaError::NoRootKey(dir.to_owned()));
    }
    let key = files::read_key(&place)?;
    Ok((place, key))
}

/// Signs what a rotation asks for; with `next` under a new root whose key that is.
///
/// # Errors
/// `key` is not the key of the root in force, or the epoch is not one that could be next.
pub fn sign(
    prepared: &Prepared,
    domain: &TrustDomain,
    (key, path): (&KeyPair, &Path),
    next: Option<&KeyPair>,
    now: SystemTime,
) -> Result<Signed, CaError> {
    let root = certificate_in(prepared.root.as_bytes(), Path::new("the root"))?;
    belongs(&root, key, String::new).map_err(|_| other_root(&root, path))?;
    let issuing_now = certificate_in(prepared.issuing.as_bytes(), Path::new("the issuing CA")).ok();
    let counted = issuing_now.filter(|issuing| signed_by(issuing, &root));
    let next_epoch = counted.map_or(0, |issuing| tls::own_epoch(&issuing)).saturating_add(1);
    if prepared.epoch > next_epoch.max(seconds(now).saturating_add(AHEAD)) {
        return Err(CaError::Epoch(prepared.epoch));
    }
    let subject = SubjectPublicKeyInfo::from_pem(&prepared.key)?;
    let Some(next) = next else {
        let issuing = issuing(&subject, prepared.epoch, domain, (&root, key), now)?;
        return Ok(Signed { issuing, root: None });
    };
    let mut params = root_params(domain, Some(prepared.epoch), now)?;
    let new = params.self_signed(next)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(CROSS_DEPTH));
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.use_authority_key_identifier_extension = true;
    let cross = params.signed_by(next, &Issuer::from_ca_cert_der(&root, key)?)?.pem();
    let issuing = issuing(&subject, prepared.epoch, domain, (new.der(), next), now)?;
    Ok(Signed { issuing, root: Some(NewRoot { root: new.pem(), cross }) })
}

/// Says which root's key is wanted, in as many digits as `ca show` has.
fn other_root(root: &CertificateDer<'_>, path: &Path) -> CaError {
    match tls::pin(root) {
        Ok(pin) => CaError::OtherRoot { path: path.to_owned(), root: tls::hex(&pin[..8]) },
        Err(e) => CaError::Foreign(e),
    }
}

/// An issuing CA's certificate, PEM.
pub(super) fn issuing(
    key: &impl PublicKeyData,
    epoch: u64,
    domain: &TrustDomain,
    (root, root_key): (&CertificateDer<'_>, &KeyPair),
    now: SystemTime,
) -> Result<String, CaError> {
    let name = format!("Postern issuing CA of {domain}");
    let mut params = authority(&name, Some(epoch), ISSUING_DEPTH, ISSUING_LIFE, now)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, &Issuer::from_ca_cert_der(root, root_key)?)?.pem())
}

/// A root that bears `epoch` follows another; the first bears none.
pub(super) fn root_params(
    domain: &TrustDomain,
    epoch: Option<u64>,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    authority(&format!("Postern root of {domain}"), epoch, ROOT_DEPTH, ROOT_LIFE, now)
}

fn authority(
    name: &str,
    epoch: Option<u64>,
    depth: u8,
    life: Duration,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.distinguished_name = common_name(name);
    if let Some(epoch) = epoch {
        let number = DnValue::PrintableString(epoch.to_string().try_into()?);
        params.distinguished_name.push(DnType::CustomDnType(EPOCH.to_vec()), number);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(super) fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A positive number whose first byte is not zero, so that DER and text agree on its digits.
pub(super) fn serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CaError::Signing(rcgen::Error::RingUnspecified))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// Refuses a key that is not the certificate's.
pub(super) fn belongs(
    certificate: &CertificateDer<'_>,
    key: &impl PublicKeyData,
    what: impl Fn() -> String,
) -> Result<(), CaError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CaError::Mismatch(what()))?;
    let same = *parsed.public_key().subject_public_key.data == *key.der_bytes();
    if same { Ok(()) } else { Err(CaError::Mismatch(what())) }
}

/// Where the root's key lies while nobody has taken it away.
pub(super) fn root_key_beside(dir: &Path) -> Option<PathBuf> {
    [ROOT_KEY, NEXT_ROOT_KEY].map(|name| dir.join(name)).into_iter().find(|path| path.exists())
}
