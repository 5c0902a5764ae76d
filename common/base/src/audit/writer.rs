//! The thread that writes an audit log: gathers what the queues hold, numbers and proves each line, and puts them down in order. What
//! the log lacks, for want of room or through a crash, it tells in a line of its own; only then does it go on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use super::chain::Chain;
use super::disk::{Disk, is_full};
use super::own::Own;
use super::recover::{Missing, recover};
use super::{LogSettings, Room, Shared, WhenFull, lock, now};

/// How long the writer gathers lines: what a process that is killed may lose.
const GATHER: Duration = Duration::from_millis(2);
/// How long after a failed write the next try comes.
const RETRY: Duration = Duration::from_millis(500);
/// How often a closing log tries a disk that refuses.
const LAST_TRIES: u32 = 10;
/// How often files that have become too old are looked for.
const SWEEP: Duration = Duration::from_mins(10);

pub(super) struct Writer {
    disk: Disk,
    chain: Option<Chain>,
    shared: Arc<Shared>,
    full: WhenFull,
    /// Lines as they came.
    batch: Vec<u8>,
    /// The same, as they go to the file.
    sealed: Vec<u8>,
    /// Lines of our own that go first.
    own: Vec<u8>,
    /// The first sequence number that was given out and is not in the file.
    missing_from: Option<u64>,
    retry_at: Instant,
}

impl Writer {
    pub(super) fn open(
        settings: &LogSettings,
        chain: Option<Chain>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let mut writer = Self {
            disk: Disk::open(settings)?,
            chain,
            shared,
            full: settings.full,
            batch: Vec::new(),
            sealed: Vec::new(),
            own: Vec::new(),
            missing_from: None,
            retry_at: Instant::now(),
        };
        let is_new = writer.disk.is_empty();
        let missing = recover(&mut writer.disk, writer.chain.as_mut())?;
        if is_new {
            writer.begin_file(None);
        }
        if let Some(missing) = missing {
            let Missing { reason, first, last, torn_bytes } = missing;
            tracing::warn!(reason, first, last, torn_bytes, "the audit log lacks lines; it says so itself");
            let (lost, after) = (missing.lost(), writer.stands());
            writer.say(&Own::Gap { time: now(), reason, lost, first, last, torn_bytes, after });
        }
        writer.sweep();
        writer.publish();
        Ok(writer)
    }

    /// Runs until the log is closed and every line is written, or the disk refuses them to the last.
    pub(super) fn run(mut self) {
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            if !closing && !self.shared.awake.load(Ordering::Acquire) {
                std::thread::park_timeout(if self.has_trouble() { RETRY } else { SWEEP });
                if !self.shared.awake.load(Ordering::Acquire) {
                    self.idle();
                }
                continue;
            }
            if !closing {
                self.gather();
            }
            // Before the buffers are looked at: a line that comes after its buffer's turn wakes the writer again.
            self.shared.awake.store(false, Ordering::Release);
            let mut batch = std::mem::take(&mut self.batch);
            lock(&self.shared.buffers).retain(|buffer| {
                batch.append(&mut lock(buffer));
                // Nobody can write to one that only we hold.
                Arc::strong_count(buffer) > 1
            });
            batch.append(&mut lock(&self.shared.events));
            let nothing = batch.is_empty() && self.own.is_empty() && !self.is_behind();
            if nothing && closing {
                return;
            }
            if !self.put(&batch) {
                let bytes = self.shared.waiting.load(Ordering::Relaxed);
                return tracing::error!(
                    bytes,
                    "the audit log was closed with lines that could not be written"
                );
            }
            if batch.is_empty() && closing {
                return;
            }
            self.shared.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            batch.clear();
            self.batch = batch;
        }
    }

    /// Lets lines come together. A line that came during the last writing has left its wake-up behind, which must not cut this short.
    fn gather(&self) {
        let end = Instant::now() + GATHER;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            && !self.shared.closing.load(Ordering::Acquire)
        {
            std::thread::park_timeout(left);
        }
    }

    fn is_behind(&self) -> bool {
        self.shared.untold.load(Ordering::Relaxed) > 0
    }

    fn has_trouble(&self) -> bool {
        self.is_behind() || self.disk.is_short() || !self.own.is_empty()
    }

    /// Nothing came for a while.
    fn idle(&mut self) {
        self.sweep();
        if self.has_trouble() {
            self.put(&[]);
        }
    }

    /// Puts lines down, with what the log has to say of itself in front. False when the log is closing and the disk took them not.
    fn put(&mut self, batch: &[u8]) -> bool {
        let closing = self.shared.closing.load(Ordering::Acquire);
        let is_dropping = self.full == WhenFull::Drop && self.shared.room() == Room::Gone;
        if is_dropping && !closing && Instant::now() < self.retry_at {
            self.shared.lose(lines(batch));
            return true;
        }
        let own = std::mem::take(&mut self.own);
        let told = self.shared.untold.swap(0, Ordering::Relaxed);
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.clear();
        self.seal(&own, &mut sealed);
        let gap_at = lines(&own);
        if told > 0 {
            let last =
                self.chain.as_ref().map(|chain| chain.stands().0).filter(|_| self.missing_from.is_some());
            let gap = Own::Gap {
                time: now(),
                reason: "dropped",
                lost: Some(told),
                first: self.missing_from,
                last,
                torn_bytes: None,
                after: self.stands(),
            };
            let line = gap.encoded();
            self.seal(&line, &mut sealed);
        }
        self.seal(batch, &mut sealed);
        let outcome = self.put_down(&sealed);
        self.sealed = sealed;
        match outcome {
            Put::Whole => {
                self.missing_from = None;
                self.publish();
                self.disk.top_up();
                self.set_room(if self.disk.is_short() { Room::Reserve } else { Room::Enough });
                self.rotate();
            }
            Put::Dropped { written } => {
                // The gap's own line is not one of those that it counts.
                let ours = u64::from(told > 0);
                let total = lines(&own) + ours + lines(batch);
                let is_told = told == 0 || written > gap_at;
                let lost = total - written - if is_told { 0 } else { ours };
                self.shared.lose(lost);
                if !is_told {
                    self.shared.untold.fetch_add(told, Ordering::Relaxed);
                }
                let stands = self.chain.as_ref().map(|chain| chain.stands().0);
                let first = stands.map(|last| last - (total - written) + 1);
                self.missing_from = if is_told { first } else { self.missing_from.or(first) };
                self.retry_at = Instant::now() + RETRY;
                self.set_room(Room::Gone);
            }
            Put::GivenUp => return false,
        }
        true
    }

    /// Each line, numbered and proved.
    fn seal(&mut self, lines: &[u8], out: &mut Vec<u8>) {
        match &mut self.chain {
            None => out.extend_from_slice(lines),
            Some(chain) => {
                // No JSON has a bare line's end in it, and every line here has its own.
                let mut start = 0;
                for end in memchr::memchr_iter(b'\n', lines) {
                    chain.seal(&lines[start..end], out);
                    start = end + 1;
                }
            }
        }
    }

    /// Writes all of `bytes`, however often the disk refuses; gives up only when the log is closing, or when it is full and lines are to be
    /// dropped. After an error the position is known, so no line is lost unnoticed or doubled.
    fn put_down(&mut self, bytes: &[u8]) -> Put {
        let (mut done, mut tries, mut is_noted) = (0, 0, self.chain.is_none());
        while !is_noted || done < bytes.len() {
            let attempt = match &self.chain {
                // First where the chain will stand: a crash then leaves a gap, never a key that is used twice.
                Some(chain) if !is_noted => chain.persist().map(|()| None),
                _ => self.disk.write(&bytes[done..]).map(Some),
            };
            let failure = match attempt {
                Ok(None) => {
                    is_noted = true;
                    continue;
                }
                Ok(Some(0)) => io::Error::from(io::ErrorKind::WriteZero),
                Ok(Some(written)) => {
                    done += written;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            let is_full = is_full(&failure);
            if is_full && self.full == WhenFull::Drop {
                if self.shared.room() != Room::Gone {
                    tracing::error!(error = %failure, "the audit log has no room: its lines are dropped and counted");
                }
                return self.drop_rest(&bytes[..done]);
            }
            if !self.shared.failing.swap(true, Ordering::Relaxed) {
                tracing::error!(error = %failure, "the audit log cannot be written: requests are refused until it can");
            }
            if is_full {
                self.set_room(Room::Gone);
            }
            tries += 1;
            if self.shared.closing.load(Ordering::Acquire) && tries > LAST_TRIES {
                return Put::GivenUp;
            }
            std::thread::park_timeout(RETRY);
        }
        if self.shared.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the audit log is written again");
        }
        Put::Whole
    }

    /// Leaves only whole lines of what was written.
    fn drop_rest(&mut self, done: &[u8]) -> Put {
        let whole = done.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if let Err(e) = self.disk.take_back((done.len() - whole) as u64) {
            tracing::error!(error = %e, "half a line stays in the audit log");
        }
        Put::Dropped { written: lines(&done[..whole]) }
    }

    fn rotate(&mut self) {
        if !self.disk.wants_rotation() || Instant::now() < self.retry_at {
            return;
        }
        match self.disk.rotate(Timestamp::now()) {
            Ok(previous) => {
                self.begin_file(Some(&previous));
                self.sweep();
            }
            Err(e) => {
                self.retry_at = Instant::now() + RETRY;
                tracing::error!(error = %e, "the audit log cannot be rotated");
            }
        }
    }

    fn sweep(&mut self) {
        for file in self.disk.sweep(SystemTime::now()) {
            tracing::info!(%file, "an old audit log was removed");
            self.say(&Own::FileRemoved { time: now(), file: &file });
        }
    }

    fn begin_file(&mut self, previous: Option<&str>) {
        let after = self.stands();
        self.say(&Own::File { time: now(), previous, after });
    }

    fn say(&mut self, line: &Own<'_>) {
        self.own.extend_from_slice(&line.encoded());
    }

    /// Where the chain stands, as lines tell it.
    fn stands(&self) -> Option<String> {
        self.chain.as_ref().map(|chain| chain.stands().1.to_string())
    }

    fn publish(&self) {
        let stands = self.chain.as_ref().map(Chain::stands);
        *lock(&self.shared.head) =
            stands.filter(|(sequence, _)| *sequence > 0).map(|(sequence, mark)| (sequence, mark.head));
    }

    fn set_room(&self, room: Room) {
        let before = self.shared.room();
        self.shared.room.store(room as u8, Ordering::Relaxed);
        match (before, room) {
            (Room::Enough, Room::Reserve) => {
                tracing::error!("the audit log's disk is full: its reserve is being used");
            }
            (Room::Reserve | Room::Gone, Room::Enough) => {
                tracing::info!("the audit log's disk has room again");
            }
            _ => {}
        }
    }
}

/// What became of lines that were to be written.
enum Put {
    Whole,
    /// Only the first ones are in the file.
    Dropped {
        written: u64,
    },
    GivenUp,
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').skip(1).count() as u64
}
