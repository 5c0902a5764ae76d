//! What the state directory holds of an identity: `identity.pem`, `next.key` while its certificate is asked for, and `floor`, the highest
//! epoch of an issuing CA that was seen. Every file is whole or not there, and keys are the owner's alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use postern_base::file::{self, Access};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::IdentityError;

/// What `identity.pem` says; nothing of it is proved.
pub(super) struct Stored {
    pub(super) key: PrivateKeyDer<'static>,
    /// Without the root; at least the leaf.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) root: CertificateDer<'static>,
}

pub(super) fn path(state: &Path) -> PathBuf {
    state.join("identity.pem")
}

fn next_key_path(state: &Path) -> PathBuf {
    state.join("next.key")
}

fn floor_path(state: &Path) -> PathBuf {
    state.join("floor")
}

fn io_error(path: PathBuf) -> impl FnOnce(io::Error) -> IdentityError {
    |source| IdentityError::Io { path, source }
}

fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let read = file::check_private(path).and_then(|()| fs::read(path));
    Ok(Zeroizing::new(read.map_err(io_error(path.to_owned()))?))
}

pub(super) fn read(state: &Path) -> Result<Stored, IdentityError> {
    let path = path(state);
    if !path.exists() {
        return Err(IdentityError::Missing(state.to_owned()));
    }
    let pem = read_private(&path)?;
    let next = next_key_path(state);
    if next.exists() {
        file::check_private(&next).map_err(io_error(next))?;
    }
    let damaged = |reason: String| IdentityError::Damaged { path, reason };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match (PrivateKeyDer::from_pem_slice(&pem), certificates) {
        (Ok(key), Ok(mut chain)) if chain.len() > 1 => {
            let root = chain.remove(chain.len() - 1);
            Ok(Stored { key, chain, root })
        }
        (Err(e), _) | (_, Err(e)) => Err(damaged(e.to_string())),
        (Ok(_), Ok(_)) => Err(damaged("certificates are missing".to_owned())),
    }
}

/// The key of `identity.pem`, to sign with.
pub(super) fn own_key(state: &Path) -> Result<Zeroizing<KeyPair>, IdentityError> {
    let stored = read(state)?;
    let damaged = |e: rcgen::Error| IdentityError::Damaged { path: path(state), reason: e.to_string() };
    Ok(Zeroizing::new(KeyPair::try_from(&stored.key).map_err(damaged)?))
}

pub(super) fn write(
    state: &Path,
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
    let path = path(state);
    file::write_atomic(&path, pem.as_bytes(), Access::Private).map_err(io_error(path))
}

pub(super) fn new_key() -> Result<Zeroizing<KeyPair>, IdentityError> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
}

pub(super) fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// The key whose certificate was asked for, if one was.
pub(super) fn next_key(state: &Path) -> Result<Option<Zeroizing<KeyPair>>, IdentityError> {
    let path = next_key_path(state);
    if !path.exists() {
        return Ok(None);
    }
    let pem = read_private(&path)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|e| e.to_string());
    let key = key.and_then(|der| {
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())
    });
    match key {
        Ok(key) => Ok(Some(Zeroizing::new(key))),
        Err(reason) => {
            tracing::warn!(path = %path.display(), %reason, "the next key cannot be read; making another one");
            Ok(None)
        }
    }
}

pub(super) fn keep_next_key(state: &Path, key: &KeyPair) -> Result<(), IdentityError> {
    let (path, pem) = (next_key_path(state), Zeroizing::new(key.serialize_pem()));
    file::write_atomic(&path, pem.as_bytes(), Access::Private).map_err(io_error(path))
}

/// Its certificate is stored. A key that cannot be removed is known again by being the identity's own.
pub(super) fn forget_next_key(state: &Path) {
    let _ = fs::remove_file(next_key_path(state));
}

/// Zero where none is kept: the chain's own epoch counts then.
pub(super) fn floor(state: &Path) -> u64 {
    fs::read_to_string(floor_path(state)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

pub(super) fn keep_floor(state: &Path, epoch: u64) -> Result<(), IdentityError> {
    let path = floor_path(state);
    if epoch == 0 && !path.exists() {
        return Ok(());
    }
    file::write_atomic(&path, format!("{epoch}\n").as_bytes(), Access::Private).map_err(io_error(path))
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
        opened => opened.map_err(io_error(path.clone()))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(IdentityError::Running),
        Err(TryLockError::Error(source)) => Err(IdentityError::Io { path, source }),
    }
}
