//! The OS keyring: takes a small secret under a name and gives it back; refuses in the keyring's own words.

use postern_base::secret::Secret;

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
    pub(super) fn set(&self, name: &str, secret: &str) -> Result<(), String> {
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
    pub(super) fn get(&self, name: &str) -> Result<Option<Secret>, String> {
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

    pub(super) fn remove(&self, name: &str) -> Result<(), String> {
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
