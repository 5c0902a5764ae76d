//! An instance that somebody renewed with a certificate which the relay has no record of. After a restore that is the agent itself, which holds a
//! later one than the database does. Else it is a thief with the authority's key. Takes the keys that are proved from then on; finds that there are
//! two who hold the instance, since one who was restored never shows again what was recorded before.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use postern_base::id::{AgentName, InstanceId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ca::Issued;
use super::store::{Change, InstanceRecord, Store};
use super::{EnrollError, Enrollment, Shown, Suspension, Who, seconds};
use crate::audit::Audit;

/// Why such an instance is suspended.
pub const TWO_KEYS: &str = "two hold it: one came with a certificate that is not on record, and now the one that is on record came too";
/// A handshake that began before the other one's renewal may end a little after it.
const LATE: Duration = Duration::from_mins(1);
/// Keys that are remembered. The first ones stay, and those of whoever took the instance make room for others', however often somebody takes it.
const KEYS: usize = 16;
/// Of the keys that were given since, the latest and the one before can be shown in a handshake.
const GIVEN: usize = 2;

/// Who took an instance, and from whom. Keys are SHA-256, hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Of the authority that vouched for it.
    epoch: u64,
    /// That was proved and is not on record.
    key: String,
    /// That were on record then, or since, and had to go for theirs.
    displaced: Vec<Displaced>,
    /// That were given to whoever proved `key`, the last ones.
    given: Vec<String>,
}

/// A key that whoever took the instance put in the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Displaced {
    key: String,
    /// Since when, in seconds since the epoch.
    at: u64,
    /// It was of somebody who took the instance before: of the same one, or of the agent after a restore.
    is_takers: bool,
}

impl Taken {
    fn is_theirs(&self, key: &str) -> bool {
        self.key == key || self.given.iter().any(|given| given == key)
    }

    /// A key goes for one of theirs. What is known of it stays, so that nobody puts it off by taking the instance again and again.
    fn displace(&mut self, key: String, is_takers: bool, now: SystemTime) {
        if self.displaced.iter().any(|displaced| displaced.key == key) {
            return;
        }
        if self.displaced.len() >= KEYS {
            let less = self.displaced.iter().rposition(|displaced| displaced.is_takers);
            let Some(less) = less.filter(|_| !is_takers) else { return };
            self.displaced.remove(less);
        }
        self.displaced.push(Displaced { key, at: seconds(now), is_takers });
    }
}

impl InstanceRecord {
    /// Whether this is a key that was on record before somebody took the instance with another.
    pub(super) fn is_displaced(&self, key: &str, now: SystemTime) -> bool {
        let is_past = |one: &Displaced| seconds(now) > one.at.saturating_add(LATE.as_secs());
        let mut displaced = self.taken.iter().flat_map(|taken| &taken.displaced);
        displaced.any(|displaced| displaced.key == key && is_past(displaced))
    }

    /// Whether who shows this key now is the one who took the instance.
    pub(super) fn is_theirs(&self, key: &str) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.is_theirs(key))
    }

    /// Somebody took it by showing what is not on record.
    pub(super) fn taken_by(mut self, shown: &Shown, now: SystemTime) -> Self {
        let before = self.taken.take();
        let displaced = before.as_ref().map(|taken| taken.displaced.clone()).unwrap_or_default();
        let (key, epoch) = (shown.key.clone(), shown.epoch);
        let mut taken = Taken { epoch, key, displaced, given: Vec::new() };
        for key in self.recorded() {
            let is_takers = before.as_ref().is_some_and(|before| before.is_theirs(&key));
            taken.displace(key, is_takers, now);
        }
        self.taken = Some(taken);
        self
    }

    /// With a certificate that the one who took the instance was given. Whose key it is that is forgotten for it may come back with it: an agent
    /// that got it over a tunnel from before. While it is on record its answer may have been lost, and the agent shows the one before.
    pub(super) fn given_to_them(self, issued: &Issued, now: SystemTime) -> Self {
        let before = self.recorded();
        let mut after = self.given(issued);
        let recorded = after.recorded();
        if let Some(taken) = &mut after.taken {
            for key in before.into_iter().filter(|key| !recorded.contains(key)) {
                if !taken.is_theirs(&key) {
                    taken.displace(key, false, now);
                }
            }
            if let Some(newest) = &after.latest.key {
                taken.given.retain(|given| given != newest);
                taken.given.push(newest.clone());
            }
            let more = taken.given.len().saturating_sub(GIVEN);
            taken.given.drain(..more);
        }
        after
    }

    /// The keys of the last certificates.
    fn recorded(&self) -> Vec<String> {
        let recorded = [Some(&self.latest), self.previous.as_ref()];
        recorded.into_iter().flatten().filter_map(|record| record.key.clone()).collect()
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
        self.suspend_by_relay(&store, Who::instance(name, instance), TWO_KEYS, now)
    }

    /// An order of the relay's own.
    pub(super) fn suspend_by_relay(
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
