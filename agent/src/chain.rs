//! The heads of relays' audit logs: takes what relays send of them; keeps them in this agent's own audit log, where a relay that changes or
//! cuts its log later cannot reach them. Refuses more of them than a relay of ours would send.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_base::audit::chain::Head;
use serde_json::json;

use crate::audit::Audit;

/// Relays send one a minute, and one for each tunnel that opens, with at most 16 tunnels.
const MOST: u32 = 64;
const WHILE: Duration = Duration::from_mins(1);

/// What was heard last of each relay.
#[derive(Debug, Default)]
pub struct Heads(Mutex<HashMap<String, Heard>>);

#[derive(Debug)]
struct Heard {
    last: (u64, [u8; 32]),
    since: Instant,
    /// Since then.
    count: u32,
}

impl Heads {
    /// Keeps a head, unless it is the one that another tunnel brought just now.
    pub fn keep(&self, audit: &Audit, relay: &str, sequence: u64, hash: [u8; 32], now: Instant) {
        if self.is_news(relay, (sequence, hash), now) {
            let head = Head(hash).to_string();
            audit.event("chain-head", json!({ "relay": relay, "sequence": sequence, "hash": head }));
        }
    }

    fn is_news(&self, relay: &str, head: (u64, [u8; 32]), now: Instant) -> bool {
        // Each entry is whole at every point where a panic could have left it.
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = relays.get_mut(relay) else {
            relays.insert(relay.to_owned(), Heard { last: head, since: now, count: 1 });
            return true;
        };
        if now.duration_since(known.since) >= WHILE {
            (known.since, known.count) = (now, 0);
        }
        if known.last == head || known.count >= MOST {
            return false;
        }
        (known.last, known.count) = (head, known.count + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_head_is_kept_once_and_a_flood_of_them_is_not() {
        let (heads, now) = (Heads::default(), Instant::now());
        assert!(heads.is_news("a", (1, [1; 32]), now));
        assert!(!heads.is_news("a", (1, [1; 32]), now), "the second tunnel's");
        assert!(heads.is_news("b", (1, [1; 32]), now));
        assert!(heads.is_news("a", (1, [2; 32]), now), "another head of the same line is news indeed");
        let kept = (2..1000).filter(|n| heads.is_news("a", (*n, [1; 32]), now)).count();
        assert_eq!(kept, 62);
        assert!(heads.is_news("a", (1000, [1; 32]), now + WHILE));
    }
}
