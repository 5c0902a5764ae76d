//! A load of all that the tunnel carries, for a [`crate::counting::Counting`] upstream: workers that do one act after the other, or
//! probes at a fixed pace, whatever becomes of the earlier ones. Every answer is checked as it comes; the [`Book`] keeps what became of
//! each act, and holds it against what the upstream counted.

mod act;
mod book;
pub mod live;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use book::{Book, Doubles, Outcome, Record};

use crate::http::Http;
use crate::wait;

/// The pause after a failure: nobody asks a relay that is away a thousand times a second.
const AGAIN: Duration = Duration::from_millis(100);

/// What one act is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A small answer that follows from the id.
    Get,
    /// POST of up to 256 KiB, answered by its digest.
    Upload,
    /// POST over HTTP/2 whose body comes back piece by piece while it is still open: a gRPC stream's way.
    Duplex,
    /// A WebSocket, some messages there and back, and a proper end.
    Socket,
    /// A connection to the TCP service, some bytes there and back, half-closed and read to its end.
    Tcp,
}

impl Kind {
    /// Whether the relay may send it again when nobody knows what became of the first.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Socket)
    }
}

/// Where the load goes, as its callers see it.
#[derive(Clone)]
pub struct Target {
    /// The relay's URL, without a slash at the end.
    pub relay: String,
    /// The service whose upstream counts, and the TCP service whose upstream does.
    pub http: String,
    pub tcp: String,
    pub token: String,
    pub roots: RootCertStore,
}

impl Target {
    /// The public URL of a path of the HTTP service.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{}{path}", self.relay, self.http)
    }
}

/// An id that no other act of this process has.
fn next_id(kind: Kind) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{kind:?}-{}", NEXT.fetch_add(1, Ordering::Relaxed)).to_lowercase()
}

/// A running load; dropped, it ends at once and is forgotten.
#[derive(Debug)]
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<Vec<Record>>,
}

impl Load {
    /// So many workers of each kind, every other one speaking HTTP/2 where the kind allows it, with a `pause` after each act, a longer one
    /// after each failure.
    pub fn start(target: &Target, workers: &[(Kind, usize)], pause: Duration) -> Result<Self> {
        let mut load = Self { stop: CancellationToken::new(), tasks: JoinSet::new() };
        for &(kind, count) in workers {
            for worker in 0..count {
                let (target, stop) = (target.clone(), load.stop.clone());
                // A client of its own has connections of its own.
                let roots = target.roots.clone();
                let is_h2 =
                    kind == Kind::Duplex || (worker % 2 == 1 && !matches!(kind, Kind::Socket | Kind::Tcp));
                let http = if is_h2 { Http::h2(roots)? } else { Http::h1(roots)? };
                load.tasks.spawn(async move {
                    let mut records = Vec::new();
                    while !stop.is_cancelled() {
                        let record = act::perform(kind, &http, &target).await;
                        let pause = if record.outcome == Outcome::Right { pause } else { pause.max(AGAIN) };
                        records.push(record);
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = stop.cancelled() => {}
                        }
                    }
                    records
                });
            }
        }
        Ok(load)
    }

    /// A small request every `interval`, without waiting for the answers to earlier ones.
    pub fn probe(target: &Target, interval: Duration) -> Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (target, http) = (Arc::new(target.clone()), Http::h1(target.roots.clone())?);
        let end = stop.clone();
        tasks.spawn(async move {
            let mut beats = tokio::time::interval(interval);
            let mut probes = JoinSet::new();
            loop {
                tokio::select! {
                    _ = beats.tick() => {
                        let (http, target) = (http.clone(), target.clone());
                        probes.spawn(async move { act::perform(Kind::Get, &http, &target).await });
                    }
                    () = end.cancelled() => return probes.join_all().await,
                }
            }
        });
        Ok(Self { stop, tasks })
    }

    /// Starts no more acts, lets those under way finish, and gives what became of all.
    pub async fn finish(loads: impl IntoIterator<Item = Self>) -> Result<Book> {
        let loads: Vec<_> = loads.into_iter().inspect(|load| load.stop.cancel()).collect();
        let all = join_all(loads.into_iter().map(|load| load.tasks.join_all()));
        let all = wait::within("the load ends", act::LIMIT * 2, all).await?;
        Ok(Book::new(all.into_iter().flatten().flatten()))
    }
}

impl Record {
    /// Whether any of it lay between the two moments.
    pub fn overlaps(&self, from: Instant, to: Instant) -> bool {
        self.start <= to && self.end >= from
    }
}
