//! An instance that somebody renewed with a certificate which the relay has no record of. After a restore that is the agent itself, which holds a
//! later one than the database does. Else it is a thief with the authority's key. Takes the keys that are proved from then on; finds that there are
//! two who hold the instance, since one who was restored never shows again what was recorded before.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use postern_base::id::{AgentName, InstanceId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::store::{Change, InstanceRecord, Store};
use super::{EnrollError, Enrollment, Shown, Suspension, Who, seconds};
use crate::audit::Audit;

/// Why such an instance is suspended.
pub const TWO_KEYS: &str = "two hold it: one came with a certificate that is not on record, and now the one that is on record came too";
/// A handshake that began before the other one's renewal may end a little after it.
const LATE: Duration = Duration::from_mins(1);
/// Keys that are remembered. The first ones, which are the agent's own, stay, however often somebody takes the instance again.
const KEYS: usize = 16;
/// Of the keys that were given since, the latest and the one before can be shown in a handshake.
const GIVEN: usize = 2;

/// Who took an instance, and from whom. Keys are SHA-256, hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Seconds since the epoch.
    at: u64,
    /// Of the authority that vouched for it.
    epoch: u64,
    /// That was proved and is not on record.
    key: String,
    /// That were on record then.
    displaced: Vec<String>,
    /// That were given to whoever proved `key`, the last ones.
    given: Vec<String>,
}

impl Taken {
    fn is_theirs(&self, key: &str) -> bool {
        self.key == key || self.given.iter().any(|given| given == key)
    }
}

impl InstanceRecord {
    /// Whether this is a key that was on record before somebody took the instance with another.
    pub(super) fn is_displaced(&self, key: &str, now: SystemTime) -> bool {
        let is_past = |taken: &&Taken| seconds(now) > taken.at.saturating_add(LATE.as_secs());
        let taken = self.taken.as_ref().filter(is_past);
        taken.is_some_and(|taken| taken.displaced.iter().any(|displaced| displaced == key))
    }

    /// Whether who shows this key now is the one who took the instance.
    pub(super) fn is_theirs(&self, key: &str) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.is_theirs(key))
    }

    /// Somebody took it by showing what is not on record.
    pub(super) fn taken_by(mut self, shown: &Shown, now: SystemTime) -> Self {
        let before = self.taken.take().map(|taken| taken.displaced).unwrap_or_default();
        let recorded = [Some(&self.latest), self.previous.as_ref()];
        let recorded = recorded.into_iter().flatten().filter_map(|record| record.key.clone());
        let displaced = before.into_iter().chain(recorded).take(KEYS).collect();
        let (key, epoch) = (shown.key.clone(), shown.epoch);
        self.taken = Some(Taken { at: seconds(now), epoch, key, displaced, given: Vec::new() });
        self
    }

    /// Notes that the newest key was given to the one who took the instance.
    pub(super) fn given_to_them(mut self) -> Self {
        if let Some(taken) = &mut self.taken {
            taken.given.extend(self.latest.key.clone());
            let more = taken.given.len().saturating_sub(GIVEN);
            taken.given.drain(..more);
        }
        self
    }

    /// Whether two hold it who both renewed, or are about to, since it was taken: one of them is not who took it. Asked once the authority was
    /// replaced, as after a theft; before, several relays with copies of one state would seem to be such a pair.
    pub(super) fn is_held_by_two(&self, is_theirs: bool, epoch: u64) -> bool {
        let taken = self.taken.as_ref().filter(|taken| taken.epoch < epoch);
        let newest = self.latest.key.as_deref().unwrap_or_default();
        taken.is_some_and(|taken| !is_theirs || !taken.is_theirs(newest))
    }
}

/// Tells that somebody took an instance.
pub fn tell(audit: &Audit, agent: &AgentName, instance: &InstanceId, address: IpAddr) {
    tracing::warn!(%agent, %instance, %address, "renewed with a certificate that is not on record: unless this relay's state was restored, or is used by two relays, the authority's key was stolen");
    let detail = json!({ "agent": agent, "instance": instance, "address": address });
    audit.event("certificate-unrecorded", detail);
}

impl Enrollment {
    /// Suspends an instance that two hold, since it cannot be told who of them is the right one. Blocks on the disk.
    pub fn suspend_for_two(
        &self,
        name: &AgentName,
        instance: &InstanceId,
        now: SystemTime,
    ) -> Result<Who, EnrollError> {
        let store = self.writing();
        self.put_out(&store, Who::instance(name, instance), TWO_KEYS, now)
    }

    /// An order of the relay's own.
    pub(super) fn put_out(
        &self,
        store: &Store,
        who: Who,
        reason: &str,
        now: SystemTime,
    ) -> Result<Who, EnrollError> {
        let suspension = Suspension { reason: reason.to_owned(), since: seconds(now), by: None };
        let suspensions = vec![(who.clone(), Some(suspension))];
        self.commit(store, Change { suspensions, ..Change::default() })?;
        Ok(who)
    }
}
