//! The admin API of a running relay: what the commands ask of it. Takes calls from the socket (`postern_base::admin`), which only the
//! relay's user and root reach; gives answers from the running relay; audits every change with the caller's uid.

use std::path::Path;
use std::sync::Arc;

use postern_base::admin::{AdminError, Socket, socket_path};

use crate::relay::Relay;

pub(crate) mod api;
pub(crate) mod why;

/// Binds the socket; a dead relay's is replaced.
///
/// # Errors
/// Another relay answers on it, or it cannot be made.
pub fn bind(state: &Path) -> Result<Socket, AdminError> {
    Socket::bind(&socket_path(state))
}

/// Answers calls until dropped.
pub async fn serve(socket: Socket, relay: Arc<Relay>) {
    socket.taking_files(api::FILES).serve(move |call| api::answer(relay.clone(), call)).await;
}
