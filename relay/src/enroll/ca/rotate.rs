//! A new issuing CA, and a new root, while the relay runs. The key of the new issuing CA is made here and stays here; what the root signs for it
//! comes from a command that has the root's key. Takes and gives certificates; refuses what is not signed by the root in force, is not for
//! the key made here, or would leave an agent behind that has not been told.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::file::Access;
use postern_base::sync::lock;
use postern_wire::tls;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::files::{
    self, ISSUING, ISSUING_KEY, NEXT_ROOT_KEY, OVERLAP, ROOT, ROOT_KEY, SEED, certificate_in,
};
use super::{Ca, CaError, CaSource, InForce, Signed, init, io_error, load, make, new_key, seconds};

/// The key of an issuing CA that the root has not signed yet.
pub(super) struct Pending {
    key: Zeroizing<KeyPair>,
    epoch: u64,
}

/// What the root is to sign.
#[derive(Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Of the new issuing CA.
    pub epoch: u64,
    /// Its public key, PEM.
    pub key: String,
    /// The root that is to sign it, or the root before it, PEM.
    pub root: String,
    /// The issuing CA in force, PEM: the root signed what it counts.
    pub issuing: String,
}

impl Ca {
    /// Makes the key of the next issuing CA; one that was made before and never signed is forgotten.
    pub(in crate::enroll) fn prepare(&self, new_root: bool) -> Result<Prepared, CaError> {
        self.rotates()?;
        let mut pending = lock(&self.pending);
        let current = self.current.load();
        if new_root && current.trusted.len() > 1 {
            return Err(CaError::Overlap);
        }
        // An authority put back to an earlier day would count what was counted before: the date is above all of it.
        let epoch = current.epoch.saturating_add(1).max(seconds(SystemTime::now()));
        let key = new_key()?;
        let root = fs::read_to_string(self.dir.join(ROOT)).map_err(io_error(&self.dir.join(ROOT)))?;
        let path = self.dir.join(ISSUING);
        let issuing = fs::read_to_string(&path).map_err(io_error(&path))?;
        let prepared = Prepared { epoch, key: key.public_key_pem(), root, issuing };
        *pending = Some(Pending { key, epoch });
        Ok(prepared)
    }

    /// Puts what the root signed into force, on disk first. Blocks on the disk.
    pub(in crate::enroll) fn install(&self, signed: &Signed, now: SystemTime) -> Result<(), CaError> {
        self.rotates()?;
        let mut pending = lock(&self.pending);
        let Pending { key, epoch } = pending.take().ok_or(CaError::Superseded)?;
        let current = self.current.load_full();
        let read = |pem: &str, what: &str| certificate_in(pem.as_bytes(), Path::new(what));
        let issuing = read(&signed.issuing, "the new issuing CA")?;
        make::belongs(&issuing, &*key, || "the new issuing CA and the key made for it".to_owned())?;
        if tls::own_epoch(&issuing) != epoch {
            return Err(CaError::Superseded);
        }
        let (root, overlap) = match &signed.root {
            None => (self.root(), current.overlap()),
            Some(_) if current.trusted.len() > 1 => return Err(CaError::Overlap),
            Some(new) => {
                let (root, cross) =
                    (read(&new.root, "the new root")?, read(&new.cross, "its cross certificate")?);
                if tls::successor(&self.root(), &[cross.clone(), root.clone()]).as_ref() != Some(&root) {
                    return Err(CaError::Mismatch("the root in force and the new root".to_owned()));
                }
                (root, vec![cross, self.root()])
            }
        };
        let issuing_key = Zeroizing::new(key.serialize_pem());
        let next = InForce::ours(root, issuing, key, overlap)?;
        next.is_good(&self.source, now)?;
        let seed = init::new_seed()?;
        let overlap = signed.root.as_ref().map(|new| self.old_root(&new.cross)).transpose()?;
        let mut files: Vec<files::Change<'_>> = vec![
            (ISSUING, signed.issuing.as_bytes(), Access::Public),
            (ISSUING_KEY, issuing_key.as_bytes(), Access::Private),
        ];
        if let (Some(new), Some(overlap)) = (&signed.root, &overlap) {
            files.push((ROOT, new.root.as_bytes(), Access::Public));
            files.push((OVERLAP, overlap.as_bytes(), Access::Public));
        }
        if !self.dir.join(SEED).exists() {
            files.push((SEED, &*seed, Access::Private));
        }
        files::commit(&self.dir, &files)?;
        self.put(next)
    }

    /// Ends the trust in the root before this one.
    pub(in crate::enroll) fn finish(&self) -> Result<(), CaError> {
        self.rotates()?;
        let _pending = lock(&self.pending);
        if self.current.load().trusted.len() < 2 {
            return Err(CaError::NoOverlap);
        }
        let overlap = self.dir.join(OVERLAP);
        fs::remove_file(&overlap).map_err(io_error(&overlap))?;
        files::sync(&self.dir)?;
        self.put(load::ours(&self.dir)?)
    }

    fn rotates(&self) -> Result<(), CaError> {
        match self.source {
            CaSource::Ours => Ok(()),
            CaSource::Own { .. } => Err(CaError::Own),
            CaSource::Elsewhere { .. } => Err(CaError::Elsewhere),
        }
    }

    /// What is kept on disk while a root is being replaced.
    fn old_root(&self, cross: &str) -> Result<String, CaError> {
        let path = self.dir.join(ROOT);
        Ok(format!("{cross}{}", fs::read_to_string(&path).map_err(io_error(&path))?))
    }
}

impl InForce {
    /// As [`InForce::ours`] takes it.
    fn overlap(&self) -> Vec<CertificateDer<'static>> {
        match (self.trusted.get(1), self.above.get(1)) {
            (Some(before), Some(cross)) => vec![cross.clone(), before.clone()],
            _ => Vec::new(),
        }
    }
}

/// The key of a root that is to come, on disk before anybody believes that root, so that no crash loses it.
#[derive(Debug)]
pub struct NewRootKey {
    path: PathBuf,
    /// Where it goes when the root is in force.
    place: Option<PathBuf>,
    key: Zeroizing<KeyPair>,
}

impl NewRootKey {
    /// Makes it, in the authority's directory.
    pub fn make(dir: &Path) -> Result<Self, CaError> {
        let key = new_key()?;
        let pem = Zeroizing::new(key.serialize_pem());
        let path = dir.join(NEXT_ROOT_KEY);
        files::write(&path, pem.as_bytes(), Access::Private)?;
        Ok(Self { path, place: Some(dir.join(ROOT_KEY)), key })
    }

    /// Makes it beside the file of the key before, away from the relay, for the same owner. Refuses to replace a file.
    pub fn beside(before: &Path) -> Result<Self, CaError> {
        let mut path = before.as_os_str().to_owned();
        path.push(".new");
        let path = PathBuf::from(path);
        let key = new_key()?;
        let pem = Zeroizing::new(key.serialize_pem());
        let owner = fs::metadata(before).map_err(io_error(before))?;
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(
            |mut file: fs::File| {
                if rustix::process::geteuid().is_root() {
                    fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
                }
                file.write_all(pem.as_bytes())?;
                file.sync_all()
            },
        );
        match written {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(CaError::NewKeyThere(path)),
            written => written.map_err(io_error(&path))?,
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            files::sync(dir)?;
        }
        Ok(Self { path, place: None, key })
    }

    /// Nothing was signed by it.
    pub fn forget(self) {
        // What stays behind is a key of nothing.
        let _ = fs::remove_file(&self.path);
    }

    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// The root is in force: in the authority's directory its key takes the place of the one before. Says where it is.
    pub fn keep(self) -> Result<PathBuf, CaError> {
        let Some(place) = self.place else { return Ok(self.path) };
        fs::rename(&self.path, &place).map_err(io_error(&place))?;
        files::sync(place.parent().unwrap_or(Path::new(".")))?;
        Ok(place)
    }
}
