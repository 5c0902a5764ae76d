//! Takes a path; gives the right to change what it guards, held by one process (and one task) at a time; refuses after a deadline.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Longer than any renewal may take (two HTTP timeouts), so that only a hung process is ever reported.
const PATIENCE: Duration = Duration::from_secs(30);
/// `flock` has no asynchronous wait; a renewal takes tens of milliseconds at least.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("the session cannot be changed: {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("another postern process has held {0} for {PATIENCE:?}")]
    Held(PathBuf),
}

/// An exclusive `flock`; dropping it releases it, and so does the end of the process, however it comes.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of this file, which is made when it is missing and never removed.
    pub(crate) async fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(LockError::Held(path.to_owned()));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_taker_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).await.unwrap();
        let mut second = Box::pin(Lock::take(&path));
        let early = tokio::time::timeout(Duration::from_millis(60), &mut second).await;
        assert!(early.is_err(), "it must wait while the first holds");
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), second).await.unwrap().unwrap();
    }
}
