//! Takes requests on loopback; gives answers that say what was seen. It runs on a thread of its own, so that what it streams does not
//! wait for the test.
//!
//! `/stream?bytes=N&step=S&pause=MS` sends the pattern; `/sink` checks a pattern and counts it; `/hold` answers when told, and counts
//! callers who went away; `/broken?bytes=N` breaks off half way; `/delay?ms=N`; `/status/404`; `/trailers`; `/open` answers as if every page might read it; `/dirty` answers with fields that must not reach a caller;
//! anything else is described as JSON.

mod answers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One request as it arrived, noted before its body.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
}

impl Seen {
    /// All values of a header, joined by `|`.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
        values.collect::<Vec<_>>().join("|")
    }
}

/// A body at `/sink` that did not end well, or was not the pattern.
#[derive(Debug, Clone)]
pub struct Fault {
    pub received: u64,
    pub reason: String,
}

/// What the handlers share with the test.
#[derive(Debug)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    faults: Mutex<Vec<Fault>>,
    release: watch::Sender<u64>,
    waiting: AtomicU64,
    abandoned: AtomicU64,
}

/// The running server; it stops when this is dropped.
#[derive(Debug)]
pub struct Echo {
    pub port: u16,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    pub fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            faults: Mutex::default(),
            release: watch::Sender::new(0),
            waiting: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, end) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || runtime.block_on(serve(listener, theirs, end)))
            .context("a thread for the echo server")?;
        Ok(Self { port, shared, stop, thread: Some(thread) })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every request so far, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The requests whose target contains `marker`.
    pub fn seen_with(&self, marker: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.target.contains(marker)).collect()
    }

    /// Every bad body that `/sink` got.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests are held at `/hold` now.
    pub fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::SeqCst)
    }

    /// How many held requests were given up by the other side.
    pub fn abandoned(&self) -> u64 {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    /// Answers everything that is held now.
    pub fn release(&self) {
        self.shared.release.send_modify(|generation| *generation += 1);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends with the cancellation; a panic there has been printed already.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answers::answer(shared.clone(), request));
                    // A broken connection is the other side's business.
                    let _ = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_mins(2))
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }
    }
}
