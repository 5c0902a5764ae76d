//! An audit log: takes records from any thread, gives one JSON line each, in a file or on stdout, written by a thread of its own. A
//! record that must not be lost waits in a bounded queue before what it speaks of happens; without room for it that is refused.
//!
//! Each worker appends to a buffer of its own; the writer gathers for a moment and writes all of them at once, so that a line costs its
//! worker neither a system call nor a wait. Numbering and proving lines ([`chain`]) is the writer's work too.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::sync::lock;
use crate::value::{OrOff, Size, Span};

pub mod chain;
mod disk;
mod own;
mod recover;
mod writer;

pub use disk::rotated;

use chain::{Chain, Head};
use writer::Writer;

/// Bytes that may wait before new records are refused. Only those of what was allowed already may exceed it, and of those there are at
/// most as many as requests in flight.
const QUEUE: usize = 8 * 1024 * 1024;
/// A file of this size is read within seconds by any tool.
const ROTATE_SIZE: Size = Size(100 * 1024 * 1024);
const KEEP_FOR: Span = Span(Duration::from_hours(90 * 24));

/// No room for another line, or the file cannot be written: what depends on it must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log takes no more lines")]
pub struct LogFull;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What happens when nothing more fits, the reserve included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// Requests are refused until there is room.
    #[default]
    Block,
    /// Requests go on, and a line says later how many lines are missing.
    Drop,
}

/// `rotate` as it is typed.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateFile {
    /// A file that has grown to this size is put aside; 100MiB by default.
    pub size: Option<OrOff<Size>>,
    /// How long after its last line a file that was put aside is removed; 90d by default.
    pub keep_for: Option<OrOff<Span>>,
}

/// When a file is put aside, and when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotate {
    pub size: Option<u64>,
    pub keep_for: Option<Duration>,
}

impl From<RotateFile> for Rotate {
    fn from(file: RotateFile) -> Self {
        Self {
            size: file.size.unwrap_or(OrOff::At(ROTATE_SIZE)).limit().map(|size| size.0),
            keep_for: file.keep_for.unwrap_or(OrOff::At(KEEP_FOR)).limit().map(|span| span.0),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    pub to: Destination,
    pub rotate: Rotate,
    /// Bytes held for the day when the disk is full; 0 = none.
    pub reserve: u64,
    pub full: WhenFull,
}

/// UTC, RFC 3339, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Time(jiff::Timestamp);

pub fn now() -> Time {
    Time(jiff::Timestamp::now())
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// The file system is full; what was reserved is being used.
    Reserve,
    /// Nothing more fits.
    Gone,
}

/// An audit log. Lines go in through its queues.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    /// For lines of no worker.
    queue: Queue,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the workers.
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    /// Of no worker: written behind theirs, so that a last word is the last line.
    events: Arc<Mutex<Vec<u8>>>,
    /// Bytes in the buffers and in the writer's hands.
    waiting: AtomicUsize,
    /// The writer knows that there is something to write.
    awake: AtomicBool,
    failing: AtomicBool,
    closing: AtomicBool,
    /// Lines that found no room, ever; what was allowed and not dropped by order is never among them.
    lost: AtomicU64,
    /// Those of them that no line of the log tells of yet.
    untold: AtomicU64,
    /// A [`Room`].
    room: AtomicU8,
    head: Mutex<Option<(u64, Head)>>,
}

impl Shared {
    fn room(&self) -> Room {
        match self.room.load(Ordering::Relaxed) {
            0 => Room::Enough,
            1 => Room::Reserve,
            _ => Room::Gone,
        }
    }

    fn lose(&self, lines: u64) {
        self.lost.fetch_add(lines, Ordering::Relaxed);
        self.untold.fetch_add(lines, Ordering::Relaxed);
    }
}

/// One worker's own end of the log.
#[derive(Debug, Clone)]
pub struct Queue {
    shared: Arc<Shared>,
    buffer: Arc<Mutex<Vec<u8>>>,
    writer: Thread,
}

impl Log {
    /// Opens the log, tells in it what it finds missing, and starts the writer. With a chain every line is numbered and proved.
    pub fn open(settings: &LogSettings, chain: Option<Chain>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer::open(settings, chain, shared.clone())?;
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run())?;
        let buffer = shared.events.clone();
        let queue = Queue { shared: shared.clone(), buffer, writer: thread.thread().clone() };
        Ok(Self { shared, queue, writer: Mutex::new(Some(thread)) })
    }

    /// An end of the log for one more worker.
    pub fn queue(&self) -> Queue {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        lock(&self.shared.buffers).push(buffer.clone());
        Queue { buffer, ..self.queue.clone() }
    }

    /// A record of no worker, where there is room for it.
    pub fn record(&self, record: &impl Serialize) {
        // One that finds no room is counted, and a later line tells the count.
        let _ = self.queue.record(record);
    }

    /// Whether lines reach their file.
    pub fn is_healthy(&self) -> bool {
        self.queue.has_room()
    }

    pub fn room(&self) -> Room {
        self.shared.room()
    }

    /// How many lines were lost for want of room since the start.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Sequence number and head of the last line that was written.
    pub fn head(&self) -> Option<(u64, Head)> {
        *lock(&self.shared.head)
    }

    /// Writes what is queued and closes the file. Call it last: lines that come later stay unwritten.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.queue.writer.unpark();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer {
            // The writer does not panic; were it to, its lines are gone and the process is ending anyway.
            let _ = writer.join();
        }
    }
}

impl Queue {
    pub fn has_room(&self) -> bool {
        !self.shared.failing.load(Ordering::Relaxed) && self.shared.waiting.load(Ordering::Relaxed) < QUEUE
    }

    /// Queues a record; refused when the log is behind or failing.
    pub fn record(&self, record: &impl Serialize) -> Result<(), LogFull> {
        if self.has_room() {
            self.always(record);
            return Ok(());
        }
        self.shared.lose(1);
        Err(LogFull)
    }

    /// Queues a record that the memory has room for, whatever the disk says: one for each request that was admitted.
    pub fn always(&self, record: &impl Serialize) {
        let mut buffer = lock(&self.buffer);
        let before = buffer.len();
        if serde_json::to_writer(&mut *buffer, record).is_err() {
            // A record that cannot be written as JSON does not exist; half a line must not either.
            buffer.truncate(before);
            return;
        }
        buffer.push(b'\n');
        self.shared.waiting.fetch_add(buffer.len() - before, Ordering::Relaxed);
        drop(buffer);
        if !self.shared.awake.swap(true, Ordering::AcqRel) {
            self.writer.unpark();
        }
    }
}

#[cfg(test)]
mod tests;
