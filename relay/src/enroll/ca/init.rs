//! What `init` makes of an authority: whatever is missing, and nothing twice.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::file::{self, Access};
use postern_base::id::TrustDomain;
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::files::{self, ISSUING, ISSUING_KEY, ROOT, ROOT_KEY, SEED};
use super::{CaError, CaSource, io_error, make, new_key, seconds};

pub(super) fn init(
    dir: &Path,
    source: &CaSource,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Vec<PathBuf>, CaError> {
    file::create_private_dir(dir).map_err(io_error(dir))?;
    let mut made = Vec::new();
    match source {
        CaSource::Ours => ours(dir, domain, now, &mut made)?,
        CaSource::Own { .. } | CaSource::Elsewhere { .. } => {}
    }
    let seed = dir.join(SEED);
    if !seed.exists() {
        write(&seed, &*new_seed()?, Access::Private, &mut made)?;
    }
    Ok(made)
}

pub(super) fn new_seed() -> Result<Zeroizing<[u8; 32]>, CaError> {
    let mut seed = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *seed).map_err(|_| CaError::Signing(rcgen::Error::RingUnspecified))?;
    Ok(seed)
}

fn ours(dir: &Path, domain: &TrustDomain, now: SystemTime, made: &mut Vec<PathBuf>) -> Result<(), CaError> {
    let [root, root_key, issuing, issuing_key] =
        [ROOT, ROOT_KEY, ISSUING, ISSUING_KEY].map(|name| dir.join(name));
    let is_first = !root.exists();
    if is_first {
        if (issuing.exists() || issuing_key.exists()) && !root_key.exists() {
            return Err(CaError::Incomplete(root));
        }
        let key = load_or_make_key(&root_key, made)?;
        let certificate = make::root_params(domain, None, now)?.self_signed(&*key)?;
        write(&root, certificate.pem().as_bytes(), Access::Public, made)?;
    }
    if issuing.exists() && issuing_key.exists() {
        return Ok(());
    }
    if !root_key.exists() {
        return Err(match (issuing.exists(), issuing_key.exists()) {
            (true, _) => CaError::Incomplete(issuing_key),
            (false, true) => CaError::Incomplete(issuing),
            (false, false) => CaError::NoRootKey(dir.to_owned()),
        });
    }
    let certificate = files::read_certificate(&root)?;
    let key = files::read_key(&root_key)?;
    make::belongs(&certificate, &*key, || "root.pem and root.key".to_owned())?;
    let issuing_key = load_or_make_key(&issuing_key, made)?;
    // In place of one that was lost, whose epoch nobody knows: the date is above any that was counted.
    let epoch = if is_first { 1 } else { seconds(now) };
    let pem = make::issuing(&*issuing_key, epoch, domain, (&certificate, &key), now)?;
    write(&issuing, pem.as_bytes(), Access::Public, made)
}

fn load_or_make_key(path: &Path, made: &mut Vec<PathBuf>) -> Result<Zeroizing<KeyPair>, CaError> {
    if path.exists() {
        return files::read_key(path);
    }
    let key = new_key()?;
    write(path, Zeroizing::new(key.serialize_pem()).as_bytes(), Access::Private, made)?;
    Ok(key)
}

fn write(path: &Path, bytes: &[u8], access: Access, made: &mut Vec<PathBuf>) -> Result<(), CaError> {
    files::write(path, bytes, access)?;
    made.push(path.to_owned());
    Ok(())
}
