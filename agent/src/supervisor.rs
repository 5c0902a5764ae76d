//! The agent's start and end: keeps `connections` tunnels to each relay, spread over threads with a runtime of their own, and leaves in
//! order: goodbye on the control streams, requests finish within the grace, then the tunnels close.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_base::shutdown::Shutdown;
use postern_wire::link::LinkKind;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Loaded;
use crate::identity::{AgentIdentity, IdentityError};
use crate::observe::{self, Metrics};
use crate::settings::{RelayAddress, Settings};
use crate::tunnel::{self, wake};
use crate::upstream::health::Health;
use crate::upstream::{UpstreamError, Upstreams};

/// Why an agent did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("cannot listen on {address} (metrics): {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("{0}")]
    Runtime(#[from] std::io::Error),
}

/// A running agent: what all its tunnels share.
#[derive(Debug)]
pub struct Agent {
    pub settings: Arc<Settings>,
    pub identity: AgentIdentity,
    pub metrics: Metrics,
    /// The upstreams, and what is offered of them.
    pub health: Health,
    pub shutdown: Shutdown,
    /// Counts how often this process slept.
    pub wakes: watch::Sender<u64>,
    /// Tunnels over which a request would succeed now.
    usable: AtomicUsize,
    /// One tunnel renews the certificate at a time.
    pub renewing: Arc<tokio::sync::Mutex<()>>,
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
    let agent = Arc::new(Agent {
        identity: AgentIdentity::load(&settings.state)?,
        settings: settings.clone(),
        metrics: Metrics::default(),
        health: Health::new(&settings)?,
        shutdown: Shutdown::new(),
        wakes: watch::Sender::new(0),
        usable: AtomicUsize::new(0),
        renewing: Arc::default(),
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
    served
}

/// The main thread: metrics, health, signals, and whether we slept.
async fn watch_over(
    agent: &Arc<Agent>,
    mut done: watch::Receiver<usize>,
    count: usize,
) -> Result<(), AgentError> {
    let mut tasks = JoinSet::new();
    if let Some(address) = agent.settings.metrics {
        let listener =
            TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
        tracing::info!("listening metrics={}", listener.local_addr()?);
        tasks.spawn(observe::serve(agent.clone(), listener));
    }
    let looking = agent.clone();
    tasks.spawn(async move { looking.health.watch().await });
    let looking = agent.clone();
    tasks.spawn(async move { wake::watch(&looking.wakes).await });
    let idle = async move {
        // The sender lives as long as a worker does; were it gone, they all are.
        let _ = done.wait_for(|finished| *finished >= count).await;
    };
    agent.shutdown.on_signals(|| agent.settings.drain, idle).await?;
    Ok(())
}
