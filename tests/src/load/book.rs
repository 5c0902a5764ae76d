//! What became of the acts of a load, and what may be said of it: nothing wrong, nothing lost or doubled without being reported, and
//! how soon requests succeeded again.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Kind;

/// How an act ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte was as it should be.
    Right,
    /// The relay said that it failed: 502, 503 or 504, as a problem document.
    Refused(u16),
    /// The connection to the relay was refused, or broke so that the caller could see that it broke.
    Broken(String),
    /// A false answer, one that looks whole and is not, a status that nothing here explains, or silence.
    Wrong(String),
}

/// One act.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: String,
    pub kind: Kind,
    pub start: Instant,
    pub end: Instant,
    pub outcome: Outcome,
}

/// Whether an idempotent request may have arrived more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubles {
    /// No tunnel was lost: nothing gave reason to send anything again.
    Never,
    /// The relay sends again what is idempotent when its tunnel was lost.
    Idempotent,
}

/// Tries of one request: the first, and others on other tunnels.
const TRIES: u32 = 4;

/// Failures shown in a summary.
const SHOWN: usize = 6;

/// All acts, in the order of their beginning.
#[derive(Debug, Default)]
pub struct Book {
    pub records: Vec<Record>,
}

impl Book {
    pub fn new(records: impl IntoIterator<Item = Record>) -> Self {
        let mut records: Vec<_> = records.into_iter().collect();
        records.sort_by_key(|record| record.start);
        Self { records }
    }

    pub fn right(&self) -> usize {
        self.records.iter().filter(|record| record.outcome == Outcome::Right).count()
    }

    /// The acts that did not succeed.
    pub fn failures(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.outcome != Outcome::Right)
    }

    /// How many of each kind ended how, and the first few words of those that broke.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<(Kind, String), usize> = BTreeMap::new();
        for record in &self.records {
            let how = match &record.outcome {
                Outcome::Right => "right".to_owned(),
                Outcome::Refused(status) => status.to_string(),
                Outcome::Broken(_) => "broken".to_owned(),
                Outcome::Wrong(_) => "WRONG".to_owned(),
            };
            *counts.entry((record.kind, how)).or_default() += 1;
        }
        let parts = counts.iter().map(|((kind, how), count)| format!("{kind:?} {how} {count}"));
        let broken = self.records.iter().filter_map(|record| match &record.outcome {
            Outcome::Right | Outcome::Refused(_) => None,
            Outcome::Broken(how) | Outcome::Wrong(how) => {
                Some(format!("\n  {} after {:?}: {how}", record.id, record.end - record.start))
            }
        });
        parts.collect::<Vec<_>>().join(", ") + &broken.take(SHOWN).collect::<String>()
    }

    /// Holds all acts against what arrived at the upstream.
    ///
    /// # Errors
    /// One was wrong, or lost, or doubled, without its caller being told.
    pub fn reconcile(&self, arrived: &HashMap<String, u32>, doubles: Doubles) -> Result<()> {
        let mut faults = Vec::new();
        for record in &self.records {
            let times = arrived.get(&record.id).copied().unwrap_or_default();
            let is_right = record.outcome == Outcome::Right;
            let most = match doubles {
                Doubles::Idempotent if record.kind.is_idempotent() => TRIES,
                Doubles::Idempotent | Doubles::Never => 1,
            };
            if let Outcome::Wrong(what) = &record.outcome {
                faults.push(format!("{}: {what} (after {:?})", record.id, record.end - record.start));
            } else if is_right && times == 0 {
                faults.push(format!("{}: answered, but it never arrived", record.id));
            } else if times > most {
                faults.push(format!("{}: arrived {times} times ({:?})", record.id, record.outcome));
            }
        }
        let shown = faults.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
        ensure!(faults.is_empty(), "{} of {} acts:\n{shown}", faults.len(), self.records.len());
        Ok(())
    }

    /// How long after `since` the first act that began after it had succeeded.
    pub fn recovered(&self, since: Instant) -> Option<Duration> {
        let right = self.records.iter().filter(|r| r.start >= since && r.outcome == Outcome::Right);
        right.map(|record| record.end.duration_since(since)).min()
    }

    /// That requests succeeded again within `limit` of `since`, and that all that began later than that succeeded too.
    pub fn recovers(&self, since: Instant, limit: Duration) -> Result<Duration> {
        let took = self.recovered(since);
        let late: Vec<_> = self.failures().filter(|record| record.start > since + limit).take(5).collect();
        match took {
            Some(took) if took <= limit && late.is_empty() => Ok(took),
            Some(took) => anyhow::bail!(
                "the first success came {took:?} after the path's return; failures later than {limit:?}: {late:#?}"
            ),
            None => anyhow::bail!("no request succeeded after the path's return: {}", self.summary()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, kind: Kind, outcome: Outcome, start: Instant) -> Record {
        Record { id: id.to_owned(), kind, start, end: start + Duration::from_secs(1), outcome }
    }

    #[test]
    fn what_was_lost_or_doubled_shows() {
        let now = Instant::now();
        let book = |kind, outcome| Book::new([record("1", kind, outcome, now)]);
        let arrived = |times: u32| HashMap::from([("1".to_owned(), times)]);
        let none = HashMap::new();
        let is_good = |book: Book, arrived: &HashMap<_, _>, doubles| book.reconcile(arrived, doubles).is_ok();
        assert!(is_good(book(Kind::Upload, Outcome::Right), &arrived(1), Doubles::Idempotent));
        assert!(!is_good(book(Kind::Upload, Outcome::Right), &none, Doubles::Idempotent));
        assert!(!is_good(book(Kind::Upload, Outcome::Right), &arrived(2), Doubles::Idempotent));
        assert!(!is_good(book(Kind::Upload, Outcome::Refused(502)), &arrived(2), Doubles::Idempotent));
        assert!(is_good(book(Kind::Upload, Outcome::Refused(502)), &arrived(1), Doubles::Never));
        assert!(is_good(book(Kind::Get, Outcome::Right), &arrived(2), Doubles::Idempotent));
        assert!(!is_good(book(Kind::Get, Outcome::Right), &arrived(2), Doubles::Never));
        assert!(!is_good(book(Kind::Get, Outcome::Wrong("x".to_owned())), &arrived(1), Doubles::Never));
    }

    #[test]
    fn recovery_is_what_began_and_succeeded_after() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut records = vec![record("1", Kind::Get, Outcome::Right, now)];
        assert_eq!(Book::new(records.clone()).recovered(now + second), None);
        records.push(record("2", Kind::Get, Outcome::Right, now + second * 3));
        let book = Book::new(records.clone());
        assert_eq!(book.recovers(now + second, second * 3).unwrap(), second * 3);
        assert!(book.recovers(now + second, second * 2).is_err());
        records.push(record("3", Kind::Get, Outcome::Refused(503), now + second * 9));
        assert!(Book::new(records).recovers(now + second, second * 5).is_err());
    }
}
