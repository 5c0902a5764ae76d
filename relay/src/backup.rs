//! The relay's state in one file: takes the state directory of a relay that runs or not; gives an archive that is whole or refused; puts one
//! back without letting anybody in who was put out.
//!
//! In it: the database, the issuing CA with its key and the root's certificate, the keys of the assertion and of pseudonyms, and a
//! self-signed certificate. Never in it: the root's key, which is not to lie about, and the audit log's key: an older one would prove other
//! lines with keys that were used already, so a new state directory begins a new chain.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::audit::chain::{Chain, ChainError, ChainKey};
use postern_base::file::{self, Access};
use postern_wire::tls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit;
use crate::enroll::{EnrollError, EnrollSettings, Enrollment, Merged};
use archive::{ArchiveError, Manifest};

mod archive;
#[cfg(test)]
mod tests;

pub use archive::Archive;

const DATABASE: &str = "postern.redb";
const ROOT: &str = "ca/root.pem";
const ISSUING: &str = "ca/issuing.pem";

/// Why there is no backup, or why it was not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Enrollment(#[from] EnrollError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the certificate authority was being changed all the while: try again")]
    Restless,
    #[error(
        "this is a backup of a relay for {theirs}, and relay.toml here says trust_domain = {ours}: use the one with the other"
    )]
    OtherDomain { ours: String, theirs: String },
    #[error(
        "{here} holds another certificate authority than the backup, and agents of one do not trust the other: if it is not needed, stop the relay, move {here} and {database} away, and run this again"
    )]
    OtherAuthority { here: PathBuf, database: PathBuf },
    #[error(
        "the backup's issuing CA (epoch {theirs}) is newer than the one in force (epoch {ours}): stop the relay, run this again, and start it"
    )]
    NewerAuthority { ours: u64, theirs: u64 },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was made, in seconds since the epoch.
    pub made: u64,
    /// By which version.
    pub version: String,
    /// Whether there was no database here: then nothing here knows what happened after the backup.
    pub afresh: bool,
    /// Files that were missing and are back.
    pub files: Vec<String>,
    #[serde(flatten)]
    pub merged: Merged,
    /// An issuing CA of the backup that is older than the one in force, and stays out: its epoch.
    pub older_authority: Option<u64>,
}

/// How the backup's authority stands to the one here.
enum Authority {
    /// Ours stays.
    Keep,
    Older(u64),
    /// There is none here, or an older one.
    Take {
        ours: Option<u64>,
        theirs: u64,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

/// Everything that belongs into a backup, as it stands now. Blocks on the disk.
pub fn gather(
    settings: &EnrollSettings,
    enrollment: &Enrollment,
    url: &str,
    now: SystemTime,
) -> Result<Archive, BackupError> {
    let state = &settings.state;
    // Certificate and key of an authority are two files: what was read twice alike was not being exchanged.
    let mut files = read_files(state)?;
    for turn in 0.. {
        let again = read_files(state)?;
        if again == files {
            break;
        }
        if turn == 3 {
            return Err(BackupError::Restless);
        }
        files = again;
    }
    files.insert(DATABASE.to_owned(), Zeroizing::new(enrollment.copy()?));
    Ok(Archive::new(url, settings.trust_domain.as_str(), files, now))
}

type Files = BTreeMap<String, Zeroizing<Vec<u8>>>;

fn read_files(state: &Path) -> Result<Files, BackupError> {
    let mut files = Files::new();
    for dir in ["", "ca", "assertion", "tls"] {
        let at = state.join(dir);
        if !at.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&at).map_err(io_error(&at))? {
            let path = entry.map_err(io_error(&at))?.path();
            let name = path.strip_prefix(state).ok().and_then(Path::to_str).map(str::to_owned);
            if let Some(name) = name.filter(|name| archive::belongs(name) && name != DATABASE) {
                let bytes = fs::read(&path).map_err(io_error(&path))?;
                files.insert(name, Zeroizing::new(bytes));
            }
        }
    }
    Ok(files)
}

/// Puts a backup back into a running relay: what its database has forgotten, and nothing else. Blocks on the disk.
pub fn into_running(
    archive: &Archive,
    settings: &EnrollSettings,
    enrollment: &Enrollment,
    now: SystemTime,
) -> Result<Restored, BackupError> {
    let older_authority = match check(archive, settings)? {
        Authority::Keep => None,
        Authority::Older(epoch) => Some(epoch),
        Authority::Take { ours, theirs } => {
            return Err(BackupError::NewerAuthority { ours: ours.unwrap_or(0), theirs });
        }
    };
    let merged = merge(archive, settings, enrollment, now)?;
    Ok(restored(archive, merged, older_authority))
}

/// Puts a backup back where no relay runs: what is missing of the state directory, and what the database has forgotten. Gives the first key
/// of the audit log where a new one begins. What fails halfway through is done again by doing it again. Blocks on the disk.
pub fn into_directory(
    archive: &Archive,
    settings: &EnrollSettings,
    now: SystemTime,
) -> Result<(Restored, Option<ChainKey>), BackupError> {
    let state = &settings.state;
    let afresh = !state.join(DATABASE).exists();
    // Held before anything is written: no relay starts meanwhile, and none runs.
    let held = if afresh { None } else { Some(Enrollment::open(settings.clone())) };
    let (mut older_authority, mut newer) = (None, false);
    match check(archive, settings)? {
        Authority::Keep => {}
        Authority::Older(epoch) => older_authority = Some(epoch),
        Authority::Take { .. } => newer = true,
    }
    let held = match held {
        // What cannot be opened for want of its authority can be once that is back.
        Some(Err(EnrollError::Ca(_))) | None => None,
        Some(held) => Some(held?),
    };
    file::create_private_dir(state).map_err(io_error(state))?;
    let mut files = Vec::new();
    let has_pair = |dir: &str| state.join(dir).read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let had = ["assertion", "tls"].map(|dir| (dir, has_pair(dir)));
    for (name, bytes) in archive.files().iter().filter(|(name, _)| *name != DATABASE) {
        let path = state.join(name);
        let dir = name.split_once('/').map(|(dir, _)| dir);
        // Keys come back together with what belongs to them, or not at all.
        let is_wanted = match dir {
            Some("ca") => newer,
            Some(dir) => !had.contains(&(dir, true)),
            None => !path.exists(),
        };
        if is_wanted {
            if let Some(parent) = path.parent() {
                file::create_private_dir(parent).map_err(io_error(parent))?;
            }
            let access = if archive::is_secret(name) { Access::Private } else { Access::Public };
            file::write_atomic(&path, bytes, access).map_err(io_error(&path))?;
            files.push(name.clone());
        }
    }
    drop(held);
    Enrollment::init(settings, now)?;
    let key = Chain::create(&audit::chain_path(state))?;
    for name in files.iter().map(String::as_str).chain(["ca", "assertion", "tls", DATABASE, "audit.key"]) {
        adopt(&state.join(name), state)?;
    }
    let enrollment = Enrollment::open(settings.clone())?;
    let merged = merge(archive, settings, &enrollment, now)?;
    Ok((Restored { afresh, files, ..restored(archive, merged, older_authority) }, key))
}

/// What root puts back belongs to whom the state directory belongs to: the relay's user.
fn adopt(path: &Path, state: &Path) -> Result<(), BackupError> {
    if rustix::process::geteuid().is_root() && path.exists() {
        let owner = fs::metadata(state).map_err(io_error(state))?;
        chown(path, Some(owner.uid()), Some(owner.gid())).map_err(io_error(path))?;
    }
    Ok(())
}

fn restored(archive: &Archive, merged: Merged, older_authority: Option<u64>) -> Restored {
    let Manifest { made, version, .. } = archive.manifest();
    Restored {
        made: *made,
        version: version.clone(),
        afresh: false,
        files: Vec::new(),
        merged,
        older_authority,
    }
}

fn merge(
    archive: &Archive,
    settings: &EnrollSettings,
    enrollment: &Enrollment,
    now: SystemTime,
) -> Result<Merged, BackupError> {
    /// Goes when it was read.
    struct Aside(PathBuf);
    impl Drop for Aside {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
    let Some(database) = archive.files().get(DATABASE) else {
        return Err(ArchiveError::Incomplete(DATABASE.to_owned()).into());
    };
    let aside = Aside(settings.state.join(format!(".restore.{:016x}", rand::random::<u64>())));
    file::write_atomic(&aside.0, database, Access::Private).map_err(io_error(&aside.0))?;
    Ok(enrollment.merge(&aside.0, now)?)
}

/// Whether this backup belongs here, and whose authority is the newer one.
fn check(archive: &Archive, settings: &EnrollSettings) -> Result<Authority, BackupError> {
    let theirs = &archive.manifest().trust_domain;
    if theirs != settings.trust_domain.as_str() {
        let ours = settings.trust_domain.to_string();
        return Err(BackupError::OtherDomain { ours, theirs: theirs.clone() });
    }
    let read = |name: &str| fs::read(settings.state.join(name)).ok();
    let theirs = |name: &str| archive.files().get(name).map(|bytes| bytes.to_vec());
    // An authority of the operator's own is not in backups, and what is not here cannot be older.
    let Some(theirs) = rank(theirs(ROOT), theirs(ISSUING)) else { return Ok(Authority::Keep) };
    let Some(ours) = rank(read(ROOT), read(ISSUING)) else {
        return Ok(Authority::Take { ours: None, theirs: theirs.epochs.1 });
    };
    match theirs.epochs.cmp(&ours.epochs) {
        std::cmp::Ordering::Equal if theirs.root == ours.root => Ok(Authority::Keep),
        std::cmp::Ordering::Equal => Err(BackupError::OtherAuthority {
            here: settings.state.join("ca"),
            database: settings.state.join(DATABASE),
        }),
        std::cmp::Ordering::Less => Ok(Authority::Older(theirs.epochs.1)),
        std::cmp::Ordering::Greater => {
            Ok(Authority::Take { ours: Some(ours.epochs.1), theirs: theirs.epochs.1 })
        }
    }
}

struct Rank {
    root: CertificateDer<'static>,
    /// Of the root, and of the issuing CA.
    epochs: (u64, u64),
}

fn rank(root: Option<Vec<u8>>, issuing: Option<Vec<u8>>) -> Option<Rank> {
    let root = CertificateDer::from_pem_slice(&root?).ok()?;
    let issuing = CertificateDer::from_pem_slice(&issuing?).ok()?;
    Some(Rank { epochs: (tls::own_epoch(&root), tls::own_epoch(&issuing)), root })
}
