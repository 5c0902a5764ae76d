//! Placement: one thread per core, each with a runtime of its own, its own TCP listener, and the tunnels that were handed to it.
//! The rest of the relay is written as plain futures and knows a worker only by its id.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::AuditQueue;
use crate::relay::{Relay, RelayError};
use crate::{public, tunnel};

/// Connections waiting for the kernel's accept queue to be read: a burst of reconnecting callers.
const BACKLOG: i32 = 1024;
/// Agents' connections handed to a worker that it has not taken up yet; more are refused and come again.
const HANDED: usize = 1024;
/// Handshakes under way beyond which an address must first prove that it can receive (QUIC Retry).
const HANDSHAKES: usize = 256;
/// After a failed accept (no file descriptors, usually) the next try waits, or the loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(usize);

/// What a worker gives to the connections it serves.
#[derive(Debug, Clone)]
pub struct Worker {
    pub id: WorkerId,
    pub relay: Arc<Relay>,
    pub audit: AuditQueue,
    /// Owns the tasks that serve callers.
    pub tasks: TaskTracker,
    /// Owns the tasks that serve agents; they outlive the callers' requests.
    tunnels: TaskTracker,
}

#[derive(Debug)]
struct Handle {
    incoming: Sender<quinn::Incoming>,
    /// Tunnels on this worker.
    load: Arc<AtomicUsize>,
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    handshakes: Arc<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Counts the workers whose callers are all served.
    done: watch::Receiver<usize>,
    /// Fires when nothing needs the workers' runtimes any more.
    exit: CancellationToken,
}

/// Binds one listener per worker to the same port.
pub fn bind(address: SocketAddr, workers: usize) -> std::io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        // Port 0 is chosen once; the others share it.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

impl Workers {
    pub fn start(relay: &Arc<Relay>, listeners: Vec<TcpListener>) -> Result<Self, RelayError> {
        let handshakes = Arc::new(AtomicUsize::new(0));
        let (finished, done) = watch::channel(0);
        let finished = Arc::new(finished);
        let exit = CancellationToken::new();
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let (incoming, handed) = mpsc::channel(HANDED);
            let load = Arc::new(AtomicUsize::new(0));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let audit = relay.audit().queue();
            let worker = Worker {
                id: WorkerId(index),
                relay: relay.clone(),
                audit,
                tasks: TaskTracker::new(),
                tunnels: TaskTracker::new(),
            };
            let (counters, finished, exit) =
                ((load.clone(), handshakes.clone()), finished.clone(), exit.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                runtime.block_on(async {
                    work(&worker, listener, handed, counters).await;
                    finished.send_modify(|count| *count += 1);
                    // Requests of other workers may run over tunnels of this one, and goodbyes want to be sent.
                    exit.cancelled().await;
                });
            })?;
            handles.push(Handle { incoming, load });
            threads.push(thread);
        }
        Ok(Self { handles, handshakes, threads: Mutex::new(threads), done, exit })
    }

    /// Hands each new connection of an agent to the least loaded worker, until dropped.
    pub fn accept(
        &self,
        endpoint: quinn::Endpoint,
        relay: Arc<Relay>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let handles: Vec<_> = self.handles.iter().map(|h| (h.incoming.clone(), h.load.clone())).collect();
        let handshakes = self.handshakes.clone();
        async move {
            while let Some(incoming) = endpoint.accept().await {
                // Only addresses that proved they can receive are counted: a forged one must not lock its owner out.
                let is_proved = incoming.remote_address_validated();
                let is_busy = handshakes.load(Ordering::Relaxed) > HANDSHAKES;
                let admission = relay.admission();
                let is_over = !admission.admits_agent(incoming.remote_address().ip(), is_proved);
                if relay.shutdown().is_draining() || (is_over && is_proved) {
                    incoming.refuse();
                    continue;
                }
                if (is_busy || is_over) && incoming.may_retry() {
                    // Fails only where the address was validated already; then there is nothing to send.
                    let _ = incoming.retry();
                    continue;
                }
                let least = handles.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed));
                let Some((queue, _)) = least else { continue };
                if let Err(
                    mpsc::error::TrySendError::Full(incoming) | mpsc::error::TrySendError::Closed(incoming),
                ) = queue.try_send(incoming)
                {
                    incoming.refuse();
                }
            }
        }
    }

    /// Resolves when every worker has finished what it had.
    pub fn idle(&self) -> impl Future<Output = ()> + use<> {
        let (mut done, all) = (self.done.clone(), self.handles.len());
        async move {
            // The sender lives as long as a worker does; were it gone, they all are.
            let _ = done.wait_for(|count| *count >= all).await;
        }
    }

    /// Ends the threads.
    pub fn join(&self) {
        self.exit.cancel();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended with a panic");
            }
        }
    }
}

/// One worker's life: accepts until the drain, then waits for the callers it serves until they are done or cut.
async fn work(
    worker: &Worker,
    listener: TcpListener,
    mut handed: Receiver<quinn::Incoming>,
    (load, handshakes): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!(error = %e, "a worker cannot listen"),
    };
    let shutdown = worker.relay.shutdown();
    loop {
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            Some(incoming) = handed.recv() => {
                let (counted, handshake) = (Counted::new(load.clone()), Counted::new(handshakes.clone()));
                let (relay, id) = (worker.relay.clone(), worker.id);
                worker.tunnels.spawn(async move {
                    let _counted = counted;
                    tunnel::serve(relay, incoming, id, handshake).await;
                });
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => public::accept(worker, stream, address),
                Err(e) => {
                    tracing::warn!(error = %e, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    worker.tasks.close();
    tokio::select! {
        () = worker.tasks.wait() => {}
        () = shutdown.cut() => {}
    }
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
