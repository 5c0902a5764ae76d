//! Which forwards run as this user. Each running one has a file that says what it serves (0600) and holds a lock on it, so that one whose
//! process is no more is known, and its file removed. Nothing secret is written. Not being able to write is no reason not to forward.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::relay_api::address::RelayUrl;
use crate::session::now;

/// More than any command line names.
const LONGEST: u64 = 256 * 1024;

/// What one process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Posted {
    pub(crate) pid: u32,
    pub(crate) relay: RelayUrl,
    /// In seconds since the epoch.
    pub(crate) since: u64,
    pub(crate) serves: Vec<Served>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Served {
    /// As it was announced: `http://127.0.0.1:8080`, `127.0.0.1:5432`, a socket's path, `socks5h://127.0.0.1:1080`.
    pub(crate) place: String,
    /// None: every service, by its name.
    pub(crate) service: Option<String>,
}

/// The notice of a running forward; it goes with it.
#[derive(Debug)]
pub(crate) struct Notice {
    path: PathBuf,
    _locked: File,
}

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Says what this process serves, as long as the notice lives.
pub(crate) fn post(dir: &Path, relay: &RelayUrl, serves: Vec<Served>) -> io::Result<Notice> {
    let dir = dir.join("forwards");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let pid = std::process::id();
    let path = dir.join(format!("{pid}.json"));
    let posted = Posted { pid, relay: relay.clone(), since: now(), serves };
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    file.try_lock()?;
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&posted).map_err(io::Error::other)?)?;
    Ok(Notice { path, _locked: file })
}

/// The forwards that run now, the oldest first.
pub(crate) fn posted(dir: &Path) -> Vec<Posted> {
    let Ok(files) = std::fs::read_dir(dir.join("forwards")) else { return Vec::new() };
    let paths = files.flatten().map(|file| file.path());
    let mut found: Vec<Posted> = paths.filter_map(|path| read(&path)).collect();
    found.sort_by_key(|posted| (posted.since, posted.pid));
    found
}

fn read(path: &Path) -> Option<Posted> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(LONGEST).read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        }
        // Nobody holds it: whoever wrote it is no more.
        Ok(()) => {
            let _ = std::fs::remove_file(path);
            None
        }
        Err(TryLockError::Error(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_there_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let relay: RelayUrl = "relay.example.com".parse().unwrap();
        let served = Served { place: "http://127.0.0.1:8080".into(), service: Some("billing".into()) };
        assert!(posted(dir.path()).is_empty());
        let notice = post(dir.path(), &relay, vec![served.clone()]).unwrap();
        let found = posted(dir.path());
        assert_eq!((found.len(), &found[0].serves[..], found[0].pid), (1, &[served][..], std::process::id()));
        let path = notice.path.clone();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777;
        assert_eq!(mode, 0o600);
        drop(notice);
        assert!(posted(dir.path()).is_empty() && !path.exists());
        // One that was killed leaves its file behind, and no lock.
        std::fs::write(&path, b"{}").unwrap();
        assert!(posted(dir.path()).is_empty() && !path.exists());
    }
}
