//! The service manager, where there is one (systemd's protocols). Takes the sockets that it holds for us, so that callers wait in them
//! while the relay restarts; tells it when the relay is ready, reloads, stops, and that no worker hangs. Without one nothing happens.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::workers::Workers;

/// What was handed over at the start.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// For `listen.https`, in its place.
    pub(super) https: Vec<TcpListener>,
    /// For `listen.quic`, in its place.
    pub(super) quic: Option<UdpSocket>,
}

/// Why sockets that were handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    #[error(
        "the service manager handed over socket {0}, which is neither a TCP listener nor UDP: see postern-relay.socket"
    )]
    Kind(usize),
    #[error(
        "the service manager handed over two UDP sockets; agents arrive on one: see postern-relay.socket"
    )]
    TwoUdp,
    #[error(
        "the service manager handed over {given}, and {key} in relay.toml says {configured}: make both the same"
    )]
    Elsewhere { key: &'static str, given: SocketAddr, configured: SocketAddr },
    #[error("the service manager's sockets: {0}")]
    Io(#[from] std::io::Error),
}

impl Inherited {
    /// Takes what there is; to be called once, before any other thread runs.
    pub(super) fn take() -> Result<Self, SocketsError> {
        let mut given = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..given.len() {
            if let Ok(Some(listener)) = given.take_tcp_listener(index) {
                inherited.https.push(listener);
            } else if let Ok(Some(socket)) = given.take_udp_socket(index) {
                if inherited.quic.replace(socket).is_some() {
                    return Err(SocketsError::TwoUdp);
                }
            } else {
                return Err(SocketsError::Kind(index));
            }
        }
        Ok(inherited)
    }

    /// Refuses sockets on another port than relay.toml names: half of what it says about where to reach the relay would be wrong.
    pub(super) fn check(&self, https: SocketAddr, quic: SocketAddr) -> Result<(), SocketsError> {
        for listener in &self.https {
            agree("listen.https", listener.local_addr()?, https)?;
        }
        match &self.quic {
            Some(socket) => agree("listen.quic", socket.local_addr()?, quic),
            None => Ok(()),
        }
    }
}

fn agree(key: &'static str, given: SocketAddr, configured: SocketAddr) -> Result<(), SocketsError> {
    if configured.port() != 0 && given.port() != configured.port() {
        return Err(SocketsError::Elsewhere { key, given, configured });
    }
    Ok(())
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
}

/// Requests are served from now on.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins; it ends with [`ready`], whatever came of it.
pub(super) fn reloading() {
    // Without a clock there is no service manager that would ask for it.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The drain begins.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the relay lives, for as long as all workers answer in time; does nothing where no watchdog was asked for.
pub(super) async fn watch(workers: &Workers) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let pause = limit / 2;
    loop {
        if tokio::time::timeout(pause, workers.respond()).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a worker has not answered for {pause:?}");
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_elsewhere_than_configured_are_refused() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let given = tcp.local_addr().unwrap();
        let inherited = Inherited { https: vec![tcp], quic: None };
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        inherited.check(given, any).unwrap();
        inherited.check(any, any).unwrap();
        let other = SocketAddr::new(given.ip(), given.port() ^ 1);
        let error = inherited.check(other, any).unwrap_err().to_string();
        assert!(error.contains("listen.https") && error.contains(&given.to_string()), "{error}");
    }
}
