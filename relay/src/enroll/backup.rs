//! The database in a backup: gives a copy of it as it stood between two changes; takes one back in, so that nobody who was put out comes in
//! again, by the copy's word or by this database's. Refuses a copy that cannot be read whole.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::store::{Change, InstanceRecord, Store};
use super::{EnrollError, EnrollSettings, Enrollment, seconds};

/// What a restore changed in the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Merged {
    /// Instances that were not known here.
    pub instances: usize,
    /// Instances that were removed before the backup and not here.
    pub removed: Vec<String>,
    /// Suspensions that were in force then and are again.
    pub suspended: Vec<String>,
    /// Locks that were in force then and are again.
    pub locks: Vec<String>,
}

impl Enrollment {
    pub fn settings(&self) -> &EnrollSettings {
        &self.settings
    }

    /// The whole database as a file. Blocks on the disk.
    pub fn copy(&self) -> Result<Vec<u8>, EnrollError> {
        // No change is under way while this is held, and redb's file is whole between changes.
        let _store = self.writing();
        let path = self.settings.database();
        fs::read(&path).map_err(|source| EnrollError::Io { path, source })
    }

    /// Takes in what a copy of an earlier, or another, database of this relay knows, in one transaction: instances, removals, suspensions and
    /// locks of both hold. Open invites of the copy do not: one that was used or voided since would be good again. Blocks on the disk.
    pub fn merge(&self, copy: &Path, now: SystemTime) -> Result<Merged, EnrollError> {
        let theirs = Store::open(copy)?.load()?;
        let store = self.writing();
        let ours = self.state.load_full();
        let (mut change, mut merged) = (Change::default(), Merged::default());
        for (instance, theirs) in theirs.instances {
            let Some(ours) = ours.instances.get(&instance) else {
                merged.instances += usize::from(theirs.removed.is_none());
                change.instances.push((instance, theirs));
                continue;
            };
            let is_removed_now =
                ours.removed.is_none() && theirs.removed.is_some() && ours.name == theirs.name;
            // Of two certificates the later one is the one to renew from, whichever side has it.
            let their_latest = &theirs.latest;
            let is_newer = ours.latest.is_before(their_latest.not_before, their_latest.not_after)
                && ours.name == theirs.name;
            if is_removed_now {
                merged.removed.push(format!("{}/{instance}", ours.name));
            }
            if is_removed_now || is_newer {
                let removed = ours.removed.or(theirs.removed);
                let newer = if is_newer { theirs } else { ours.clone() };
                change.instances.push((instance, InstanceRecord { removed, ..newer }));
            }
        }
        for (who, suspension) in theirs.suspensions {
            if !ours.suspensions.contains_key(&who) {
                merged.suspended.push(who.to_string());
                change.suspensions.push((who, Some(suspension)));
            }
        }
        for (id, lock) in theirs.locks {
            if !ours.locks.contains_key(&id) && !lock.is_over(seconds(now)) {
                merged.locks.push(format!("{id} on {}", lock.on));
                change.locks.push((id, Some(lock)));
            }
        }
        self.commit(&store, change)?;
        merged.removed.sort();
        Ok(merged)
    }
}
