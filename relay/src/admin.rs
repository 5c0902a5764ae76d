//! The admin API: HTTP/1.1 with JSON on a unix socket in the state directory, for the relay's user and root alone. The commands use
//! it while a relay runs. Takes calls; gives answers from the running relay; audits every change with the caller's uid.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::relay::Relay;

pub(crate) mod api;
pub(crate) mod client;
mod socket;
pub(crate) mod why;

pub use socket::Socket;

/// The socket's place in the state directory.
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("admin.sock")
}

/// Why the admin API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("a relay is already running: it answers on {0}")]
    AlreadyRunning(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// Binds the socket; a dead relay's is replaced.
///
/// # Errors
/// Another relay answers on it, or it cannot be made.
pub fn bind(path: &Path) -> Result<Socket, AdminError> {
    Socket::bind(path)
}

/// Answers calls until dropped.
pub async fn serve(socket: Socket, relay: Arc<Relay>) {
    socket.serve(move |call| api::answer(relay.clone(), call)).await;
}
