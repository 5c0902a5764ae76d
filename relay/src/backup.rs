//! The relay's state in one file: takes the state directory of a relay that runs or not; gives an archive that is whole or refused; puts one
//! back without letting anybody in who was put out.
//!
//! In it: the database, the issuing CA with its key and the root's certificate, the keys of the assertion and of pseudonyms, and a
//! self-signed certificate. Never in it: the root's key, which is not to lie about, and the audit log's key: an older one would prove other
//! lines with keys that were used already, so a new state directory begins a new chain.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use postern_base::audit::chain::{Chain, ChainError, ChainKey};
use postern_base::file::{self, Access};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::audit;
use crate::enroll::{EnrollError, EnrollSettings, Enrollment, Merged};
use archive::{ArchiveError, Manifest};
use authority::{Authority, check};

mod archive;
mod authority;
#[cfg(test)]
mod tests;

pub use archive::Archive;

const DATABASE: &str = "postern.redb";
const ROOT: &str = "ca/root.pem";
const ISSUING: &str = "ca/issuing.pem";
const OVERLAP: &str = "ca/overlap.pem";
const SEED: &str = "ca/seed.key";

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
    #[error("{0} is a link, or has a second name elsewhere: put a file or directory of its own in its place")]
    Link(PathBuf),
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
        "the backup's certificate authority (epoch {theirs}) is newer than the one in force (epoch {ours}), or believes a root no more that is believed here: stop the relay, run this again, and start it"
    )]
    NewerAuthority { ours: u64, theirs: u64 },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

impl Restored {
    /// What the audit log says of it.
    pub fn told(&self) -> Value {
        json!({
            "action": "restore", "made": self.made, "instances": self.merged.instances, "files": self.files,
            "removed": self.merged.removed, "suspended": self.merged.suspended, "locks": self.merged.locks,
        })
    }
}

/// A backup on its way back to where no relay runs. What fails halfway through is done again by doing it again.
pub struct Restore<'a> {
    archive: &'a Archive,
    settings: &'a EnrollSettings,
    /// Held before anything is written: no relay starts meanwhile, and none runs.
    held: Option<Enrollment>,
    afresh: bool,
    older_authority: Option<u64>,
    is_newer: bool,
    files: Vec<String>,
}

impl<'a> Restore<'a> {
    /// Sees whether the backup belongs here; changes nothing.
    pub fn begin(archive: &'a Archive, settings: &'a EnrollSettings) -> Result<Self, BackupError> {
        refuse_links(&settings.state)?;
        let afresh = !settings.state.join(DATABASE).exists();
        let held = match (!afresh).then(|| Enrollment::open(settings.clone())).transpose() {
            // What cannot be opened for want of its authority can be once that is back.
            Err(EnrollError::Ca(_)) => None,
            held => held?,
        };
        settings.settle_ca()?;
        let (mut older_authority, mut is_newer) = (None, false);
        match check(archive, settings)? {
            Authority::Keep => {}
            Authority::Older(epoch) => older_authority = Some(epoch),
            Authority::Take { .. } => is_newer = true,
        }
        Ok(Self { archive, settings, held, afresh, older_authority, is_newer, files: Vec::new() })
    }

    /// What the audit log needs, so that it can be opened before anything else is changed. Gives the first key of the log where a new one
    /// begins. Blocks on the disk.
    pub fn log(&mut self) -> Result<Option<ChainKey>, BackupError> {
        let state = &self.settings.state;
        file::create_private_dir(state).map_err(io_error(state))?;
        let is_missing = |name: &str| !name.contains('/') && name != DATABASE && !state.join(name).exists();
        self.write(is_missing)?;
        let key = Chain::create(&audit::chain_path(state))?;
        adopt(&audit::chain_path(state), state)?;
        Ok(key)
    }

    /// Puts back what is missing of the state directory, and what the database has forgotten. Blocks on the disk.
    pub fn finish(mut self, now: SystemTime) -> Result<Restored, BackupError> {
        let (archive, settings, state) = (self.archive, self.settings, &self.settings.state);
        // What is made in it belongs to whom it belongs to.
        let ca = state.join("ca");
        file::create_private_dir(&ca).map_err(io_error(&ca))?;
        adopt(&ca, state)?;
        if self.is_newer {
            let of_authority = |(name, bytes): (&'a String, &'a Zeroizing<Vec<u8>>)| {
                Some((name.strip_prefix("ca/")?, bytes.as_slice(), access(name)))
            };
            let authority: Vec<_> = archive.files().iter().filter_map(of_authority).collect();
            settings.replace_ca(&authority)?;
            self.files.extend(authority.iter().map(|(file, ..)| format!("ca/{file}")));
        }
        // Keys come back together with what belongs to them, or not at all.
        let is_empty =
            |dir: &str| !state.join(dir).read_dir().is_ok_and(|mut entries| entries.next().is_some());
        let wanted = ["assertion", "tls"].map(|dir| (dir, is_empty(dir)));
        // Where the authority is the operator's own, it did not come above.
        let has_seed = state.join(SEED).exists();
        self.write(|name| match name.split_once('/') {
            Some(("ca", _)) => name == SEED && !has_seed,
            Some((dir, _)) => wanted.contains(&(dir, true)),
            None => false,
        })?;
        drop(self.held.take());
        Enrollment::init(settings, now)?;
        let all = ["ca", "assertion", "tls", DATABASE];
        for name in self.files.iter().map(String::as_str).chain(all) {
            adopt(&state.join(name), state)?;
        }
        let enrollment = Enrollment::open(settings.clone())?;
        let merged = merge(archive, settings, &enrollment, now)?;
        let restored = restored(archive, merged, self.older_authority);
        Ok(Restored { afresh: self.afresh, files: self.files, ..restored })
    }

    fn write(&mut self, is_wanted: impl Fn(&str) -> bool) -> Result<(), BackupError> {
        let state = &self.settings.state;
        for (name, bytes) in self.archive.files().iter().filter(|(name, _)| is_wanted(name)) {
            let path = state.join(name);
            if let Some((dir, _)) = name.split_once('/') {
                let dir = state.join(dir);
                file::create_private_dir(&dir).map_err(io_error(&dir))?;
                adopt(&dir, state)?;
                file::write_as_owner(&path, bytes, access(name)).map_err(io_error(&path))?;
            } else {
                file::write_atomic(&path, bytes, access(name)).map_err(io_error(&path))?;
                adopt(&path, state)?;
            }
            self.files.push(name.clone());
        }
        Ok(())
    }
}

fn access(name: &str) -> Access {
    if archive::is_secret(name) { Access::Private } else { Access::Public }
}

/// What root puts back belongs to whom the state directory belongs to: the relay's user.
fn adopt(path: &Path, state: &Path) -> Result<(), BackupError> {
    if rustix::process::geteuid().is_root() && path.symlink_metadata().is_ok() {
        let owner = fs::metadata(state).map_err(io_error(state))?;
        file::hand_over(path, owner.uid(), owner.gid()).map_err(io_error(path))?;
    }
    Ok(())
}

/// The directory is the relay's user's: a link in it could have root write, and give away, anybody's file.
fn refuse_links(state: &Path) -> Result<(), BackupError> {
    for name in ["ca", "assertion", "tls", DATABASE, "audit.key"] {
        let path = state.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() || (meta.is_file() && meta.nlink() > 1) => {
                return Err(BackupError::Link(path));
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error(&path)(e)),
        }
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
