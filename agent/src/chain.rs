//! The heads of relays' audit logs: takes what relays send of them; keeps them in this agent's own audit log, where a relay that changes or
//! cuts its log later cannot reach them. One that takes back what was said before is kept as a warning. Refuses more of them than a relay of
//! ours would send.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use postern_base::audit::chain::Head;
use postern_base::sync::lock;
use serde_json::json;

use crate::audit::Audit;

/// Relays send one a minute, and one for each tunnel that opens, with at most 16 tunnels. Of warnings as many may be kept beside them.
const MOST: u32 = 64;
const WHILE: Duration = Duration::from_mins(1);
/// Heads of a relay that later ones are held against.
const REMEMBERED: usize = 64;
/// Two tunnels may bring two heads in the wrong order, but not by more than this.
const CROSSING: Duration = Duration::from_secs(10);

/// What was heard lately of each relay.
#[derive(Debug, Default)]
pub struct Heads(Mutex<HashMap<String, Heard>>);

#[derive(Debug)]
struct Heard {
    /// The newest lines', by number; of two for one line the first.
    heads: BTreeMap<u64, [u8; 32]>,
    /// When the last of them came.
    newest: Instant,
    since: Instant,
    /// Since then.
    news: u32,
    warnings: u32,
}

/// What a head is to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Known,
    News,
    /// Another head of a line whose head is known.
    Different,
    /// Of a line before one whose head came long ago.
    Back,
}

impl Heads {
    /// Keeps a head, unless it is one that another tunnel brought already.
    pub fn keep(&self, audit: &Audit, relay: &str, sequence: u64, hash: [u8; 32], now: Instant) {
        let (event, reason) = match self.judge(relay, sequence, hash, now) {
            Is::Known => return,
            Is::News => ("chain-head", None),
            Is::Different => ("chain-warning", Some("two-heads")),
            Is::Back => ("chain-warning", Some("went-back")),
        };
        let mut detail = json!({ "relay": relay, "sequence": sequence, "hash": Head(hash).to_string() });
        if let Some(reason) = reason {
            tracing::warn!(relay, sequence, reason, "the relay's audit log is not what it was: verify it");
            detail["reason"] = reason.into();
        }
        audit.event(event, detail);
    }

    fn judge(&self, relay: &str, sequence: u64, hash: [u8; 32], now: Instant) -> Is {
        // Each entry is whole at every point where a panic could have left it.
        let mut relays = lock(&self.0);
        let Some(heard) = relays.get_mut(relay) else {
            let heads = BTreeMap::from([(sequence, hash)]);
            relays.insert(relay.to_owned(), Heard { heads, newest: now, since: now, news: 1, warnings: 0 });
            return Is::News;
        };
        if now.duration_since(heard.since) >= WHILE {
            (heard.since, heard.news, heard.warnings) = (now, 0, 0);
        }
        let is_late = now.duration_since(heard.newest) >= CROSSING;
        let is = match (heard.heads.get(&sequence), heard.heads.last_key_value()) {
            (Some(known), _) if *known == hash => return Is::Known,
            (Some(_), _) => Is::Different,
            (None, Some((newest, _))) if sequence < *newest && is_late => Is::Back,
            (None, _) => Is::News,
        };
        let count = if is == Is::News { &mut heard.news } else { &mut heard.warnings };
        if *count >= MOST {
            return Is::Known;
        }
        *count += 1;
        if heard.heads.last_key_value().is_none_or(|(newest, _)| sequence > *newest) {
            heard.newest = now;
        }
        heard.heads.entry(sequence).or_insert(hash);
        while heard.heads.len() > REMEMBERED {
            heard.heads.pop_first();
        }
        is
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_head_is_kept_once_and_a_flood_of_them_is_not() {
        let (heads, now) = (Heads::default(), Instant::now());
        assert_eq!(heads.judge("a", 1, [1; 32], now), Is::News);
        assert_eq!(heads.judge("a", 1, [1; 32], now), Is::Known, "the second tunnel's");
        assert_eq!(heads.judge("b", 1, [1; 32], now), Is::News);
        let kept = (2..1000).filter(|n| heads.judge("a", *n, [1; 32], now) == Is::News).count();
        assert_eq!(kept, 63);
        assert_eq!(heads.judge("a", 64, [9; 32], now), Is::Different, "no flood hides a warning");
        assert_eq!(heads.judge("a", 1000, [1; 32], now + WHILE), Is::News);
    }

    #[test]
    fn a_relay_that_takes_back_what_it_said_is_warned_of() {
        let (heads, now) = (Heads::default(), Instant::now());
        assert_eq!(heads.judge("a", 10, [1; 32], now), Is::News);
        assert_eq!(heads.judge("a", 20, [2; 32], now), Is::News);
        assert_eq!(heads.judge("a", 10, [3; 32], now), Is::Different);
        assert_eq!(heads.judge("a", 20, [3; 32], now), Is::Different, "the first is what the relay said");
        assert_eq!(heads.judge("a", 20, [2; 32], now), Is::Known);
        assert_eq!(heads.judge("a", 19, [3; 32], now), Is::News, "two tunnels crossed");
        assert_eq!(heads.judge("a", 18, [3; 32], now + CROSSING), Is::Back);
        assert_eq!(heads.judge("a", 21, [3; 32], now + CROSSING), Is::News);
        assert_eq!(heads.judge("b", 1, [3; 32], now + CROSSING), Is::News, "each relay has a log of its own");
        let warned = (0..100).filter(|n| heads.judge("b", 1, [*n; 32], now) == Is::Different).count();
        assert_eq!(warned, 64, "a flood of warnings is none");
    }
}
