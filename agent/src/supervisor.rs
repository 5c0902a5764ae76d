//! The agent's start and end: keeps `connections` tunnels to each relay, spread over threads with a runtime of their own, and leaves in
//! order: goodbye on the control streams, requests finish within the grace, then the tunnels close.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use postern_base::admin::{AdminError, Socket, socket_path};
use postern_base::file;
use postern_base::shutdown::Shutdown;
use postern_wire::link::LinkKind;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::admin;
use crate::audit::Audit;
use crate::chain::Heads;
use crate::config::Loaded;
use crate::identity::renewals::Renewals;
use crate::identity::{self, AgentIdentity, IdentityError};
use crate::lease::Leases;
use crate::observe::Metrics;
use crate::recover::{self, RecoverError};
use crate::settings::{RelayAddress, Settings};
use crate::tunnel::clock::Clock;
use crate::tunnel::view::View;
use crate::tunnel::{self, wake};
use crate::upstream::health::Health;
use crate::upstream::{UpstreamError, Upstreams};
use crate::verify::Verifier;

/// An issuer that was down is asked again.
const WARM: Duration = Duration::from_mins(1);

/// How often a clock that may have been set is looked at, where everything else waits for it.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

/// Why an agent did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Recover(Box<RecoverError>),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the audit log {path}: {source}; choose another place with audit.file in agent.toml")]
    Audit { path: String, source: std::io::Error },
    #[error("{0}: {1}")]
    Verify(String, String),
    #[error("cannot listen on {address} (metrics): {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{0}")]
    Runtime(#[from] std::io::Error),
}

/// A running agent: what all its tunnels share.
#[derive(Debug)]
pub struct Agent {
    pub settings: Arc<Settings>,
    pub identity: Arc<AgentIdentity>,
    pub metrics: Metrics,
    pub audit: Audit,
    /// Of the relays' audit logs.
    pub heads: Heads,
    /// The upstreams, and what is offered of them.
    pub health: Health,
    pub shutdown: Shutdown,
    /// Counts how often this process slept.
    pub wakes: watch::Sender<u64>,
    /// Tunnels over which a request would succeed now.
    usable: AtomicUsize,
    /// Of the certificate.
    pub renewals: Renewals,
    pub clock: Clock,
    /// A relay would not have this agent, and does not say why: its certificate may have ended by the relay's clock.
    pub(crate) doubts: Notify,
    pub view: View,
    /// None where no service decides again.
    pub verifier: Option<Verifier>,
    /// Renewals for the live streams that wait for them.
    pub leases: Leases,
}

/// Counts a tunnel as usable while it lives.
#[derive(Debug)]
pub struct Usable {
    agent: Arc<Agent>,
    tunnels: Gauge,
}

impl Agent {
    pub fn usable(self: &Arc<Self>, link: LinkKind) -> Usable {
        self.usable.fetch_add(1, Ordering::Relaxed);
        let tunnels = self.metrics.tunnels(link);
        tunnels.inc();
        Usable { agent: self.clone(), tunnels }
    }

    /// Resolves once the certificate is in force: before, no relay would take it.
    pub(crate) async fn certified(&self) {
        let mut changes = self.identity.changes();
        while self.identity.is_expired(self.now()) {
            // The clock may be set, too.
            let _ = tokio::time::timeout(CLOCK_LOOK, changes.changed()).await;
        }
    }

    pub fn usable_tunnels(&self) -> usize {
        self.usable.load(Ordering::Relaxed)
    }
}

impl Drop for Usable {
    fn drop(&mut self) {
        self.agent.usable.fetch_sub(1, Ordering::Relaxed);
        self.tunnels.dec();
    }
}

/// Runs an agent until it is told to stop.
///
/// # Errors
/// Something it needs could not be had at the start.
pub fn run(loaded: Loaded) -> Result<(), AgentError> {
    let settings = loaded.settings;
    if settings.identity.is_some() {
        // Nobody joined here, which would have made it.
        file::create_private_dir(&settings.state)?;
    }
    // Until the audit log is closed.
    let _only = identity::only_one(&settings.state)?;
    let identity = match &settings.identity {
        Some(files) => AgentIdentity::elsewhere(files)?,
        None => AgentIdentity::load(&settings.state)?,
    };
    let audit = Audit::open(settings.audit.as_ref(), &identity).map_err(|source| {
        let path = settings.audit.as_ref().map_or(String::new(), |audit| audit.to.to_string());
        AgentError::Audit { path, source }
    })?;
    let verification = settings.verification.as_ref();
    let verifier = verification.map(|v| Verifier::new(v, SystemTime::now())).transpose();
    let verifier = verifier.map_err(|problem| AgentError::Verify(problem.at.join("."), problem.message))?;
    let agent = Arc::new(Agent {
        identity: Arc::new(identity),
        settings: settings.clone(),
        metrics: Metrics::default(),
        audit,
        heads: Heads::default(),
        health: Health::new(&settings)?,
        shutdown: Shutdown::new(),
        wakes: watch::Sender::new(0),
        usable: AtomicUsize::new(0),
        renewals: Renewals::default(),
        clock: Clock::default(),
        doubts: Notify::new(),
        view: View::default(),
        verifier,
        leases: Leases::default(),
    });
    let slots: Vec<RelayAddress> = settings
        .relays
        .iter()
        .flat_map(|relay| std::iter::repeat_n(relay.clone(), settings.connections))
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = cores.min(slots.len());
    let (finished, done) = watch::channel(0);
    let finished = Arc::new(finished);
    let mut threads = Vec::new();
    for worker in 0..count {
        let mine: Vec<RelayAddress> = slots.iter().skip(worker).step_by(count).cloned().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let upstreams = Arc::new(Upstreams::new(&agent.health));
        let (agent, finished) = (agent.clone(), finished.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{worker}")).spawn(move || {
            runtime.block_on(async {
                let mut tunnels = JoinSet::new();
                for relay in mine {
                    tunnels.spawn(tunnel::keep(agent.clone(), upstreams.clone(), relay));
                }
                while tunnels.join_next().await.is_some() {}
            });
            finished.send_modify(|count| *count += 1);
        })?;
        threads.push(thread);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(watch_over(&agent, done, count));
    agent.shutdown.end();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker ended with a panic");
        }
    }
    agent.audit.close();
    served
}

/// The main thread: metrics, health, signals, and whether we slept.
async fn watch_over(
    agent: &Arc<Agent>,
    mut done: watch::Receiver<usize>,
    count: usize,
) -> Result<(), AgentError> {
    let mut tasks = JoinSet::new();
    let mut hangup = signal(SignalKind::hangup())?;
    tasks.spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!("SIGHUP: restart to read agent.toml again");
        }
    });
    let socket = Socket::bind(&socket_path(&agent.settings.state))?;
    tasks.spawn(admin::serve(agent.clone(), socket));
    if let Some(address) = agent.settings.metrics {
        let listener =
            TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
        tracing::info!("listening metrics={}", listener.local_addr()?);
        tasks.spawn(postern_base::observe::serve(agent.clone(), listener));
    }
    let looking = agent.clone();
    tasks.spawn(async move { looking.health.watch().await });
    let verifying = agent.clone();
    tasks.spawn(async move {
        while let Some(verifier) = &verifying.verifier {
            verifier.warm().await;
            tokio::time::sleep(WARM).await;
        }
    });
    let looking = agent.clone();
    tasks.spawn(async move { wake::watch(&looking.wakes).await });
    let idle = async move {
        // The sender lives as long as a worker does; were it gone, they all are.
        let _ = done.wait_for(|finished| *finished >= count).await;
    };
    tokio::select! {
        ended = agent.shutdown.on_signals(|| agent.settings.drain, idle) => Ok(ended?),
        // Nothing would ever come of waiting on: whoever watches over services is to see that this one failed, and why.
        refused = recover::watch(agent) => Err(AgentError::Recover(Box::new(refused))),
    }
}
