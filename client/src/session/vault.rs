//! Takes sessions; keeps each under its profile's name in the OS keyring, or in a file of its own that only its owner may read; gives
//! them back. Beside a session in the keyring lies a file that says so, because a keyring cannot be listed. Nothing here waits on the network, but a
//! keyring may ask its owner for a password: call it off the runtime's thread ([`Vault::with`]).

mod keyring;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_base::file::{self, Access};
use serde::{Deserialize, Serialize};

use super::Session;
use super::lock::{Lock, LockError};
use super::profile::ProfileName;
use crate::failure::{Exit, Failure};
use crate::relay_api::address::RelayUrl;
use crate::settings::{Keep, Settings};
pub(crate) use keyring::Keyring;

/// Why a session could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("the session cannot be kept or read: {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("others may read {0}, which holds a session")]
    Loose(PathBuf),
    #[error("{0} is not a session of this version of postern")]
    Unreadable(PathBuf),
    #[error("the OS keyring: {0}")]
    Keyring(String),
    #[error("POSTERN_KEYRING=none: no session is kept")]
    Nowhere,
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        let message = error.to_string();
        match error {
            VaultError::File { source, .. } => Self::new(Exit::Other, message).fix(disk_fix(&source)),
            VaultError::Loose(path) => {
                Self::new(Exit::Other, message).fix(format!("run: chmod 600 {}", path.display()))
            }
            VaultError::Unreadable(path) => {
                Self::new(Exit::Config, message).fix(format!("remove {} and log in again", path.display()))
            }
            VaultError::Keyring(_) => {
                Self::new(Exit::Config, message).fix("unlock the keyring, or set POSTERN_KEYRING=file")
            }
            VaultError::Nowhere => {
                Self::new(Exit::Config, message).fix("set POSTERN_KEYRING=file, or use POSTERN_TOKEN")
            }
        }
    }
}

/// What to do about a directory that takes no session.
pub(super) fn disk_fix(error: &std::io::Error) -> &'static str {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        "make room on that disk, or set POSTERN_CONFIG_DIR to a directory elsewhere"
    } else {
        "make that directory writable, or set POSTERN_CONFIG_DIR to one that is"
    }
}

/// Where a session was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Keyring,
    File(PathBuf),
}

/// The file of one profile.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Entry {
    Keyring(RelayUrl),
    Session(Box<Session>),
}

/// All sessions of this user; clones share the keyring.
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    dir: PathBuf,
    own_dir: bool,
    keep: Keep,
    keyring: Keyring,
}

/// A new access token beside those that a session has, in bytes.
const MORE_ROOM: usize = 16 * 1024;

/// A file that is as large as what is to be written; it goes when dropped.
#[derive(Debug)]
pub(crate) struct Room(Option<PathBuf>);

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that stays is overwritten by the next.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A keyring may wait for its owner to type a password.
const KEYRING_PATIENCE: Duration = Duration::from_mins(1);

impl Vault {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self::over(settings, Keyring::Os)
    }

    pub(crate) fn over(settings: &Settings, keyring: Keyring) -> Self {
        Self { dir: settings.dir.clone(), own_dir: settings.own_dir, keep: settings.keep, keyring }
    }

    /// Runs `work` on a thread where it may block.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let vault = self.clone();
        let working = tokio::task::spawn_blocking(move || work(&vault));
        match tokio::time::timeout(KEYRING_PATIENCE, working).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(VaultError::Keyring("it failed badly".into())),
            Err(_) => Err(VaultError::Keyring(format!("no answer within {KEYRING_PATIENCE:?}"))),
        }
    }

    /// Held while a session is read, renewed and written.
    pub(crate) async fn lock(&self, profile: &ProfileName) -> Result<Lock, LockError> {
        let path = self.dir.join(format!("{}.lock", profile.stem()));
        file::create_private_dir(&self.dir).map_err(|source| LockError::Io { path: path.clone(), source })?;
        Lock::take(&path).await
    }

    pub(crate) fn load(&self, profile: &ProfileName) -> Result<Option<Session>, VaultError> {
        if self.keep == Keep::Nowhere {
            return Ok(None);
        }
        match self.entry(profile)? {
            None => Ok(None),
            Some(Entry::Session(session)) => Ok(Some(*session)),
            Some(Entry::Keyring(relay)) => {
                let kept = self.keyring.get(&self.name(profile)).map_err(VaultError::Keyring)?;
                let session: Option<Session> = kept
                    .map(|text| serde_json::from_str(text.expose()))
                    .transpose()
                    .map_err(|_| VaultError::Unreadable(self.path(profile)))?;
                Ok(session.filter(|session| session.relay == relay))
            }
        }
    }

    /// Replaces the profile's session, whole or not at all.
    pub(crate) fn save(&self, profile: &ProfileName, session: &Session) -> Result<Place, VaultError> {
        let path = self.path(profile);
        let text = zeroize::Zeroizing::new(
            serde_json::to_string(session).map_err(|_| VaultError::Unreadable(path.clone()))?,
        );
        let name = self.name(profile);
        match self.keep {
            Keep::Nowhere => return Err(VaultError::Nowhere),
            Keep::File => {}
            Keep::Best | Keep::Os => match self.keyring.set(&name, &text) {
                Ok(()) => {
                    // Where the file says so already, a full disk is no matter.
                    if !matches!(self.entry(profile), Ok(Some(Entry::Keyring(relay))) if relay == session.relay)
                    {
                        self.write(&path, &Entry::Keyring(session.relay.clone()))?;
                    }
                    return Ok(Place::Keyring);
                }
                Err(reason) if self.keep == Keep::Os => return Err(VaultError::Keyring(reason)),
                Err(reason) => tracing::debug!(reason, "no keyring"),
            },
        }
        let stale = matches!(self.entry(profile), Ok(Some(Entry::Keyring(_))));
        self.write(&path, &Entry::Session(Box::new(session.clone())))?;
        if stale {
            // Best effort: the file says now that the keyring's copy counts no more.
            let _ = self.keyring.remove(&name);
        }
        Ok(Place::File(path))
    }

    /// Room on the disk for a session that is about to change; none is needed where the keyring has it.
    pub(crate) fn room(&self, profile: &ProfileName) -> Result<Room, VaultError> {
        let (path, place) = (self.path(profile), self.dir.join(format!("{}.room", profile.stem())));
        let before = match self.entry(profile) {
            Ok(Some(Entry::Keyring(_))) if self.keep != Keep::File => return Ok(Room(None)),
            _ => std::fs::metadata(&path).map_or(0, |meta| meta.len()),
        };
        let size = usize::try_from(before).unwrap_or(0) + MORE_ROOM;
        let room = Room(Some(place.clone()));
        std::fs::write(&place, vec![0; size]).map_err(|source| VaultError::File { path: place, source })?;
        Ok(room)
    }

    /// The same for a session that is about to be made, and a look at the keyring that it must go to: nobody is to log in for one that cannot be kept.
    pub(crate) fn ready(&self, profile: &ProfileName) -> Result<Room, VaultError> {
        if self.keep == Keep::Os {
            self.keyring.get(&self.name(profile)).map_err(VaultError::Keyring)?;
        }
        file::create_private_dir(&self.dir)
            .map_err(|source| VaultError::File { path: self.dir.clone(), source })?;
        self.room(profile)
    }

    /// The lock goes once the session is written, even when that takes longer than anybody waits for.
    pub(crate) async fn save_locked(
        &self,
        profile: &ProfileName,
        session: Session,
        lock: Lock,
    ) -> Result<Place, VaultError> {
        let profile = profile.clone();
        self.with(move |vault| {
            let _lock = lock;
            vault.save(&profile, &session)
        })
        .await
    }

    pub(crate) fn forget(&self, profile: &ProfileName) -> Result<(), VaultError> {
        if let Ok(Some(Entry::Keyring(_))) = self.entry(profile) {
            self.keyring.remove(&self.name(profile)).map_err(VaultError::Keyring)?;
        }
        remove(&self.path(profile))
    }

    /// The profiles that have a session, be it one that cannot be read.
    pub(crate) fn profiles(&self) -> Result<Vec<ProfileName>, VaultError> {
        let failed = |source| VaultError::File { path: self.dir.clone(), source };
        let mut profiles = Vec::new();
        let listing = match std::fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(profiles),
            Err(e) => return Err(failed(e)),
        };
        for item in listing {
            let name = item.map_err(failed)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".json"));
            profiles.extend(stem.and_then(ProfileName::of_stem));
        }
        profiles.sort();
        Ok(profiles)
    }

    /// The relay that a profile is for, and no question to the keyring.
    pub(crate) fn relay_of(&self, profile: &ProfileName) -> Result<Option<RelayUrl>, VaultError> {
        Ok(self.entry(profile)?.map(|entry| match entry {
            Entry::Keyring(relay) => relay,
            Entry::Session(session) => session.relay,
        }))
    }

    /// Where a profile's session is.
    pub(crate) fn place_of(&self, profile: &ProfileName) -> Result<Option<Place>, VaultError> {
        Ok(self.entry(profile)?.map(|entry| match entry {
            Entry::Keyring(_) => Place::Keyring,
            Entry::Session(_) => Place::File(self.path(profile)),
        }))
    }

    /// The profile that commands mean when none is named: the one last logged in to, or chosen.
    pub(crate) fn current(&self) -> Option<ProfileName> {
        let text = std::fs::read_to_string(self.dir.join("current")).ok()?;
        text.trim().parse().ok()
    }

    pub(crate) fn set_current(&self, profile: &ProfileName) -> Result<(), VaultError> {
        if self.current().as_ref() == Some(profile) {
            return Ok(());
        }
        let path = self.dir.join("current");
        file::write_atomic(&path, format!("{profile}\n").as_bytes(), Access::Private)
            .map_err(|source| VaultError::File { path, source })
    }

    /// No profile is meant any more when none is named.
    pub(crate) fn unset_current(&self) -> Result<(), VaultError> {
        remove(&self.dir.join("current"))
    }

    fn entry(&self, profile: &ProfileName) -> Result<Option<Entry>, VaultError> {
        read_entry(&self.path(profile))
    }

    fn write(&self, path: &Path, entry: &Entry) -> Result<(), VaultError> {
        let failed = |source| VaultError::File { path: path.to_owned(), source };
        file::create_private_dir(&self.dir).map_err(failed)?;
        let text = zeroize::Zeroizing::new(
            serde_json::to_vec(entry).map_err(|_| VaultError::Unreadable(path.to_owned()))?,
        );
        file::write_atomic(path, &text, Access::Private).map_err(failed)
    }

    fn path(&self, profile: &ProfileName) -> PathBuf {
        self.dir.join(format!("{}.json", profile.stem()))
    }

    fn name(&self, profile: &ProfileName) -> String {
        if self.own_dir { format!("{profile} {}", self.dir.display()) } else { profile.to_string() }
    }
}

/// What is not there need not be removed.
fn remove(path: &Path) -> Result<(), VaultError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(VaultError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn read_entry(path: &Path) -> Result<Option<Entry>, VaultError> {
    let failed = |source| VaultError::File { path: path.to_owned(), source };
    match std::fs::read(path).map(zeroize::Zeroizing::new) {
        Ok(text) => {
            // Its own refusal, unlike the system's, has no number.
            file::check_private(path).map_err(|e| match e.raw_os_error() {
                None => VaultError::Loose(path.to_owned()),
                Some(_) => failed(e),
            })?;
            serde_json::from_slice(&text).map(Some).map_err(|_| VaultError::Unreadable(path.to_owned()))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests;
