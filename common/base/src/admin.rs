//! The admin API of a running server: HTTP/1.1 with JSON on a unix socket in its state directory, for its own user and root alone. Takes
//! calls at one end and asks them at the other; what they mean is each program's own. Refuses other users, and what is large or late.

use std::path::{Path, PathBuf};

pub mod actor;
pub mod client;
pub mod socket;

pub use actor::Actor;
pub use client::{Client, ClientError};
pub use socket::{Answer, Call, Socket};

/// The largest file that goes over the socket either way: a backup of some 100,000 agents.
const FILE: usize = 256 * 1024 * 1024;

/// The socket's place in the state directory.
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("admin.sock")
}

/// Why the admin API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("{0} is in use: something that runs answers on it; stop that first")]
    AlreadyRunning(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}
