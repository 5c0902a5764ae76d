//! Takes sessions; keeps each in the OS keyring, or in a file of its own that only its owner may read; gives them back. Beside a
//! session in the keyring lies a file that says so, because a keyring cannot be listed. Nothing here waits on the network, but a
//! keyring may ask its owner for a password: call it off the runtime's thread ([`Vault::with`]).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_base::file::{self, Access};
use postern_base::secret::Secret;
use serde::{Deserialize, Serialize};

use super::Session;
use super::lock::{Lock, LockError};
use crate::failure::{Exit, Failure};
use crate::relay_api::address::RelayUrl;
use crate::settings::{Keep, Settings};

/// Why a session could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("{path}: {source}")]
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
            VaultError::File { .. } => {
                Self::new(Exit::Other, message).fix("make that directory writable, or set POSTERN_CONFIG_DIR")
            }
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

/// Where a session was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Keyring,
    File(PathBuf),
}

/// The file of one relay.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Entry {
    Keyring(RelayUrl),
    Session(Box<Session>),
}

/// What keeps a small secret under a name.
#[derive(Debug, Clone)]
pub(crate) enum Keyring {
    /// Secret Service, Keychain or Credential Manager.
    Os,
    /// A working keyring without a desktop; `None`: one that always fails.
    #[cfg(test)]
    Fake(Option<std::sync::Arc<std::sync::Mutex<std::collections::BTreeMap<String, String>>>>),
}

/// The name under which keyrings show our entries.
const SERVICE: &str = "postern";

impl Keyring {
    fn set(&self, name: &str, secret: &str) -> Result<(), String> {
        match self {
            Self::Os => entry(name)?.set_password(secret).map_err(|e| e.to_string()),
            #[cfg(test)]
            Self::Fake(map) => {
                map.as_ref().ok_or("no D-Bus here")?.lock().unwrap().insert(name.into(), secret.into());
                Ok(())
            }
        }
    }

    /// `None` when there is no such entry.
    fn get(&self, name: &str) -> Result<Option<Secret>, String> {
        match self {
            Self::Os => match entry(name)?.get_password() {
                Ok(text) => Ok(Some(Secret::new(text))),
                Err(keyring::Error::NoEntry) => Ok(None),
                Err(error) => Err(error.to_string()),
            },
            #[cfg(test)]
            Self::Fake(map) => {
                Ok(map.as_ref().ok_or("no D-Bus here")?.lock().unwrap().get(name).map(Secret::new))
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), String> {
        match self {
            Self::Os => match entry(name)?.delete_credential() {
                Ok(()) | Err(keyring::Error::NoEntry) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            #[cfg(test)]
            Self::Fake(map) => {
                map.as_ref().ok_or("no D-Bus here")?.lock().unwrap().remove(name);
                Ok(())
            }
        }
    }
}

fn entry(name: &str) -> Result<keyring::Entry, String> {
    // Without a store `new` only says that there is none; this says why.
    keyring::Entry::store_status().as_ref().map_err(ToString::to_string)?;
    keyring::Entry::new(SERVICE, name).map_err(|e| e.to_string())
}

/// All sessions of this user; clones share the keyring.
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    dir: PathBuf,
    own_dir: bool,
    keep: Keep,
    keyring: Keyring,
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
    pub(crate) async fn lock(&self, relay: &RelayUrl) -> Result<Lock, LockError> {
        let path = self.path(relay).with_extension("lock");
        file::create_private_dir(&self.dir).map_err(|source| LockError::Io { path: path.clone(), source })?;
        Lock::take(&path).await
    }

    pub(crate) fn load(&self, relay: &RelayUrl) -> Result<Option<Session>, VaultError> {
        let path = self.path(relay);
        let unreadable = || VaultError::Unreadable(path.clone());
        if self.keep == Keep::Nowhere {
            return Ok(None);
        }
        match self.entry(relay)? {
            None => Ok(None),
            Some(Entry::Session(session)) => Ok(Some(*session).filter(|s| s.relay == *relay)),
            Some(Entry::Keyring(_)) => {
                let kept = self.keyring.get(&self.name(relay)).map_err(VaultError::Keyring)?;
                let session: Option<Session> = kept
                    .map(|text| serde_json::from_str(text.expose()))
                    .transpose()
                    .map_err(|_| unreadable())?;
                Ok(session.filter(|s| s.relay == *relay))
            }
        }
    }

    /// Replaces the session of its relay, whole or not at all.
    pub(crate) fn save(&self, session: &Session) -> Result<Place, VaultError> {
        let path = self.path(&session.relay);
        let text = zeroize::Zeroizing::new(
            serde_json::to_string(session).map_err(|_| VaultError::Unreadable(path.clone()))?,
        );
        let name = self.name(&session.relay);
        match self.keep {
            Keep::Nowhere => return Err(VaultError::Nowhere),
            Keep::File => {}
            Keep::Best | Keep::Os => match self.keyring.set(&name, &text) {
                Ok(()) => {
                    self.write(&path, &Entry::Keyring(session.relay.clone()))?;
                    return Ok(Place::Keyring);
                }
                Err(reason) if self.keep == Keep::Os => return Err(VaultError::Keyring(reason)),
                Err(reason) => tracing::debug!(reason, "no keyring"),
            },
        }
        let stale = matches!(self.entry(&session.relay), Ok(Some(Entry::Keyring(_))));
        self.write(&path, &Entry::Session(Box::new(session.clone())))?;
        if stale {
            // Best effort: the file says now that the keyring's copy counts no more.
            let _ = self.keyring.remove(&name);
        }
        Ok(Place::File(path))
    }

    /// The lock goes once the session is written, even when that takes longer than anybody waits for.
    pub(crate) async fn save_locked(&self, session: Session, lock: Lock) -> Result<Place, VaultError> {
        self.with(move |vault| {
            let _lock = lock;
            vault.save(&session)
        })
        .await
    }

    pub(crate) fn forget(&self, relay: &RelayUrl) -> Result<(), VaultError> {
        if let Ok(Some(Entry::Keyring(_))) = self.entry(relay) {
            self.keyring.remove(&self.name(relay)).map_err(VaultError::Keyring)?;
        }
        let path = self.path(relay);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(VaultError::File { path, source }),
            _ => Ok(()),
        }
    }

    /// The relays that have a session.
    pub(crate) fn relays(&self) -> Result<Vec<RelayUrl>, VaultError> {
        let failed = |source| VaultError::File { path: self.dir.clone(), source };
        let mut relays = Vec::new();
        let listing = match std::fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(relays),
            Err(e) => return Err(failed(e)),
        };
        for item in listing {
            let path = item.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == "json") {
                match read_entry(&path)? {
                    Some(Entry::Keyring(relay)) => relays.push(relay),
                    Some(Entry::Session(session)) => relays.push(session.relay),
                    None => {}
                }
            }
        }
        relays.sort();
        Ok(relays)
    }

    /// The relay that commands mean when none is named: the one last logged in to.
    pub(crate) fn current(&self) -> Option<RelayUrl> {
        std::fs::read_to_string(self.dir.join("current")).ok()?.trim().parse().ok()
    }

    pub(crate) fn set_current(&self, relay: &RelayUrl) -> Result<(), VaultError> {
        let path = self.dir.join("current");
        file::write_atomic(&path, format!("{relay}\n").as_bytes(), Access::Private)
            .map_err(|source| VaultError::File { path, source })
    }

    fn entry(&self, relay: &RelayUrl) -> Result<Option<Entry>, VaultError> {
        read_entry(&self.path(relay))
    }

    fn write(&self, path: &Path, entry: &Entry) -> Result<(), VaultError> {
        let failed = |source| VaultError::File { path: path.to_owned(), source };
        file::create_private_dir(&self.dir).map_err(failed)?;
        let text = zeroize::Zeroizing::new(
            serde_json::to_vec(entry).map_err(|_| VaultError::Unreadable(path.to_owned()))?,
        );
        file::write_atomic(path, &text, Access::Private).map_err(failed)
    }

    /// `+` is in no host name, so that no two relays share a file.
    fn path(&self, relay: &RelayUrl) -> PathBuf {
        self.dir.join(format!("{}+{}.json", relay.host(), relay.port()))
    }

    fn name(&self, relay: &RelayUrl) -> String {
        if self.own_dir { format!("{relay} {}", self.dir.display()) } else { relay.to_string() }
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
