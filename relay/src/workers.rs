//! Placement: one thread per core, each with a runtime of its own, its TCP listeners, and the tunnels that were handed to it; the first
//! one drives the QUIC endpoint too. The rest of the relay is written as plain futures and knows a worker only by its id.

use std::future::{pending, poll_fn};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postern_base::sync::lock;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::audit::AuditQueue;
use crate::onward::Identities;
use crate::relay::{Relay, RelayError};
use crate::{public, tunnel};

pub mod listen;

use listen::{BACKLOG, Listeners};

/// Agents' connections handed to a worker that it has not taken up yet: a thousand agents of two tunnels each, twice over.
const HANDED: usize = 4096;
/// QUIC handshakes under way beyond which an address must first prove that it can receive (QUIC Retry).
const HANDSHAKES: usize = 256;
/// After a failed accept (no file descriptors, usually) the next try waits, or the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(usize);

impl WorkerId {
    /// Below the number of workers.
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a worker gives to the connections it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    pub id: WorkerId,
    pub relay: Arc<Relay>,
    pub audit: AuditQueue,
    /// Who called here, as upstreams are told.
    pub identities: Arc<Identities>,
    /// Owns the tasks that serve callers.
    pub tasks: TaskTracker,
    /// Owns the tasks that serve agents; they outlive the callers' requests.
    tunnels: TaskTracker,
    /// Agents' connections on this worker.
    load: Arc<AtomicUsize>,
}

impl Worker {
    /// Serves an agent's TCP connection here, where it was accepted.
    pub fn serve_agent(&self, serving: impl Future<Output = ()> + Send + 'static) {
        self.serve_counted(Counted::new(self.load.clone()), serving);
    }

    fn serve_counted(&self, load: Counted, serving: impl Future<Output = ()> + Send + 'static) {
        self.tunnels.spawn(async move {
            let _load = load;
            serving.await;
        });
    }
}

/// An agent's QUIC connection for a worker. Counted from here on: a burst is spread before the first handshake begins.
#[derive(Debug)]
struct Handed {
    incoming: quinn::Incoming,
    load: Counted,
    handshake: Counted,
}

/// All workers, and the endpoint on which agents arrive.
#[derive(Debug)]
pub struct Workers {
    pub endpoint: quinn::Endpoint,
    runtimes: Vec<Handle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Counts the workers whose callers are all served.
    done: watch::Receiver<usize>,
    /// Fires when nothing needs the workers' runtimes any more.
    exit: CancellationToken,
}

impl Workers {
    /// Starts a worker for each set of TCP listeners.
    pub fn start(relay: &Arc<Relay>, listeners: Vec<Listeners>, quic: UdpSocket) -> Result<Self, RelayError> {
        let (finished, done) = watch::channel(0);
        let finished = Arc::new(finished);
        let exit = CancellationToken::new();
        let mut workers = Vec::new();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (incoming, handed) = mpsc::channel(HANDED);
            let worker = Worker {
                id: WorkerId(index),
                relay: relay.clone(),
                audit: relay.audit().queue(),
                identities: Arc::default(),
                tasks: TaskTracker::new(),
                tunnels: TaskTracker::new(),
                load: Arc::default(),
            };
            workers.push((runtime, worker, listeners, (incoming, handed)));
        }
        let first = workers.first().map(|(runtime, ..)| runtime.handle().clone());
        let endpoint = {
            // Driven by a worker, not by a thread of its own: packets for its tunnels need no wake of another thread.
            let _here = first.as_ref().map(Handle::enter);
            relay.agents().endpoint(quic)?
        };
        let runtimes = workers.iter().map(|(runtime, ..)| runtime.handle().clone()).collect();
        let queues: Vec<_> = workers
            .iter()
            .map(|(_, worker, _, (incoming, _))| (incoming.clone(), worker.load.clone()))
            .collect();
        let mut distribution = Some(distribute(endpoint.clone(), relay.clone(), queues));
        let mut threads = Vec::new();
        for (runtime, worker, listeners, (_, handed)) in workers {
            let distribution = distribution.take();
            let (finished, exit) = (finished.clone(), exit.clone());
            let name = format!("worker-{}", worker.id.0);
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let serving = async {
                    work(&worker, listeners, handed).await;
                    finished.send_modify(|count| *count += 1);
                };
                live(&runtime, serving, distribution, &exit);
            })?);
        }
        Ok(Self { endpoint, runtimes, threads: Mutex::new(threads), done, exit })
    }

    /// Resolves when every worker has finished what it had.
    pub fn idle(&self) -> impl Future<Output = ()> + use<> {
        let (mut done, all) = (self.done.clone(), self.runtimes.len());
        async move {
            // The sender lives as long as a worker does; were it gone, they all are.
            let _ = done.wait_for(|count| *count >= all).await;
        }
    }

    /// Resolves when every worker has run a task: none of them hangs.
    pub fn respond(&self) -> impl Future<Output = ()> + use<> {
        let runtimes = self.runtimes.clone();
        async move {
            for runtime in &runtimes {
                // Fails only where the runtime is gone, and then there is nobody left to hang.
                let _ = AbortOnDropHandle::new(runtime.spawn(async {})).await;
            }
        }
    }

    /// Ends the threads.
    pub fn join(&self) {
        self.exit.cancel();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended with a panic");
            }
        }
    }
}

/// A worker's thread. It outlives its callers: requests of other workers may run over its tunnels, and goodbyes want to be sent.
fn live(
    runtime: &Runtime,
    serving: impl Future<Output = ()>,
    distribution: Option<impl Future<Output = ()>>,
    exit: &CancellationToken,
) {
    let distributing = async {
        if let Some(distribution) = distribution {
            distribution.await;
        }
        pending::<()>().await;
    };
    runtime.block_on(async {
        tokio::select! {
            () = async { serving.await; exit.cancelled().await } => {}
            () = distributing => {}
        }
    });
}

/// Hands each new QUIC connection to the least loaded worker, until the endpoint closes. Nothing is dropped in silence: an address that
/// is over a limit is refused, or asked to prove itself, and comes again.
async fn distribute(
    endpoint: quinn::Endpoint,
    relay: Arc<Relay>,
    queues: Vec<(Sender<Handed>, Arc<AtomicUsize>)>,
) {
    let handshakes = Arc::new(AtomicUsize::new(0));
    while let Some(incoming) = endpoint.accept().await {
        // Only addresses that proved they can receive are counted: a forged one must not lock its owner out.
        let is_proved = incoming.remote_address_validated();
        let is_busy = handshakes.load(Ordering::Relaxed) > HANDSHAKES;
        let address = incoming.remote_address();
        let is_over = !relay.admission().admits_agent(address.ip(), is_proved, Instant::now());
        if relay.shutdown().is_draining() {
            incoming.refuse();
            continue;
        }
        if is_over && is_proved {
            relay.metrics().refused("agents");
            if relay.audit().take_or_count(address.ip(), "agents-busy") {
                tracing::warn!(%address, "an agent was refused: its address has too many at once");
            }
            incoming.refuse();
            continue;
        }
        if (is_busy || is_over) && incoming.may_retry() {
            // Fails only where the address was validated already; then there is nothing to send.
            let _ = incoming.retry();
            continue;
        }
        let least = queues.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed));
        let Some((queue, load)) = least else { break };
        let (load, handshake) = (Counted::new(load.clone()), Counted::new(handshakes.clone()));
        if let Err(TrySendError::Full(handed) | TrySendError::Closed(handed)) =
            queue.try_send(Handed { incoming, load, handshake })
        {
            relay.metrics().refused("agents");
            handed.incoming.refuse();
        }
    }
}

/// One worker's life: accepts until the drain, then waits for the callers it serves until they are done or cut.
async fn work(worker: &Worker, listeners: Listeners, mut handed: Receiver<Handed>) {
    let Listeners { sockets, are_shared } = listeners;
    let listeners: Vec<TcpListener> =
        match sockets.into_iter().map(TcpListener::from_std).collect::<Result<_, _>>() {
            Ok(listeners) => listeners,
            Err(e) => return tracing::error!(error = %e, "a worker cannot listen"),
        };
    let shutdown = worker.relay.shutdown();
    loop {
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            Some(Handed { incoming, load, handshake }) = handed.recv() => {
                let serving = tunnel::serve(worker.relay.clone(), incoming, worker.id, handshake);
                worker.serve_counted(load, serving);
            }
            accepted = accept(&listeners) => match accepted {
                Ok((stream, address)) => public::accept(worker, stream, address),
                Err(e) => {
                    tracing::warn!(error = %e, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    if !are_shared {
        last_callers(worker, listeners);
    }
    worker.tasks.close();
    tokio::select! {
        () = worker.tasks.wait() => {}
        () = shutdown.cut() => {}
    }
}

/// Whoever waits in the kernel's queue was told that the connection stands; closing the listener would reset it.
fn last_callers(worker: &Worker, listeners: Vec<TcpListener>) {
    for listener in listeners.into_iter().filter_map(|listener| listener.into_std().ok()) {
        for _ in 0..BACKLOG {
            let Ok((stream, address)) = listener.accept() else { break };
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                public::accept(worker, stream, address);
            }
        }
    }
}

/// The next connection on any of them.
async fn accept(listeners: &[TcpListener]) -> std::io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let mut accepted = listeners.iter().map(|listener| listener.poll_accept(cx));
        accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// Counts itself while it lives.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
