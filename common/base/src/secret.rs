//! Takes references to secrets (`{ file = … }`, `{ env = … }`, `{ credential = … }`); gives values whose Debug shows nothing;
//! refuses empty ones. Secrets are never written in a configuration file itself.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A secret text: zeroised on drop, and neither Debug nor Display shows it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The value itself: for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum SecretRef {
    /// A file; one trailing newline is dropped.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential: a file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Why a secret could not be had. Names the place, never the value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("environment variable {0} is not set: set it before starting")]
    Env(String),
    #[error(
        "no systemd credentials here (CREDENTIALS_DIRECTORY is not set): add LoadCredential={0}:… to the unit"
    )]
    NoCredentials(String),
    #[error("the secret in {0} is empty")]
    Empty(String),
}

impl SecretRef {
    pub fn load(&self) -> Result<Secret, SecretError> {
        let (value, place) = match self {
            Self::File(path) => (read(path)?, path.display().to_string()),
            Self::Env(name) => (
                std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?,
                format!("environment variable {name}"),
            ),
            Self::Credential(name) => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                let path = Path::new(&dir).join(name);
                (read(&path)?, format!("credential {name}"))
            }
        };
        let value = Zeroizing::new(value);
        let trimmed = value.strip_suffix('\n').unwrap_or(&value);
        let trimmed = trimmed.strip_suffix('\r').unwrap_or(trimmed);
        if trimmed.is_empty() { Err(SecretError::Empty(place)) } else { Ok(Secret::new(trimmed)) }
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    std::fs::read_to_string(path).map_err(|source| SecretError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_and_files_lose_one_newline() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "hunter2\n").unwrap();
        assert_eq!(SecretRef::File(path.clone()).load().unwrap().expose(), "hunter2");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(SecretRef::File(path).load(), Err(SecretError::Empty(_))));
    }
}
