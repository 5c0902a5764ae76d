//! Takes services and places to listen; serves each service there for local programs until told to stop. Bounded connections, limits on
//! slow heads, every connection's task owned.

pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod link;
pub(crate) mod location;
pub(crate) mod peer;
pub(crate) mod spec;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use guard::Door;
use http::Service;

/// More at once than any local program needs; the rest waits to be accepted.
const CONNECTIONS: usize = 256;
/// For a request's head, and for a kept-alive connection to send its next.
const HEAD: Duration = Duration::from_mins(1);
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
                    && tokio::net::UnixStream::connect(path).await.is_err();
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

/// One service behind one entrance.
pub(crate) struct Forward {
    pub(crate) service: Arc<Service>,
    pub(crate) entrance: Entrance,
    /// How programs call this place, without a slash at the end: `http://127.0.0.1:8080`.
    pub(crate) local: String,
    /// End when the connection of the first request is closed.
    pub(crate) once: bool,
}

impl Forward {
    /// Serves until dropped, or, with `once`, until the first connection that carried a request is closed.
    pub(crate) async fn serve(self) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
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
                    Ok((stream, door, own)) => {
                        let (service, local) = (self.service.clone(), self.local.clone());
                        connections.spawn(async move {
                            let _slot = slot;
                            connection(stream, service, door, own, local).await
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

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Stream = Box<dyn Io>;

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

/// Serves one connection; says whether it carried a request.
async fn connection(stream: Stream, service: Arc<Service>, door: Door, owner: Owner, local: String) -> bool {
    let own = match owner {
        Owner::Anyone => true,
        Owner::Other => false,
        Owner::Ask { peer, local } => peer::is_own(peer, local).await,
    };
    let served = AtomicBool::new(false);
    let answer = service_fn(|request: Request<Incoming>| {
        served.store(true, Ordering::Relaxed);
        let (service, local) = (&service, &local);
        async move { Ok::<_, Infallible>(service.answer(request, door, own, local).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "local connection");
    }
    served.into_inner()
}
