//! The audit log: takes one record per decision and one per finished request, gives one JSON line each on a thread of its own. A decision
//! that finds the queue full is refused (the request is not forwarded); the end of an allowed request is never lost.
//!
//! Each worker appends to a buffer of its own; the writer gathers for a moment and writes all of them at once, so that a line costs its
//! worker neither a system call nor a wait.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::settings::AuditTo;

pub mod record;

/// Bytes that may wait before new decisions are refused. Only the ends of requests that were allowed may exceed it, and of those there
/// are at most as many as requests in flight.
const QUEUE: usize = 8 * 1024 * 1024;
/// How long the writer gathers lines: what a process that is killed may lose.
const GATHER: Duration = Duration::from_millis(2);
/// How long after a failed write the next try comes.
const RETRY: Duration = Duration::from_millis(500);
/// How often a closing log tries a disk that refuses.
const LAST_TRIES: u32 = 10;

/// No room for another line, or the file cannot be written: what depends on it must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log takes no more lines")]
pub struct AuditFull;

/// Where audit lines go. Shared by all rooms.
#[derive(Debug)]
pub struct Audit {
    state: Arc<State>,
    /// For lines of no worker: joins, reloads, admins' actions.
    events: AuditQueue,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    /// Bytes in the buffers and in the writer's hands.
    waiting: AtomicUsize,
    /// The writer knows that there is something to write.
    awake: AtomicBool,
    failing: AtomicBool,
    closing: AtomicBool,
    /// Lines that found no room; decisions that allow are never among them.
    dropped: Counter,
}

/// One worker's own end of the log.
#[derive(Debug, Clone)]
pub struct AuditQueue {
    state: Arc<State>,
    buffer: Arc<Mutex<Vec<u8>>>,
    writer: Thread,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Buffers hold whole lines at every point where a panic could have left them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Audit {
    /// Opens the file for appending (0600 where it is new) and starts the writer.
    pub fn open(to: &AuditTo, dropped: Counter) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match to {
            AuditTo::Stdout => Box::new(io::stdout()),
            AuditTo::File(path) => Box::new(append(path)?),
        };
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let state = Arc::new(State {
            buffers: Mutex::new(vec![buffer.clone()]),
            waiting: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            dropped,
        });
        let shared = state.clone();
        let writer =
            std::thread::Builder::new().name("audit".to_owned()).spawn(move || write_lines(out, &shared))?;
        let events = AuditQueue { state: state.clone(), buffer, writer: writer.thread().clone() };
        Ok(Self { state, events, writer: Mutex::new(Some(writer)) })
    }

    /// An end of the log for one more worker.
    pub fn queue(&self) -> AuditQueue {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        lock(&self.state.buffers).push(buffer.clone());
        AuditQueue { buffer, ..self.events.clone() }
    }

    /// Records something that is neither a decision nor the end of a request: a join, an admin's action, a reload.
    pub fn event(&self, kind: &'static str, detail: serde_json::Value) {
        self.events.if_room(&record::Event { time: record::now(), event: kind, detail });
    }

    /// Whether lines reach their file.
    pub fn is_healthy(&self) -> bool {
        self.events.has_room()
    }

    /// Writes what is queued and closes the file. Call it last: lines that come later stay unwritten.
    pub fn close(&self) {
        self.state.closing.store(true, Ordering::Release);
        self.events.writer.unpark();
        let writer = lock(&self.writer).take();
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
        let mut buffer = lock(&self.buffer);
        let before = buffer.len();
        if serde_json::to_writer(&mut *buffer, record).is_err() {
            // A record that cannot be written as JSON does not exist; half a line must not either.
            buffer.truncate(before);
            return;
        }
        buffer.push(b'\n');
        self.state.waiting.fetch_add(buffer.len() - before, Ordering::Relaxed);
        drop(buffer);
        if !self.state.awake.swap(true, Ordering::AcqRel) {
            self.writer.unpark();
        }
    }
}

fn append(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Runs until the log is closed and every line is written, or the disk refuses them to the last.
fn write_lines(mut out: Box<dyn Write + Send>, state: &State) {
    let mut batch = Vec::new();
    loop {
        let closing = state.closing.load(Ordering::Acquire);
        if !closing && !state.awake.load(Ordering::Acquire) {
            std::thread::park();
            continue;
        }
        if !closing {
            std::thread::park_timeout(GATHER);
        }
        // Before the buffers are looked at: a line that comes after its buffer's turn wakes the writer again.
        state.awake.store(false, Ordering::Release);
        for buffer in lock(&state.buffers).iter() {
            batch.append(&mut lock(buffer));
        }
        if batch.is_empty() && closing {
            return;
        }
        if !write_whole(&mut out, &batch, state) {
            let bytes = state.waiting.load(Ordering::Relaxed);
            return tracing::error!(bytes, "the audit log was closed with lines that could not be written");
        }
        state.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        batch.clear();
    }
}

/// Writes all of `bytes`, however often the disk refuses; gives up only when the log is closing. After an error the position is known, so
/// no line is lost or doubled.
fn write_whole(out: &mut impl Write, bytes: &[u8], state: &State) -> bool {
    let (mut rest, mut tries) = (bytes, 0);
    while !rest.is_empty() {
        let failure = match out.write(rest) {
            Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
            Ok(written) => {
                rest = &rest[written..];
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => e,
        };
        if !state.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(error = %failure, "the audit log cannot be written: requests are refused until it can");
        }
        tries += 1;
        if state.closing.load(Ordering::Acquire) && tries > LAST_TRIES {
            return false;
        }
        std::thread::park_timeout(RETRY);
    }
    // Stdout may hold lines back; a file does not.
    let _ = out.flush();
    if state.failing.swap(false, Ordering::Relaxed) {
        tracing::info!("the audit log is written again");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_every_worker_is_written_whole_before_the_log_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(&AuditTo::File(path.clone()), Counter::default()).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let queue = audit.queue();
                scope.spawn(move || {
                    for n in 0..2000 {
                        let detail = serde_json::json!({ "worker": worker, "n": n });
                        queue.always(&record::Event { time: record::now(), event: "x", detail });
                    }
                });
            }
        });
        audit.close();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut next = [0u64; 4];
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let worker = usize::try_from(line["worker"].as_u64().unwrap()).unwrap();
            assert_eq!(line["n"], next[worker], "a worker's lines keep their order");
            next[worker] += 1;
        }
        assert_eq!(next, [2000; 4]);
    }

    #[test]
    fn a_disk_that_refuses_makes_decisions_fail_and_memory_stay_bounded() {
        let dropped = Counter::default();
        let audit = Audit::open(&AuditTo::File("/dev/full".into()), dropped.clone()).unwrap();
        let queue = audit.queue();
        audit.event("first", serde_json::json!({}));
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while audit.is_healthy() {
            assert!(std::time::Instant::now() < deadline, "the failure is noticed");
            std::thread::yield_now();
        }
        let before = audit.state.waiting.load(Ordering::Relaxed);
        for _ in 0..1000 {
            queue.if_room(&record::Event { time: record::now(), event: "x", detail: serde_json::json!({}) });
        }
        assert_eq!(audit.state.waiting.load(Ordering::Relaxed), before);
        assert_eq!(dropped.get(), 1000);
        audit.close();
    }
}
