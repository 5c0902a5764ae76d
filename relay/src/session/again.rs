//! Tokens that their issuer may take back: takes live streams whose issuer's last word is too old, asks again, and gives them the new word or
//! cuts them. An issuer that does not answer has a short while; then what it cannot vouch for ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use postern_gate::principal::Principal;
use tokio::task::JoinSet;

use super::running::{Cut, NEVER, Running};
use super::{Session, seconds};
use crate::relay::Relay;

/// Streams asked about at once; more of them wait for their turn. Those of one token are one question to the issuer.
const AT_ONCE: usize = 256;
/// Between two questions to an issuer that did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a stream goes on while its issuer does not answer.
const VAIN: Duration = Duration::from_secs(10);

/// Before this time no live stream's issuer is to be asked again, in seconds since the epoch: until then nobody looks for one.
#[derive(Debug)]
pub(super) struct NextQuestion(AtomicU64);

impl Default for NextQuestion {
    fn default() -> Self {
        Self(AtomicU64::new(NEVER))
    }
}

impl NextQuestion {
    /// Told after each change of a stream's own time: whoever looks then and misses it looks again.
    pub(super) fn is_for(&self, running: &Running) {
        let at = running.ask_at();
        if at != NEVER {
            self.0.fetch_min(at, Ordering::AcqRel);
        }
    }

    /// Whether it is time. Then whoever looks says anew of each stream that it leaves.
    fn is_now(&self, now: u64) -> bool {
        let is_now = self.0.load(Ordering::Relaxed) <= now;
        if is_now {
            self.0.swap(NEVER, Ordering::AcqRel);
        }
        is_now
    }
}

impl Session {
    /// The live streams whose issuer is to be asked again.
    fn to_be_asked(&self, now: u64, most: usize) -> Vec<Arc<Running>> {
        if most == 0 || !self.next_question.is_now(now) {
            return Vec::new();
        }
        let mut found = 0;
        let mut is_due = |running: &Running| {
            if running.was_cut().is_some() {
                return false;
            }
            let is_due = running.ask_at() <= now && found < most;
            if is_due {
                found += 1;
            } else {
                self.next_question.is_for(running);
            }
            is_due
        };
        self.shards.iter().flat_map(|shard| shard.pick(&mut is_due).collect::<Vec<_>>()).collect()
    }
}

/// Begins to ask about those that are due.
pub(super) fn ask(relay: &Arc<Relay>, asking: &mut JoinSet<()>, now: SystemTime) {
    while asking.try_join_next().is_some() {}
    for running in relay.session().to_be_asked(seconds(now), AT_ONCE.saturating_sub(asking.len())) {
        if let Some((token, principal)) = running.asking() {
            let relay = relay.clone();
            asking.spawn(async move {
                ask_one(&relay, &running, token.expose(), &principal, now).await;
                relay.session().next_question.is_for(&running);
            });
        }
    }
}

async fn ask_one(relay: &Relay, running: &Running, token: &str, principal: &Principal, now: SystemTime) {
    let snapshot = relay.snapshot();
    match snapshot.issuers.confirm(token, running.service.accept(), now).await {
        Ok(confirmed) => {
            let is_same = confirmed.is_same_caller(principal);
            running.confirmed(confirmed.clone(), now);
            if !is_same {
                running.cut(Cut::Inactive);
            } else if running.permitted(&snapshot, &confirmed).is_err() {
                running.cut(Cut::Reloaded);
            }
        }
        Err(error) if error.is_unavailable() => {
            let since = running.unanswered(principal.token_id(), now, AGAIN);
            tracing::warn!(request_id = %running.request_id, %error, "a live stream's token cannot be checked again");
            if since.is_some_and(|since| now.duration_since(since).is_ok_and(|vain| vain >= VAIN)) {
                running.cut(Cut::Unasked);
            }
        }
        // Another token was shown meanwhile: what becomes of the old one is nothing to it.
        Err(_) if running.principal().token_id() != principal.token_id() => {}
        Err(_) => {
            running.cut(Cut::Inactive);
        }
    }
}
