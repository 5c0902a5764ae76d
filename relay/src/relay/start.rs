//! Start and end of a relay: binds everything before it serves anything, then runs until told to stop, and leaves in order:
//! no new work, goodbye on the control streams, what runs finishes within the grace, then the tunnels close and the audit log with them.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::shutdown::Shutdown;
use postern_wire::link::{Code, quic};
use postern_wire::tls::{self, Identity};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::{Relay, RelayError};
use crate::config::Loaded;
use crate::workers::{self, Workers};
use crate::{admin, public};

/// A certificate exchanged on disk is in use within this time.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);
/// How often issuers' keys are looked at; what is fresh costs nothing.
const KEYS_CHECK: Duration = Duration::from_secs(15);
/// Streams that an agent may open: the control stream of a tunnel, or the one of a join.
const AGENT_STREAMS: u32 = 1;
/// How long the last packets may take after the tunnels were closed.
const LAST_PACKETS: Duration = Duration::from_secs(2);

/// Runs a relay until it is told to stop.
///
/// # Errors
/// Something it needs could not be had at the start.
pub fn run(path: PathBuf, loaded: Loaded) -> Result<(), RelayError> {
    let relay = Arc::new(Relay::new(path, loaded, SystemTime::now())?);
    let settings = relay.snapshot().settings.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = workers::bind(settings.listen.https, settings.limits.workers)
        .map_err(|source| RelayError::Listen { what: "https", address: settings.listen.https, source })?;
    let https = listeners.first().map(std::net::TcpListener::local_addr).transpose()?;
    // "The same number": with port 0 the UDP side takes what TCP was given, where it is free.
    let quic = quic_address(settings.listen.quic, settings.listen.https, https);
    let socket = UdpSocket::bind(quic).or_else(|_| UdpSocket::bind(settings.listen.quic));
    let socket = socket.map_err(|source| RelayError::Listen { what: "quic", address: quic, source })?;
    let workers = Workers::start(&relay, listeners)?;
    let served = runtime.block_on(serve(relay.clone(), socket, https, &workers));
    workers.join();
    relay.audit().close();
    served
}

fn quic_address(quic: SocketAddr, https: SocketAddr, bound: Option<SocketAddr>) -> SocketAddr {
    match bound {
        Some(bound) if quic.port() == 0 && https.port() == 0 => SocketAddr::new(quic.ip(), bound.port()),
        _ => quic,
    }
}

async fn serve(
    relay: Arc<Relay>,
    socket: UdpSocket,
    https: Option<SocketAddr>,
    workers: &Workers,
) -> Result<(), RelayError> {
    let started = start(&relay, socket, workers).await;
    let (endpoint, tasks, quic, metrics) = match started {
        Ok(started) => started,
        Err(e) => {
            relay.shutdown().end();
            return Err(e);
        }
    };
    if let Some(https) = https {
        tracing::info!("listening https={https}");
    }
    tracing::info!("listening quic={quic}");
    if let Some(metrics) = metrics {
        tracing::info!("listening metrics={metrics}");
    }
    tasks.spawn(until_drain(relay.shutdown(), keep_keys(relay.clone())));
    let grace = || relay.snapshot().settings.limits.drain;
    relay.shutdown().on_signals(grace, workers.idle()).await?;
    endpoint.close(Code::DRAINED.0.into(), b"the relay shut down");
    let _ = tokio::time::timeout(LAST_PACKETS, endpoint.wait_idle()).await;
    tasks.close();
    let _ = tokio::time::timeout(LAST_PACKETS, tasks.wait()).await;
    Ok(())
}

type Started = (quinn::Endpoint, TaskTracker, SocketAddr, Option<SocketAddr>);

async fn start(relay: &Arc<Relay>, socket: UdpSocket, workers: &Workers) -> Result<Started, RelayError> {
    let settings = relay.snapshot().settings.clone();
    let (chain, key) = relay.enrollment().relay_identity(&settings.name, SystemTime::now())?;
    let identity = Arc::new(Identity::new(chain, key)?);
    let config =
        tls::relay_config(identity.clone(), relay.enrollment().root(), &[tls::ALPN_TUNNEL, tls::ALPN_JOIN])?;
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config)
        .map_err(|e| RelayError::Certificate(e.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(config));
    server.transport_config(quic::transport(AGENT_STREAMS));
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(server), socket, runtime)?;
    let quic = endpoint.local_addr()?;
    let tasks = TaskTracker::new();
    let metrics = match settings.listen.metrics {
        None => None,
        Some(address) => {
            let listen = |source| RelayError::Listen { what: "metrics", address, source };
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            let bound = listener.local_addr()?;
            tasks.spawn(until_cut(relay.shutdown(), public::observe::serve(relay.clone(), listener)));
            Some(bound)
        }
    };
    let socket = settings.state.join("admin.sock");
    let listener = admin::bind(&socket)?;
    let answering = admin::serve(listener, relay.clone());
    tasks.spawn(until_cut(relay.shutdown(), answering));
    tasks.spawn(until_cut(relay.shutdown(), workers.accept(endpoint.clone(), relay.clone())));
    tasks.spawn(until_cut(relay.shutdown(), renew_identity(relay.clone(), identity)));
    tasks.spawn(until_cut(relay.shutdown(), watch_certificate(relay.clone())));
    tasks.spawn(until_cut(relay.shutdown(), reload_on_hangup(relay.clone())));
    Ok((endpoint, tasks, quic, metrics))
}

/// Runs `work` until it is done or the grace is over.
fn until_cut<F: Future<Output = ()>>(shutdown: &Shutdown, work: F) -> impl Future<Output = ()> + use<F> {
    let shutdown = shutdown.clone();
    async move {
        tokio::select! { () = work => {}, () = shutdown.cut() => {} }
    }
}

/// Runs `work` until it is done or the drain begins.
fn until_drain<F: Future<Output = ()>>(shutdown: &Shutdown, work: F) -> impl Future<Output = ()> + use<F> {
    let shutdown = shutdown.clone();
    async move {
        tokio::select! { () = work => {}, () = shutdown.draining() => {} }
    }
}

/// The relay's own certificate towards agents is made anew at half-life.
async fn renew_identity(relay: Arc<Relay>, identity: Arc<Identity>) {
    loop {
        let settings = relay.snapshot().settings.clone();
        tokio::time::sleep(settings.agents.cert_ttl / 2).await;
        match relay.enrollment().relay_identity(&settings.name, SystemTime::now()) {
            Ok((chain, key)) => match identity.replace(chain, key) {
                Ok(()) => tracing::info!("the relay's certificate towards agents was renewed"),
                Err(e) => {
                    tracing::error!(error = %e, "the relay's certificate towards agents could not be used");
                }
            },
            Err(e) => {
                tracing::error!(error = %e, "the relay's certificate towards agents could not be renewed");
            }
        }
    }
}

/// Issuers' keys are fetched before the first token needs them, and kept fresh.
async fn keep_keys(relay: Arc<Relay>) {
    loop {
        let issuers = relay.snapshot().issuers.clone();
        issuers.warm().await;
        tokio::time::sleep(KEYS_CHECK).await;
    }
}

async fn watch_certificate(relay: Arc<Relay>) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        // This runtime drives the endpoint of all tunnels: nothing on it waits for a disk.
        let look = relay.clone();
        match tokio::task::spawn_blocking(move || look.certificate().refresh())
            .await
            .unwrap_or_else(|e| Err(e.to_string()))
        {
            Ok(false) => {}
            Ok(true) => tracing::info!("the public certificate changed and is in use"),
            Err(e) => {
                tracing::warn!(error = %e, "the public certificate changed and cannot be used; the old one stays");
            }
        }
    }
}

async fn reload_on_hangup(relay: Arc<Relay>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(e) => return tracing::error!(error = %e, "SIGHUP cannot be caught; use `postern-relay reload`"),
    };
    while hangup.recv().await.is_some() {
        let reloading = relay.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || reloading.reload()).await else { continue };
        match reloaded {
            Ok(changes) => tracing::info!(changes = %changes.join("; "), "reloaded"),
            Err(errors) => {
                for error in errors {
                    tracing::error!("not reloaded: {error}");
                }
            }
        }
    }
}
