//! Who of those that are enrolled stays in. Takes operators' orders on an agent or one of its instances, and what a handshake proved; gives
//! whether it is let in, from memory. Refuses whoever was never enrolled, was removed or is suspended, and what a replaced authority signed
//! unless it is what the instance was given last.

use std::time::SystemTime;

use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_wire::tls::{self, TlsError};
use rustls::pki_types::CertificateDer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ca::signed_by;
use super::store::{Change, InstanceRecord};
use super::{CaError, CertificateRecord, EnrollError, Enrollment, Who, seconds};

/// Suspensions at one time: far more than operators make.
pub(super) const MAX_SUSPENSIONS: usize = 10_000;
/// A reason travels in control messages and stands in logs.
pub(super) const MAX_REASON: usize = 500;

/// An admitted instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// What its invite narrowed it to; `None` is everything that relay.toml assigns to its name.
    pub services: Option<Vec<ServiceName>>,
}

/// What an instance was let in on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grounds {
    pub(super) shown: Shown,
    /// Its certificate was recorded as its own: that stays so, whatever becomes of the authority and however often it renews.
    pub(super) is_given: bool,
    /// It is of the one who took the instance with a certificate that was not on record.
    pub(super) is_theirs: bool,
}

/// An order to keep somebody out. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Suspension {
    pub reason: String,
    pub since: u64,
    /// Whose order it is; `None` where the relay itself gave it, for a recovery with an old key.
    pub by: Option<u32>,
}

/// Why an instance is not let in; said to the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    #[error(
        "agent {0} is not enrolled here, or was removed: invite it again with `postern-relay agent invite {0}`, then `postern-agent join RELAY --force`"
    )]
    NotEnrolled(AgentName),
    #[error(
        "agent {who} is suspended: {reason}; it is let in again when an operator resumes it: `postern-relay agent resume {who}`"
    )]
    Suspended { who: Who, reason: String },
    #[error(
        "the certificate of agent {0} was issued by an authority that was replaced, and is not the last one that this instance was given: invite it again with `postern-relay agent invite {0}`, then `postern-agent join RELAY --force`"
    )]
    Replaced(AgentName),
    #[error(
        "the certificate of agent {0} is older than the last two that this instance was given: it was put back to an earlier day, or this is a copy of its state. Where it was put back: invite it again with `postern-relay agent invite {0}`, then `postern-agent join RELAY --force`; where nobody did that, remove this instance first, with `postern-relay agent remove`"
    )]
    Older(AgentName),
    #[error(
        "two hold agent {0}: one came with a certificate that is not on record, and another with one that is; it is suspended now. Unless one of them was put back to an earlier day, the authority's key was stolen: run `postern-relay ca rotate`, remove this instance with `postern-relay agent remove {0}`, and invite the agent again"
    )]
    Two(Who),
}

/// What a handshake proved of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub serial: String,
    /// SHA-256 of the key, hexadecimal.
    pub key: String,
    /// The epoch of the authority that issued it.
    pub epoch: u64,
    /// SHA-256 of that authority's key, where it stands in the chain.
    pub issuer: Option<[u8; 32]>,
    /// Seconds since the epoch.
    pub not_before: u64,
    pub not_after: u64,
}

impl Shown {
    /// # Errors
    /// The chain is empty or its leaf is no certificate.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::Certificate("none was shown".to_owned()))?;
        let time = |of: i64| u64::try_from(of).unwrap_or(0);
        let issuer = chain.get(1).filter(|issuer| signed_by(leaf, issuer));
        Ok(Self {
            serial: tls::serial(leaf)?,
            key: tls::hex(&tls::pin(leaf)?),
            epoch: tls::epoch(chain),
            issuer: issuer.map(tls::pin).transpose()?,
            not_before: time(tls::not_before(leaf)?),
            not_after: time(tls::not_after(leaf)?),
        })
    }

    /// Whether this is the recorded certificate, or another one for its key, as when an answer was lost and asked for again: a handshake proves
    /// the key. Serials could be copied by whoever has the key of the authority; older databases have nothing else.
    pub(super) fn is(&self, record: &CertificateRecord) -> bool {
        record.key.as_ref().map_or(self.serial == record.serial, |key| *key == self.key)
    }

    /// Whether it was issued after the one that was recorded.
    pub(super) fn is_after(&self, record: &CertificateRecord) -> bool {
        record.is_before(Some(self.not_before), self.not_after)
    }
}

impl Enrollment {
    /// Whether this instance is let in. From memory alone.
    pub fn standing(&self, name: &AgentName, instance: &InstanceId) -> Result<Enrolled, Barred> {
        let state = self.state.load();
        let services = match state.instances.get(instance).filter(|record| record.name == *name) {
            Some(record) if record.removed.is_none() => record.services.clone(),
            // Where certificates are made elsewhere, whoever has one is enrolled.
            None if !self.ca.issues() => None,
            Some(_) | None => return Err(Barred::NotEnrolled(name.clone())),
        };
        self.not_suspended(name, Some(instance))?;
        Ok(Enrolled { services })
    }

    /// Whether this instance, with this certificate, is let in, and on what. From memory alone.
    pub fn admit(
        &self,
        name: &AgentName,
        instance: &InstanceId,
        shown: Shown,
        now: SystemTime,
    ) -> Result<(Enrolled, Grounds), Barred> {
        let enrolled = self.standing(name, instance)?;
        let state = self.state.load();
        let record = state.instances.get(instance).filter(|_| self.ca.issues());
        if record.is_some_and(|record| record.is_displaced(&shown.key, now)) {
            return Err(Barred::Two(Who::instance(name, instance)));
        }
        let is_given = record.is_some_and(|record| {
            shown.is(&record.latest) || record.previous.as_ref().is_some_and(|previous| shown.is(previous))
        });
        if !is_given && !self.ca.is_current(&shown) {
            return Err(Barred::Replaced(name.clone()));
        }
        // A later one was given before the relay's state was put back to an earlier day. Rows of older versions do not say whose key is newest.
        let is_older =
            |record: &InstanceRecord| record.latest.key.is_some() && !shown.is_after(&record.latest);
        if !is_given && record.is_some_and(is_older) {
            return Err(Barred::Older(name.clone()));
        }
        let is_theirs = record.is_some_and(|record| record.is_theirs(&shown.key));
        Ok((enrolled, Grounds { shown, is_given, is_theirs }))
    }

    /// Whether what an instance was let in on holds still: what only an authority vouched for that was replaced since does not.
    pub fn holds(&self, grounds: &Grounds) -> bool {
        grounds.is_given || self.ca.is_current(&grounds.shown)
    }

    /// Whether such an instance is to renew at once: its certificate is of an authority before the one in force, or is not recorded.
    pub fn is_behind(&self, grounds: &Grounds) -> bool {
        self.ca.issues() && !(grounds.is_given && self.ca.is_current(&grounds.shown))
    }

    pub(super) fn not_suspended(
        &self,
        name: &AgentName,
        instance: Option<&InstanceId>,
    ) -> Result<(), Barred> {
        let state = self.state.load();
        if state.suspensions.is_empty() {
            return Ok(());
        }
        let one = instance.map(|instance| Who::instance(name, instance));
        for who in one.into_iter().chain([Who::from(name.clone())]) {
            if let Some(Suspension { reason, .. }) = state.suspensions.get(&who) {
                return Err(Barred::Suspended { reason: reason.clone(), who });
            }
        }
        Ok(())
    }

    /// Whether each of these names is suspended, or all of its instances are. From memory alone.
    pub fn are_suspended(&self, names: &[AgentName]) -> bool {
        let state = self.state.load();
        let is_suspended = |name: &AgentName| {
            // A name comes before its instances. Nearly always nothing of it is suspended, and no instance is looked at.
            let first = Who::from(name.clone());
            let next = state.suspensions.range(&first..).next().map(|(who, _)| who);
            let Some(next) = next.filter(|who| who.name == *name) else { return false };
            let is_out = |instance| state.suspensions.contains_key(&Who::instance(name, instance));
            let is_own = |record: &InstanceRecord| record.name == *name && record.removed.is_none();
            let mut own = state.instances.iter().filter(|(_, record)| is_own(record)).peekable();
            *next == first || own.peek().is_some() && own.all(|(instance, _)| is_out(instance))
        };
        !state.suspensions.is_empty() && names.iter().all(is_suspended)
    }

    /// Keeps `who` out until resumed; the caller cuts the tunnels. Said again, the new reason counts. Blocks on the disk.
    pub fn suspend(
        &self,
        who: &Who,
        reason: &str,
        by: Option<u32>,
        now: SystemTime,
    ) -> Result<Suspension, EnrollError> {
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > MAX_REASON {
            return Err(EnrollError::Reason);
        }
        let store = self.writing();
        let state = self.state.load_full();
        let is_instance = |(instance, record): (&InstanceId, &InstanceRecord)| {
            record.removed.is_none() && who.covers(&record.name, instance)
        };
        let is_invited = || who.instance.is_none() && state.invites.values().any(|i| i.agent == who.name);
        if self.ca.issues() && !state.instances.iter().any(is_instance) && !is_invited() {
            return Err(EnrollError::UnknownAgent(who.clone()));
        }
        if state.suspensions.len() >= MAX_SUSPENSIONS && !state.suspensions.contains_key(who) {
            return Err(EnrollError::TooManySuspensions);
        }
        let suspension = Suspension { reason: reason.to_owned(), since: seconds(now), by };
        let suspensions = vec![(who.clone(), Some(suspension.clone()))];
        self.commit(&store, Change { suspensions, ..Change::default() })?;
        Ok(suspension)
    }

    /// Takes one suspension back: of the name, or of the instance, whichever was suspended. Blocks on the disk.
    pub fn resume(&self, who: &Who) -> Result<Suspension, EnrollError> {
        let store = self.writing();
        let state = self.state.load_full();
        let Some(suspension) = state.suspensions.get(who) else {
            let others = state.suspensions.keys().filter(|other| other.name == who.name);
            let others = others.map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let who = who.clone();
            return Err(if others.is_empty() {
                EnrollError::NotSuspended(who)
            } else {
                EnrollError::OtherSuspended { who, others }
            });
        };
        let suspensions = vec![(who.clone(), None)];
        let is_covered =
            |(instance, record): &(&InstanceId, &InstanceRecord)| who.covers(&record.name, instance);
        // Whoever has a copy from before has shown it: the same key is not to put the instance out again and again.
        let instances = state.instances.iter().filter(is_covered).map(|(instance, record)| {
            let resumed = Some(suspension.since);
            (instance.clone(), InstanceRecord { resumed, taken: None, ..record.clone() })
        });
        let instances = instances.collect();
        self.commit(&store, Change { instances, suspensions, ..Change::default() })?;
        Ok(suspension.clone())
    }

    /// Puts `who` out for good; of a whole agent, open invites are void too. Gives how many instances that were. The caller cuts their
    /// tunnels. Blocks on the disk.
    pub fn remove(&self, who: &Who, now: SystemTime) -> Result<usize, EnrollError> {
        let store = self.writing();
        let state = self.state.load_full();
        let mut change = Change::default();
        for (instance, record) in &state.instances {
            if who.covers(&record.name, instance) && record.removed.is_none() {
                let removed = InstanceRecord { removed: Some(seconds(now)), ..record.clone() };
                change.instances.push((instance.clone(), removed));
            }
        }
        for (hash, invite) in &state.invites {
            if who.instance.is_none() && invite.agent == who.name && invite.used.is_none() {
                change.invites.push((*hash, None));
            }
        }
        if change.instances.is_empty() && change.invites.is_empty() {
            // Out for good is who has no certificate any more; until then a suspension keeps it out.
            if !self.ca.issues() {
                return Err(CaError::Elsewhere.into());
            }
            return Err(EnrollError::UnknownAgent(who.clone()));
        }
        // What is gone needs no suspension, and a new invite under the name is a new beginning.
        let moot = state
            .suspensions
            .keys()
            .filter(|one| one.name == who.name && (who.instance.is_none() || who.instance == one.instance));
        change.suspensions = moot.map(|one| (one.clone(), None)).collect();
        let removed = change.instances.len();
        self.commit(&store, change)?;
        Ok(removed)
    }
}
