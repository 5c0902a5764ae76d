//! The audit log: takes one record per decision and one per finished request, gives one JSON line each, in order, on a thread of its
//! own. A decision that finds the queue full is refused (the request is not forwarded); the end of an admitted request is never lost.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::settings::AuditTo;

pub mod record;

/// Lines that may wait before new decisions are refused: about 8 MiB. Only the ends of requests that were allowed may exceed it, and of
/// those there are at most as many as requests in flight.
const QUEUE: usize = 16 * 1024;
/// How long after a failed write the next try comes.
const RETRY: Duration = Duration::from_millis(500);
/// How long a shutdown waits for a disk that refuses.
const LAST_TRIES: u32 = 10;

/// No room for another line, or the file cannot be written: what depends on it must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log takes no more lines")]
pub struct AuditFull;

/// Where audit lines go. Shared by all rooms.
#[derive(Debug)]
pub struct Audit {
    state: Arc<State>,
    queue: Mutex<Option<Sender<Vec<u8>>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    failing: AtomicBool,
    closing: AtomicBool,
    /// Lines that found no room; decisions that allow are never among them.
    dropped: Counter,
}

/// One worker's own end of the queue, so that workers do not share a lock.
#[derive(Debug, Clone)]
pub struct AuditQueue {
    state: Arc<State>,
    queue: Sender<Vec<u8>>,
}

impl Audit {
    /// Opens the file for appending (0600 where it is new) and starts the writer.
    pub fn open(to: &AuditTo, dropped: Counter) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match to {
            AuditTo::Stdout => Box::new(io::stdout()),
            AuditTo::File(path) => Box::new(append(path)?),
        };
        let state = Arc::new(State { dropped, ..State::default() });
        let (queue, lines) = channel();
        let shared = state.clone();
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_lines(&lines, out, &shared))?;
        Ok(Self { state, queue: Mutex::new(Some(queue)), writer: Mutex::new(Some(writer)) })
    }

    /// A queue end for one worker; `None` once the log was closed.
    pub fn queue(&self) -> Option<AuditQueue> {
        let queue = self.queue.lock().ok()?.clone()?;
        Some(AuditQueue { state: self.state.clone(), queue })
    }

    /// Records something that is neither a decision nor the end of a request: a join, an admin's action, a reload.
    pub fn event(&self, kind: &'static str, detail: serde_json::Value) {
        if let Some(queue) = self.queue() {
            queue.if_room(&record::Event { time: record::now(), event: kind, detail });
        }
    }

    /// Whether lines reach their file.
    pub fn is_healthy(&self) -> bool {
        !self.state.failing.load(Ordering::Relaxed) && self.state.waiting.load(Ordering::Relaxed) < QUEUE
    }

    /// Writes what is queued and closes the file. Call it last: queue ends still held elsewhere keep the writer alive.
    pub fn close(&self) {
        self.state.closing.store(true, Ordering::Relaxed);
        if let Ok(mut queue) = self.queue.lock() {
            *queue = None;
        }
        let writer = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if let Some(writer) = writer {
            // The writer does not panic; were it to, its lines are gone and the process is ending anyway.
            let _ = writer.join();
        }
    }
}

impl AuditQueue {
    /// Queues a decision; refused when the log is behind or failing.
    pub fn decision(&self, record: &record::Decision<'_>) -> Result<(), AuditFull> {
        if self.has_room() {
            self.always(record);
            return Ok(());
        }
        self.state.dropped.inc();
        Err(AuditFull)
    }

    /// Queues the end of a request. One that was allowed always has its line; what was refused must not fill the memory of a relay whose
    /// disk is full.
    pub fn end(&self, record: &record::End<'_>, was_allowed: bool) {
        if was_allowed { self.always(record) } else { self.if_room(record) }
    }

    fn has_room(&self) -> bool {
        !self.state.failing.load(Ordering::Relaxed) && self.state.waiting.load(Ordering::Relaxed) < QUEUE
    }

    fn if_room(&self, record: &impl Serialize) {
        if self.has_room() {
            self.always(record);
        } else {
            self.state.dropped.inc();
        }
    }

    fn always(&self, record: &impl Serialize) {
        let Ok(mut line) = serde_json::to_vec(record) else { return };
        line.push(b'\n');
        self.state.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(line).is_err() {
            self.state.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn append(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Runs until every queue end is gone and every line is written, or the process ends while the disk refuses them.
fn write_lines(lines: &Receiver<Vec<u8>>, mut out: Box<dyn Write + Send>, state: &State) {
    while let Ok(first) = lines.recv() {
        let mut batch = first;
        let mut count = 1;
        while let Ok(next) = lines.try_recv() {
            batch.extend_from_slice(&next);
            count += 1;
            if batch.len() > 256 * 1024 {
                break;
            }
        }
        let mut rest = &batch[..];
        let mut tries = 0;
        loop {
            // Written straight through: after an error the position is known, so no line is lost or doubled.
            match out.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    if !state.failing.swap(true, Ordering::Relaxed) {
                        tracing::error!(error = %e, "the audit log cannot be written: requests are refused until it can");
                    }
                    tries += 1;
                    if state.closing.load(Ordering::Relaxed) && tries > LAST_TRIES {
                        let lines = state.waiting.load(Ordering::Relaxed);
                        return tracing::error!(
                            lines,
                            "the audit log was closed with lines that could not be written"
                        );
                    }
                    std::thread::park_timeout(RETRY);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        if state.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the audit log is written again");
        }
        state.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}
