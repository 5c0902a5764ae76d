//! Many agents in one thread: each with an enrolment, a connection and a control stream of its own, as the relay sees them, and a
//! process's weight less than a real one. They answer requests themselves, with the usual body, and come back at the real agent's pace.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use postern_tests::stand::say;
use postern_tests::wait;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::site::Site;

mod double;
mod enrol;
#[path = "../../agent/src/tunnel/pace.rs"]
mod pace;

pub(crate) use enrol::Enrolled;

use double::Double;

/// The name of all agents here; relay.toml gives their services to it.
pub(crate) const NAME: &str = "fleet";
/// Joins at once: each waits for the relay's disk.
const JOINS: usize = 4;
/// Doubles on one socket, and so at one address: the relay limits what one address may try in a second.
const PER_SOCKET: usize = 10;
/// How long all of them may take to be there.
const GATHER: Duration = Duration::from_mins(3);

const GOODBYE: Duration = Duration::from_secs(2);

/// Enrols `count` agents, each with an invite of its own.
pub(crate) async fn enrol(site: &Site, count: u32) -> Result<Vec<Arc<Enrolled>>> {
    say(&format!("enrolling {count} agents"));
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let relay = relay(site);
    let joins = stream::iter(0..count).map(|_| async {
        let invite = site.invite(NAME).await?;
        anyhow::Ok(Arc::new(enrol::join(&endpoint, relay, &invite).await?))
    });
    let joined: Vec<Result<Arc<Enrolled>>> = joins.buffer_unordered(JOINS).collect().await;
    joined.into_iter().collect()
}

fn relay(site: &Site) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], site.facts.relay))
}

/// What the doubles tell whoever measures.
#[derive(Debug)]
struct Board {
    /// How many tunnels have had a heartbeat answered and live.
    usable: watch::Sender<usize>,
    /// When each became so.
    arrivals: Mutex<Vec<Instant>>,
}

impl Board {
    fn arrived(&self) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        self.usable.send_modify(|usable| *usable += 1);
    }

    fn left(&self) {
        self.usable.send_modify(|usable| *usable -= 1);
    }
}

/// Some of the doubles, at work until this is dropped.
pub(crate) struct Fleet {
    board: Arc<Board>,
    size: usize,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Sets `members` to work and waits until all are usable. `services` says what the n-th of them offers.
    pub(crate) async fn start(
        site: &Site,
        members: &[Arc<Enrolled>],
        services: impl Fn(usize) -> Vec<String>,
    ) -> Result<Self> {
        let board = Arc::new(Board { usable: watch::Sender::new(0), arrivals: Mutex::default() });
        let stop = CancellationToken::new();
        let relay = relay(site);
        let doubles = members.iter().enumerate().map(|(index, enrolled)| {
            Arc::new(Double::new(enrolled.clone(), relay, services(index), board.clone(), stop.clone()))
        });
        let doubles: Vec<Arc<Double>> = doubles.collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || runtime.block_on(sail(doubles)))?;
        let fleet = Self { board, size: members.len(), stop, thread: Some(thread) };
        fleet.all_usable().await?;
        Ok(fleet)
    }

    pub(crate) async fn all_usable(&self) -> Result<()> {
        let mut usable = self.board.usable.subscribe();
        let all = usable.wait_for(|usable| *usable >= self.size);
        let gathered = wait::within("all agents are usable", GATHER, all).await.map(drop);
        gathered.with_context(|| format!("{} of {} came", *self.board.usable.borrow(), self.size))
    }

    /// Forgets who came so far.
    pub(crate) fn watch_arrivals(&self) {
        self.board.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Who came since, in order.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.board.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ended with a panic, which it has told already.
            let _ = thread.join();
        }
    }
}

/// Runs all doubles, a few to a socket, until they are told to stop.
async fn sail(doubles: Vec<Arc<Double>>) {
    let mut lives = JoinSet::new();
    let mut endpoints = Vec::new();
    for (group, doubles) in doubles.chunks(PER_SOCKET).enumerate() {
        // 127.1.0.1 and up: all of 127.0.0.0/8 is loopback.
        let [.., high, low] = u32::try_from(group).unwrap_or(0).wrapping_add(1).to_be_bytes();
        let endpoint = match quinn::Endpoint::client(([127, 1, high, low], 0).into()) {
            Ok(endpoint) => endpoint,
            Err(error) => return say(&format!("fleet: {error}")),
        };
        for double in doubles {
            lives.spawn(double.clone().live(endpoint.clone()));
        }
        endpoints.push(endpoint);
    }
    while lives.join_next().await.is_some() {}
    for endpoint in &endpoints {
        endpoint.close(0u32.into(), b"");
    }
    // Lets the goodbyes out; a relay that is gone takes none.
    let idle = join_all(endpoints.iter().map(quinn::Endpoint::wait_idle));
    let _ = wait::within("goodbyes", GOODBYE, idle).await;
}
