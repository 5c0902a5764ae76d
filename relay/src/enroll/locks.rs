//! Locks in the state database: written before they are in force, and back after a restart.

use std::time::{Duration, SystemTime};

use super::store::Change;
use super::{EnrollError, Enrollment, seconds};
use crate::session::{Lock, LockId, LockOn};

/// Locks at one time: far more than operators make, and looked through only when one changes.
pub(super) const MAX_LOCKS: usize = 10_000;

impl Enrollment {
    /// Those whose time is not over, the oldest first.
    pub fn locks(&self, now: SystemTime) -> Vec<Lock> {
        let now = seconds(now);
        let mut locks: Vec<_> =
            self.state.load().locks.values().filter(|l| !l.is_over(now)).cloned().collect();
        locks.sort_by_key(|lock| (lock.made, lock.id));
        locks
    }

    /// A new lock, for `ttl` or until it is taken away. Blocks on the disk.
    pub fn lock(
        &self,
        on: LockOn,
        ttl: Option<Duration>,
        reason: &str,
        by: u32,
        now: SystemTime,
    ) -> Result<Lock, EnrollError> {
        let store = self.writing();
        let state = self.state.load_full();
        if state.locks.len() >= MAX_LOCKS {
            return Err(EnrollError::TooManyLocks);
        }
        let mut id = LockId::random();
        while state.locks.contains_key(&id) {
            id = LockId::random();
        }
        let made = seconds(now);
        let expires = ttl.map(|ttl| made.saturating_add(ttl.as_secs().max(1)));
        let lock = Lock { id, on, reason: reason.to_owned(), made, expires, by };
        self.commit(&store, Change { locks: vec![(id, Some(lock.clone()))], ..Change::default() })?;
        Ok(lock)
    }

    /// Takes a lock away. Blocks on the disk.
    pub fn unlock(&self, id: LockId) -> Result<Lock, EnrollError> {
        let store = self.writing();
        let lock = self.state.load().locks.get(&id).cloned().ok_or(EnrollError::UnknownLock(id))?;
        self.commit(&store, Change { locks: vec![(id, None)], ..Change::default() })?;
        Ok(lock)
    }

    /// Takes those away whose time is over; gives them. Blocks on the disk.
    pub fn end_locks(&self, now: SystemTime) -> Result<Vec<Lock>, EnrollError> {
        let store = self.writing();
        let now = seconds(now);
        let over: Vec<_> = self.state.load().locks.values().filter(|l| l.is_over(now)).cloned().collect();
        let locks = over.iter().map(|lock| (lock.id, None)).collect();
        self.commit(&store, Change { locks, ..Change::default() })?;
        Ok(over)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::enroll::{CaSource, EnrollSettings};

    #[test]
    fn locks_are_there_again_until_their_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let settings = EnrollSettings {
            state: dir.path().join("state"),
            trust_domain: "example.com".parse().unwrap(),
            ca: CaSource::Ours,
            cert_ttl: Duration::from_hours(1),
            invite_ttl: Duration::from_mins(1),
            recover: Duration::ZERO,
        };
        let now = SystemTime::now();
        Enrollment::init(&settings, now).unwrap();
        let open = || Enrollment::open(settings.clone()).unwrap();
        // A database that no lock was ever written to, as older relays left them.
        let enrollment = open();
        assert_eq!(enrollment.locks(now), []);
        let minute = Duration::from_mins(1);
        let all = enrollment.lock(LockOn::All, None, "an incident", 7, now).unwrap();
        let on = LockOn::User { issuer: "corp".parse().unwrap(), name: "ada".to_owned() };
        let user = enrollment.lock(on, Some(minute), "lost a laptop", 8, now + minute).unwrap();
        let agent = enrollment.lock(LockOn::Agent("dc1".parse().unwrap()), None, "", 8, now).unwrap();
        assert_eq!(enrollment.unlock(agent.id).unwrap(), agent);
        assert!(matches!(enrollment.unlock(agent.id), Err(EnrollError::UnknownLock(id)) if id == agent.id));
        assert_eq!(enrollment.locks(now), [all.clone(), user.clone()]);
        drop(enrollment);

        let enrollment = open();
        assert_eq!(enrollment.locks(now), [all.clone(), user.clone()]);
        let made = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((all.made, all.expires, user.expires), (made, None, Some(made + 120)));
        let later = now + 2 * minute;
        assert_eq!(enrollment.locks(later), std::slice::from_ref(&all));
        assert_eq!(enrollment.end_locks(later).unwrap(), [user]);
        drop(enrollment);
        assert_eq!(open().locks(now), [all]);
    }
}
