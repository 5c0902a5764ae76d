//! Takes services and places to listen; serves each service there for local programs until told to stop. Bounded connections, limits on
//! slow heads, every connection's task owned.

pub(crate) mod board;
pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod link;
pub(crate) mod location;
pub(crate) mod means;
pub(crate) mod names;
mod opening;
pub(crate) mod peer;
pub(crate) mod spec;
pub(crate) mod tcp;
pub(crate) mod told;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use guard::Door;
use http::Service;
use http::visit::Visit;
use names::Names;
use peer::{Peers, Whose};
use tcp::Tcp;

/// More at once than local programs need; the rest waits to be accepted. Idle ones cost some 100 KiB each.
pub(crate) const CONNECTIONS: usize = 2048;
/// After a failed accept (no more file descriptors, mostly).
const BREATH: Duration = Duration::from_millis(100);

/// Where local programs come in.
pub(crate) enum Entrance {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Removes the socket's file when the forward ends.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Entrance {
    pub(crate) async fn tcp(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// A socket that only its owner may use (0600); it is made in private and moved to `path`, so that it is never anything else. A socket
    /// left behind by a forward that is no more is replaced, anything else is not.
    pub(crate) async fn unix(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(meta) => {
                let abandoned = std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type())
                    && UnixStream::connect(path).await.is_err();
                if !abandoned {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
            }
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let private = tempfile::Builder::new()
            .prefix(".pf")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir_in(dir)?;
        let made = private.path().join("s");
        let listener = UnixListener::bind(&made)?;
        std::fs::set_permissions(&made, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&made, path)?;
        Ok(Self::Unix { listener, _file: SocketFile(path.to_owned()) })
    }

    /// The port bound, for TCP.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }
}

/// What is served at an entrance.
#[derive(Clone)]
pub(crate) enum Serves {
    Http {
        service: Arc<Service>,
        /// How programs call this place, without a slash at the end: `http://127.0.0.1:8080`.
        local: Arc<str>,
    },
    Tcp(Arc<Tcp>),
    /// Whatever service a program names, by SOCKS.
    Names(Arc<Names>),
}

/// What is served behind one entrance.
pub(crate) struct Forward {
    pub(crate) serves: Serves,
    pub(crate) entrance: Entrance,
    /// End when the first connection that was of use (HTTP: carried a request) is closed.
    pub(crate) once: bool,
}

impl Forward {
    /// Serves until dropped, or, with `once`, until the first connection that was of use is closed.
    pub(crate) async fn serve(self) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let peers = Arc::new(Peers::default());
        let mut connections: JoinSet<bool> = JoinSet::new();
        loop {
            let slot = tokio::select! {
                // The semaphore is never closed.
                slot = slots.clone().acquire_owned() => slot.ok(),
                Some(served) = connections.join_next() => {
                    if self.once && served.unwrap_or(false) {
                        return;
                    }
                    continue;
                }
            };
            tokio::select! {
                accepted = self.accept() => match accepted {
                    Ok((stream, door, owner)) => {
                        let (serves, peers) = (self.serves.clone(), peers.clone());
                        connections.spawn(async move {
                            let _slot = slot;
                            let whose = owner.ask(&peers).await;
                            connection(stream, serves, door, whose).await
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a local connection could not be accepted");
                        tokio::time::sleep(BREATH).await;
                    }
                },
                Some(served) = connections.join_next() => {
                    if self.once && served.unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Door, Owner)> {
        match &self.entrance {
            Entrance::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let local = stream.local_addr()?;
                // Latency counts more than the number of packets on loopback.
                stream.set_nodelay(true)?;
                let guarded = listener.local_addr()?.ip().is_loopback();
                let owner = if guarded { Owner::Ask { peer, local } } else { Owner::Anyone };
                Ok((Box::new(stream), Door::Tcp(local), owner))
            }
            Entrance::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                let owner = if uid == peer::own_uid() { Owner::Anyone } else { Owner::Other };
                Ok((Box::new(stream), Door::Unix, owner))
            }
        }
    }
}

/// A local program's connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// Closing it from here on tells the program that something broke, where its kind can say so.
    fn reset(&self);
}

impl Io for TcpStream {
    fn reset(&self) {
        // It may be gone already.
        let _ = self.set_zero_linger();
    }
}

impl Io for UnixStream {
    fn reset(&self) {}
}

pub(crate) type Stream = Box<dyn Io>;

/// Whose connection it is, as far as that is known when it is accepted.
enum Owner {
    /// Good: ours, or shared on purpose.
    Anyone,
    Other,
    /// To be looked up.
    Ask {
        peer: SocketAddr,
        local: SocketAddr,
    },
}

impl Owner {
    async fn ask(self, peers: &Peers) -> Whose {
        match self {
            Self::Anyone => Whose::Own,
            Self::Other => Whose::Other,
            Self::Ask { peer, local } => peers.whose(peer, local).await,
        }
    }
}

/// Serves one connection; says whether it was of use.
async fn connection(mut stream: Stream, serves: Serves, door: Door, whose: Whose) -> bool {
    match serves {
        Serves::Http { service, local } => {
            Visit::new(service, local, door, whose == Whose::Own).serve(stream).await
        }
        Serves::Tcp(tcp) => tcp.carry(&mut stream, whose).await,
        Serves::Names(names) => names.carry(stream, whose).await,
    }
}
