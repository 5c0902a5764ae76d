//! The relay's audit log: takes one record per decision and one per finished request, and what else is worth keeping; gives lines that
//! are chained and, where the configuration says so, do not name people. A decision that finds the log full is refused (the request is
//! not forwarded); the end of an allowed request is never lost to a full queue. Floods of what is refused before anybody proved anything are
//! counted, not written one by one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use postern_base::audit::chain::{Chain, ChainError, Head};
use postern_base::audit::{Log, LogFull, Queue, Room, now};
use serde_json::{Value, json};

use crate::settings::AuditSettings;

pub mod files;
mod find;
mod pseudonym;
pub mod reconcile;
pub mod record;
mod thin;
pub mod verify;

pub use find::{Asked, Finder};
pub use pseudonym::Pseudonyms;
use thin::Thin;

pub use postern_base::audit::LogFull as AuditFull;

/// The chain's file in the state directory.
const CHAIN: &str = "audit.key";

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the audit log: {0}")]
    Chain(#[from] ChainError),
    #[error("the audit log {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

/// Where audit lines go. Shared by all rooms.
#[derive(Debug)]
pub struct Audit {
    log: Log,
    names: Pseudonyms,
    thin: Thin,
}

/// One worker's own end of the log.
#[derive(Debug, Clone)]
pub struct AuditQueue {
    queue: Queue,
    names: Pseudonyms,
}

/// Where a state directory keeps the chain.
pub fn chain_path(state: &Path) -> PathBuf {
    state.join(CHAIN)
}

impl Audit {
    /// Takes up the chain in the state directory, opens the log and starts its writer.
    pub fn open(settings: &AuditSettings, state: &Path) -> Result<Self, AuditError> {
        let chain = Chain::open(&chain_path(state))?;
        let names = Pseudonyms::open(settings.redact, state)?;
        let log = Log::open(&settings.log, Some(chain))
            .map_err(|source| AuditError::Io { path: settings.log.to.to_string(), source })?;
        Ok(Self { log, names, thin: Thin::new() })
    }

    /// An end of the log for one more worker.
    pub fn queue(&self) -> AuditQueue {
        AuditQueue { queue: self.log.queue(), names: self.names.clone() }
    }

    /// Records something that is neither a decision nor the end of a request: a join, an admin's action, a reload.
    pub fn event(&self, kind: &'static str, mut detail: Value) {
        self.names.veil(&mut detail);
        self.log.record(&record::Event { time: now(), event: kind, detail });
    }

    /// Whether one more refusal of an address that proved nothing is written; what is not is to be [counted](Self::count).
    pub fn take_line(&self, address: IpAddr) -> bool {
        self.thin.take_line(address, Instant::now())
    }

    /// Whether one more refusal of an address that proved nothing is written; else it is counted.
    pub fn take_or_count(&self, address: IpAddr, what: &'static str) -> bool {
        self.thin.take_or_count(address, what, Instant::now())
    }

    /// A refusal that is told only by its number.
    pub fn count(&self, address: IpAddr, what: &'static str) {
        self.thin.count(address, what, Instant::now());
    }

    /// Whether this refusal of somebody who proved something is written, as it is unless it comes again and again; else it is counted.
    pub fn take_news(&self, address: IpAddr, event: &'static str, reason: &str) -> bool {
        self.thin.take_news(address, event, reason, Instant::now())
    }

    /// Tells what was counted for long enough; at the end, all of it.
    pub fn tell_counted(&self, is_end: bool) {
        for counted in self.thin.due(Instant::now(), is_end) {
            let mut detail = json!({
                "count": counted.refused.values().sum::<u64>(),
                "seconds": counted.within.as_secs().max(1),
                "reasons": counted.refused,
            });
            if let Some(address) = counted.address {
                let suffix = if address.is_ipv6() { "/64" } else { "" };
                detail["address"] = format!("{address}{suffix}").into();
            }
            if let Some(reason) = counted.alike {
                detail["reason"] = reason.into();
            }
            self.event("refused-many", detail);
        }
    }

    /// Whether lines reach their file.
    pub fn is_healthy(&self) -> bool {
        self.log.is_healthy()
    }

    /// How the disk stands.
    pub fn room(&self) -> Room {
        self.log.room()
    }

    /// How many lines were lost for want of room since the start.
    pub fn lost(&self) -> u64 {
        self.log.lost()
    }

    /// How far the log has come: for agents to hold.
    pub fn head(&self) -> Option<(u64, Head)> {
        self.log.head()
    }

    /// Writes what is queued and closes the file. Call it last: lines that come later stay unwritten.
    pub fn close(&self) {
        self.log.close();
    }
}

impl AuditQueue {
    /// How people are named here.
    pub fn names(&self) -> &Pseudonyms {
        &self.names
    }

    /// Queues a decision; refused when the log is behind or failing.
    pub fn decision(&self, record: &record::Decision<'_>) -> Result<(), LogFull> {
        self.queue.record(record)
    }

    /// Queues the end of a request. One that was allowed always has its line; what was refused must not fill the memory of a relay whose
    /// disk is full.
    pub fn end(&self, record: &record::End<'_>, was_allowed: bool) {
        if was_allowed {
            self.queue.always(record);
        } else {
            // Counted, and told by a later line.
            let _ = self.queue.record(record);
        }
    }
}
