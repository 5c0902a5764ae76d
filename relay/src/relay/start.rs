//! Start and end of a relay: binds everything before it serves anything, then runs until told to stop, and leaves in order:
//! no new work, goodbye on the control streams, what runs finishes within the grace, then the tunnels close and the audit log with them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::observe;
use postern_base::shutdown::Shutdown;
use postern_wire::link::Code;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::manager::{self, Inherited};
use super::{Relay, RelayError};
use crate::config::Loaded;
use crate::enroll::Enrollment;
use crate::tunnel::{authority, heads, seen};
use crate::workers::{Workers, listen};
use crate::{admin, session};

/// A certificate exchanged on disk is in use within this time.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);
/// How often issuers' keys are looked at; what is fresh costs nothing.
const KEYS_CHECK: Duration = Duration::from_secs(15);
/// How often it is looked at whether the keys of the assertion are due to change; they live for weeks.
const ASSERTION_CHECK: Duration = Duration::from_hours(1);
/// How often it is looked at whether counted refusals are due to be told.
const COUNTED_CHECK: Duration = Duration::from_secs(1);
/// How long the last packets may take after the tunnels were closed. An agent that misses its goodbye hears from the next process that its
/// tunnel is gone.
const LAST_PACKETS: Duration = Duration::from_millis(300);

/// Runs a relay until it is told to stop.
///
/// # Errors
/// Something it needs could not be had at the start.
pub fn run(path: PathBuf, loaded: Loaded) -> Result<(), RelayError> {
    let inherited = Inherited::take()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enrollment = runtime.block_on(Enrollment::open_when_free(loaded.settings.enrolling()))?;
    let enrollment = enrollment.ok_or(RelayError::AlreadyRuns)?;
    let relay = Arc::new(Relay::new(path, loaded, enrollment, SystemTime::now())?);
    let ended = runtime.block_on(start(&relay, inherited)).and_then(|started| {
        let served = runtime.block_on(serve(&relay, &started));
        started.workers.join();
        served
    });
    if let Err(e) = relay.enrollment().note_seen() {
        tracing::warn!(error = %e, "when agents were last seen could not be noted");
    }
    relay.audit().tell_counted(true);
    relay
        .audit()
        .event("stop", serde_json::json!({ "outcome": if ended.is_ok() { "ok" } else { "failed" } }));
    relay.audit().close();
    ended
}

/// A relay that is being served.
struct Started {
    workers: Arc<Workers>,
    tasks: TaskTracker,
    https: Vec<SocketAddr>,
    metrics: Option<SocketAddr>,
}

/// Everything that can fail is had before the first connection is taken.
async fn start(relay: &Arc<Relay>, inherited: Inherited) -> Result<Started, RelayError> {
    let settings = relay.snapshot().settings.clone();
    let (shutdown, tasks) = (relay.shutdown(), TaskTracker::new());
    let refused = |what, address| move |source| RelayError::Listen { what, address, source };
    inherited.check(settings.listen.https, settings.listen.quic)?;
    let count = settings.limits.workers;
    let listeners = if inherited.https.is_empty() {
        listen::tcp(settings.listen.https, count).map_err(refused("https", settings.listen.https))?
    } else {
        listen::shared(&inherited.https, count)?
    };
    let of_one = listeners.first().into_iter().flat_map(|of_one| &of_one.sockets);
    let https = of_one.map(std::net::TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let socket = if let Some(socket) = inherited.quic {
        socket
    } else {
        // "The same number": with port 0 the UDP side takes what TCP was given, where it is free.
        let quic = quic_address(settings.listen.quic, settings.listen.https, https.first());
        let bound = listen::udp(quic).or_else(|_| listen::udp(settings.listen.quic));
        bound.map_err(refused("quic", quic))?
    };
    let hangup = signal(SignalKind::hangup())?;
    let listener = admin::bind(&settings.state)?;
    let metrics = match settings.listen.metrics {
        None => None,
        Some(address) => {
            let listener = TcpListener::bind(address).await.map_err(refused("metrics", address))?;
            let bound = listener.local_addr()?;
            tasks.spawn(until_cut(shutdown, observe::serve(relay.clone(), listener)));
            Some(bound)
        }
    };
    let workers = Arc::new(Workers::start(relay, listeners, socket)?);
    tasks.spawn(until_cut(shutdown, admin::serve(listener, relay.clone())));
    tasks.spawn(until_cut(shutdown, authority::keep(relay.clone())));
    tasks.spawn(until_cut(shutdown, watch_certificate(relay.clone())));
    tasks.spawn(until_cut(shutdown, rotate_assertion_keys(relay.clone())));
    tasks.spawn(until_cut(shutdown, reload_on_hangup(relay.clone(), hangup)));
    tasks.spawn(until_cut(shutdown, session::keep(relay.clone())));
    tasks.spawn(until_cut(shutdown, heads::hand_out(relay.clone())));
    tasks.spawn(until_cut(shutdown, seen::keep(relay.clone())));
    tasks.spawn(until_cut(shutdown, tell_counted(relay.clone())));
    let watched = workers.clone();
    tasks.spawn(until_cut(shutdown, async move { manager::watch(&watched).await }));
    tasks.spawn(until_drain(shutdown, keep_keys(relay.clone())));
    Ok(Started { workers, tasks, https, metrics })
}

fn quic_address(quic: SocketAddr, https: SocketAddr, bound: Option<&SocketAddr>) -> SocketAddr {
    match bound {
        Some(bound) if quic.port() == 0 && https.port() == 0 => SocketAddr::new(quic.ip(), bound.port()),
        _ => quic,
    }
}

async fn serve(relay: &Arc<Relay>, started: &Started) -> Result<(), RelayError> {
    let endpoint = &started.workers.endpoint;
    for https in &started.https {
        tracing::info!("listening https={https}");
    }
    tracing::info!("listening quic={}", endpoint.local_addr()?);
    if let Some(metrics) = started.metrics {
        tracing::info!("listening metrics={metrics}");
    }
    manager::ready();
    let (draining, workers) = (relay.shutdown().clone(), started.workers.clone());
    let idle = async move {
        draining.draining().await;
        manager::stopping();
        workers.idle().await;
    };
    let grace = || relay.snapshot().settings.limits.drain;
    relay.shutdown().on_signals(grace, idle).await?;
    endpoint.close(Code::DRAINED.0.into(), b"the relay shut down");
    let _ = tokio::time::timeout(LAST_PACKETS, endpoint.wait_idle()).await;
    started.tasks.close();
    let _ = tokio::time::timeout(LAST_PACKETS, started.tasks.wait()).await;
    Ok(())
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

/// Issuers' keys are fetched before the first token needs them, and kept fresh.
async fn keep_keys(relay: Arc<Relay>) {
    loop {
        let issuers = relay.snapshot().issuers.clone();
        issuers.warm().await;
        tokio::time::sleep(KEYS_CHECK).await;
    }
}

async fn tell_counted(relay: Arc<Relay>) {
    loop {
        tokio::time::sleep(COUNTED_CHECK).await;
        relay.audit().tell_counted(false);
    }
}

async fn rotate_assertion_keys(relay: Arc<Relay>) {
    loop {
        tokio::time::sleep(ASSERTION_CHECK).await;
        let look = relay.clone();
        let looked = tokio::task::spawn_blocking(move || look.onward().keys.rotate(SystemTime::now()));
        match looked.await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => tracing::info!("the published keys of the assertion changed"),
            Ok(Err(e)) => tracing::error!(error = %e, "the keys of the assertion could not be changed"),
            Err(e) => tracing::error!(error = %e, "the keys of the assertion could not be looked at"),
        }
    }
}

async fn watch_certificate(relay: Arc<Relay>) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        // This runtime answers the watchdog and health checks: nothing on it waits for a disk.
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

async fn reload_on_hangup(relay: Arc<Relay>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let reloading = relay.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || reloading.reload()).await else { continue };
        match reloaded {
            Ok((changes, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(changes = %changes.join("; "), "reloaded");
            }
            Err(errors) => {
                for error in errors {
                    tracing::error!("not reloaded: {error}");
                }
            }
        }
    }
}
