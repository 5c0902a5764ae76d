//! The authority's files. Several change at once, whole or not at all: they are written aside, one rename commits to them, and then each
//! takes its place, an empty one none. A crash before that rename leaves the old authority, one after it the new, as the next start finds out.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use postern_base::file::{self, Access};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{CaError, io_error};

pub(super) const ROOT: &str = "root.pem";
pub(super) const ROOT_KEY: &str = "root.key";
/// A root's key until the root is in force.
pub(super) const NEXT_ROOT_KEY: &str = "root.key.next";
pub(super) const ISSUING: &str = "issuing.pem";
pub(super) const ISSUING_KEY: &str = "issuing.key";
/// While the root is being replaced: what vouches for the new one, then the old one.
pub(in crate::enroll) const OVERLAP: &str = "overlap.pem";
/// What the relay derives its own secrets from.
pub(super) const SEED: &str = "seed.key";
/// Where files wait before they are committed to.
const STAGED: &str = "staged";
/// Where they are when they are: the marker of a change that must be ended.
const COMMITTED: &str = "committed";

/// A file of a change: its name, what is in it, and who may read it. Where nothing is in it, the file goes.
pub(in crate::enroll) type Change<'a> = (&'a str, &'a [u8], Access);

/// Exchanges all these files, or none.
pub(in crate::enroll) fn commit(dir: &Path, files: &[Change<'_>]) -> Result<(), CaError> {
    settle(dir)?;
    stage(dir, files)?;
    let (staged, committed) = (dir.join(STAGED), dir.join(COMMITTED));
    fs::rename(&staged, &committed).map_err(io_error(&committed))?;
    sync(dir)?;
    settle(dir)
}

pub(super) fn stage(dir: &Path, files: &[Change<'_>]) -> Result<(), CaError> {
    let staged = dir.join(STAGED);
    match fs::remove_dir_all(&staged) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error(&staged)(e)),
        Ok(()) | Err(_) => {}
    }
    DirBuilder::new().mode(0o700).create(&staged).map_err(io_error(&staged))?;
    // Else what root stages would stay root's, and the relay could not read its own authority.
    let owner = fs::metadata(dir).map_err(io_error(dir))?;
    file::hand_over(&staged, owner.uid(), owner.gid()).map_err(io_error(&staged))?;
    for (name, bytes, access) in files {
        write(&staged.join(name), bytes, *access)?;
    }
    Ok(())
}

/// Ends what was committed to.
pub(in crate::enroll) fn settle(dir: &Path) -> Result<(), CaError> {
    let committed = dir.join(COMMITTED);
    match fs::symlink_metadata(&committed) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(meta) if meta.is_dir() => {}
        // A link would have somebody else's files moved here.
        Ok(_) => return Err(io_error(&committed)(ErrorKind::NotADirectory.into())),
        Err(e) => return Err(io_error(&committed)(e)),
    }
    let files = fs::read_dir(&committed).map_err(io_error(&committed))?;
    for file in files {
        let file = file.map_err(io_error(&committed))?;
        let place = dir.join(file.file_name());
        if file.metadata().map_err(io_error(&place))?.len() > 0 {
            fs::rename(file.path(), &place).map_err(io_error(&place))?;
            continue;
        }
        match fs::remove_file(&place) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error(&place)(e)),
            Ok(()) | Err(_) => {}
        }
        fs::remove_file(file.path()).map_err(io_error(&place))?;
    }
    sync(dir)?;
    fs::remove_dir(&committed).map_err(io_error(&committed))?;
    sync(dir)
}

pub(super) fn sync(dir: &Path) -> Result<(), CaError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))
}

/// Whole or not at all. What root writes for the relay's user belongs to that user, as the directory does.
pub(super) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), CaError> {
    file::write_as_owner(path, bytes, access).map_err(io_error(path))
}

/// A private key's file, which others must not be able to read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    file::check_private(path).map_err(io_error(path))?;
    fs::read(path).map(Zeroizing::new).map_err(io_error(path))
}

pub(super) fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, CaError> {
    key_in(&read_private(path)?, path)
}

pub(super) fn key_in(pem: &[u8], path: &Path) -> Result<Zeroizing<KeyPair>, CaError> {
    let damaged = |reason: String| CaError::Damaged { path: path.to_owned(), reason };
    let text = std::str::from_utf8(pem).map_err(|e| damaged(e.to_string()))?;
    KeyPair::from_pem(text).map(Zeroizing::new).map_err(|e| damaged(e.to_string()))
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    certificates_in(&fs::read(path).map_err(io_error(path))?, path)
}

pub(super) fn certificates_in(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let damaged = |reason: String| CaError::Damaged { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| damaged(e.to_string()))?;
    if found.is_empty() { Err(damaged("no certificate is in it".to_owned())) } else { Ok(found) }
}

pub(super) fn certificate_in(pem: &[u8], path: &Path) -> Result<CertificateDer<'static>, CaError> {
    // `certificates_in` gives at least one.
    Ok(certificates_in(pem, path)?.swap_remove(0))
}

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    certificate_in(&fs::read(path).map_err(io_error(path))?, path)
}

/// Which of these files are missing.
pub(super) fn missing(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter(|path| !path.exists()).cloned().collect()
}
