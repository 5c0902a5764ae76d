//! What enrolment remembers, in one redb file: invites (as hashes), instances, who is suspended, and the locks of operators. Takes whole
//! changes, writes each in one durable transaction; gives everything at start, to be served from memory. Rows are JSON, so that later
//! versions can add fields.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use postern_base::file;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_wire::tls;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    Value,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ca::Issued;
use super::taken::Taken;
use super::{EnrollError, Suspension, Who};
use crate::session::{Lock, LockId};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const INVITES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("invites");
const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("instances");
/// Older databases have none of these.
const LOCKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("locks");
const SUSPENSIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("suspensions");
/// When instances were last here, in seconds since the epoch.
const SEEN: TableDefinition<'_, &str, u64> = TableDefinition::new("seen");
/// Raised when rows change in a way that an older relay would misread.
const SCHEMA: u64 = 1;

/// SHA-256 of an invite's secret.
pub(super) type SecretHash = [u8; 32];

/// One invite. Times are seconds since the epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct InviteRecord {
    pub(super) agent: AgentName,
    /// Narrows what relay.toml assigns to the agent.
    pub(super) services: Option<Vec<ServiceName>>,
    pub(super) made: u64,
    pub(super) expires: u64,
    pub(super) used: Option<u64>,
}

/// One installation of an agent. Never deleted: a removed one stays out for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct InstanceRecord {
    pub(super) name: AgentName,
    pub(super) services: Option<Vec<ServiceName>>,
    pub(super) enrolled: u64,
    pub(super) latest: CertificateRecord,
    /// The one before, which the agent may still show while it takes up the latest.
    pub(super) previous: Option<CertificateRecord>,
    pub(super) removed: Option<u64>,
    /// Since when it was suspended when it was resumed last: older keys from before then are nobody's any more.
    #[serde(default)]
    pub(super) resumed: Option<u64>,
    /// Whether somebody renewed it with a certificate that is not on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) taken: Option<Taken>,
}

impl InstanceRecord {
    /// With a certificate that it was just given. Asked for again with the same key, it takes the place of the one whose answer was lost:
    /// what the agent still shows is the one before that.
    pub(super) fn given(mut self, issued: &Issued) -> Self {
        let before = std::mem::replace(&mut self.latest, CertificateRecord::of(issued));
        if before.key != self.latest.key {
            self.previous = Some(before);
        }
        self
    }
}

/// A certificate that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRecord {
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_after: u64,
    /// SHA-256 of its key, hexadecimal; older databases do not have it.
    #[serde(default)]
    pub key: Option<String>,
    /// The epoch of the authority that issued it.
    #[serde(default)]
    pub epoch: u64,
    /// From when on it is good, in seconds since the epoch; older databases do not have it.
    #[serde(default)]
    pub not_before: Option<u64>,
}

impl CertificateRecord {
    pub(super) fn of(issued: &Issued) -> Self {
        Self {
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            key: Some(tls::hex(&issued.key)),
            epoch: issued.epoch,
            not_before: Some(issued.not_before),
        }
    }

    /// Whether a certificate with these dates was issued after this one. Its end says less, since what certificates live may be changed.
    pub(super) fn is_before(&self, not_before: Option<u64>, not_after: u64) -> bool {
        match (self.not_before, not_before) {
            (Some(ours), Some(theirs)) => ours < theirs,
            (None, _) | (_, None) => self.not_after < not_after,
        }
    }
}

/// Everything, in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) invites: BTreeMap<SecretHash, InviteRecord>,
    pub(super) instances: HashMap<InstanceId, InstanceRecord>,
    pub(super) locks: BTreeMap<LockId, Lock>,
    pub(super) suspensions: BTreeMap<Who, Suspension>,
}

/// Rows to write, on disk and in memory alike.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// `None` deletes.
    pub(super) invites: Vec<(SecretHash, Option<InviteRecord>)>,
    pub(super) instances: Vec<(InstanceId, InstanceRecord)>,
    /// `None` deletes.
    pub(super) locks: Vec<(LockId, Option<Lock>)>,
    /// `None` deletes.
    pub(super) suspensions: Vec<(Who, Option<Suspension>)>,
}

impl Change {
    pub(super) fn apply(self, state: &mut State) {
        for (hash, invite) in self.invites {
            match invite {
                Some(invite) => state.invites.insert(hash, invite),
                None => state.invites.remove(&hash),
            };
        }
        state.instances.extend(self.instances);
        for (id, lock) in self.locks {
            match lock {
                Some(lock) => state.locks.insert(id, lock),
                None => state.locks.remove(&id),
            };
        }
        for (who, suspension) in self.suspensions {
            match suspension {
                Some(suspension) => state.suspensions.insert(who, suspension),
                None => state.suspensions.remove(&who),
            };
        }
    }
}

/// Pages that the database keeps in memory. What is asked at every handshake is kept by enrolment itself, so this serves writing alone; redb's
/// own default is 1 GiB, and would hold every page of 1,000 agents.
const CACHE: usize = 1024 * 1024;

/// The open database; redb lets one process at a time hold it.
pub(super) struct Store {
    database: Database,
}

impl Store {
    /// Makes an empty database unless there is one; gives whether it made one.
    pub(super) fn init(path: &Path) -> Result<bool, EnrollError> {
        if path.exists() {
            file::check_private(path).map_err(io_error(path))?;
            return Ok(false);
        }
        // Made aside and renamed, so that a crash leaves a whole database or none.
        let aside = path.with_extension("redb.new");
        if aside.exists() {
            fs::remove_file(&aside).map_err(io_error(&aside))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&aside).map_err(io_error(&aside))?;
        let backend = FileBackend::new(file).map_err(broken)?;
        let database = Database::builder().create_with_backend(backend).map_err(broken)?;
        let transaction = database.begin_write().map_err(broken)?;
        transaction.open_table(META).map_err(broken)?.insert("schema", SCHEMA).map_err(broken)?;
        transaction.open_table(INVITES).map_err(broken)?;
        transaction.open_table(INSTANCES).map_err(broken)?;
        transaction.commit().map_err(broken)?;
        drop(database);
        fs::rename(&aside, path).map_err(io_error(path))?;
        Ok(true)
    }

    pub(super) fn open(path: &Path) -> Result<Self, EnrollError> {
        if !path.exists() {
            return Err(EnrollError::NotInitialised(path.to_owned()));
        }
        file::check_private(path).map_err(io_error(path))?;
        let database = match Database::builder().set_cache_size(CACHE).open(path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(EnrollError::Held(path.to_owned())),
            Err(other) => return Err(broken(other)),
        };
        Ok(Self { database })
    }

    pub(super) fn load(&self) -> Result<State, EnrollError> {
        let transaction = self.database.begin_read().map_err(broken)?;
        let meta = transaction.open_table(META).map_err(broken)?;
        let schema = meta.get("schema").map_err(broken)?.map(|value| value.value());
        if schema != Some(SCHEMA) {
            return Err(EnrollError::Schema(schema.unwrap_or(0)));
        }
        let mut state = State::default();
        for row in transaction.open_table(INVITES).map_err(broken)?.iter().map_err(broken)? {
            let (hash, invite) = row.map_err(broken)?;
            state.invites.insert(*hash.value(), decode(invite.value())?);
        }
        for row in transaction.open_table(INSTANCES).map_err(broken)?.iter().map_err(broken)? {
            let (instance, record) = row.map_err(broken)?;
            let instance = instance.value().parse().map_err(|_| EnrollError::Row)?;
            state.instances.insert(instance, decode(record.value())?);
        }
        each(&transaction, LOCKS, |_, lock| {
            let lock: Lock = decode(lock)?;
            state.locks.insert(lock.id, lock);
            Ok(())
        })?;
        each(&transaction, SUSPENSIONS, |who, suspension| {
            let who = who.parse().map_err(|_| EnrollError::Row)?;
            state.suspensions.insert(who, decode(suspension)?);
            Ok(())
        })?;
        Ok(state)
    }

    /// When instances were last here.
    pub(super) fn seen(&self) -> Result<HashMap<InstanceId, u64>, EnrollError> {
        let transaction = self.database.begin_read().map_err(broken)?;
        let mut seen = HashMap::new();
        each(&transaction, SEEN, |instance, at| {
            seen.insert(instance.parse().map_err(|_| EnrollError::Row)?, at);
            Ok(())
        })?;
        Ok(seen)
    }

    pub(super) fn saw(&self, seen: &[(InstanceId, u64)]) -> Result<(), EnrollError> {
        let transaction = self.database.begin_write().map_err(broken)?;
        {
            let mut table = transaction.open_table(SEEN).map_err(broken)?;
            for (instance, at) in seen {
                table.insert(instance.as_str(), at).map_err(broken)?;
            }
        }
        transaction.commit().map_err(broken)
    }

    /// All of `change` or nothing, on disk when this returns.
    pub(super) fn commit(&self, change: &Change) -> Result<(), EnrollError> {
        let transaction = self.database.begin_write().map_err(broken)?;
        {
            let mut table = transaction.open_table(INVITES).map_err(broken)?;
            for (hash, invite) in &change.invites {
                match invite {
                    Some(invite) => table.insert(hash, encode(invite)?.as_slice()).map_err(broken)?,
                    None => table.remove(hash).map_err(broken)?,
                };
            }
            let mut table = transaction.open_table(INSTANCES).map_err(broken)?;
            for (instance, record) in &change.instances {
                table.insert(instance.as_str(), encode(record)?.as_slice()).map_err(broken)?;
            }
            let mut table = transaction.open_table(LOCKS).map_err(broken)?;
            for (id, lock) in &change.locks {
                let id = id.to_string();
                match lock {
                    Some(lock) => table.insert(&*id, encode(lock)?.as_slice()).map_err(broken)?,
                    None => table.remove(&*id).map_err(broken)?,
                };
            }
            let mut table = transaction.open_table(SUSPENSIONS).map_err(broken)?;
            for (who, suspension) in &change.suspensions {
                let who = who.to_string();
                match suspension {
                    Some(suspension) => {
                        table.insert(&*who, encode(suspension)?.as_slice()).map_err(broken)?
                    }
                    None => table.remove(&*who).map_err(broken)?,
                };
            }
        }
        transaction.commit().map_err(broken)
    }
}

/// Every row of a table, or none where it was never written to.
fn each<V: Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<'_, &'static str, V>,
    mut take: impl for<'a> FnMut(&str, V::SelfType<'a>) -> Result<(), EnrollError>,
) -> Result<(), EnrollError> {
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(other) => return Err(broken(other)),
    };
    for row in table.iter().map_err(broken)? {
        let (key, value) = row.map_err(broken)?;
        take(key.value(), value.value())?;
    }
    Ok(())
}

fn encode<T: Serialize>(row: &T) -> Result<Vec<u8>, EnrollError> {
    serde_json::to_vec(row).map_err(|_| EnrollError::Row)
}

fn decode<T: for<'de> Deserialize<'de>>(row: &[u8]) -> Result<T, EnrollError> {
    serde_json::from_slice(row).map_err(|_| EnrollError::Row)
}

fn broken(error: impl Into<redb::Error>) -> EnrollError {
    EnrollError::Database(Box::new(error.into()))
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> EnrollError {
    let path: PathBuf = path.to_owned();
    move |source| EnrollError::Io { path, source }
}
