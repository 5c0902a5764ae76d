//! Tokens that their issuer may take back: takes live streams whose issuer's last word is too old, asks again, and gives them the new word or
//! cuts them. An issuer that does not answer has a short while; then what it cannot vouch for ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_gate::principal::Principal;
use tokio::task::JoinSet;

use super::running::{Cut, Running, accept};
use super::{Session, lock, seconds};
use crate::relay::Relay;

/// Streams asked about at once; more of them wait for their turn. Those of one token are one question to the issuer.
const AT_ONCE: usize = 256;
/// Between two questions to an issuer that did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a stream goes on while its issuer does not answer.
const VAIN: Duration = Duration::from_secs(10);

impl Session {
    /// The live streams whose issuer is to be asked again.
    fn to_be_asked(&self, now: u64, most: usize) -> Vec<Arc<Running>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let leases = lock(&shard.leases);
            let due =
                leases.values().filter(|running| running.is_to_be_asked(now) && running.was_cut().is_none());
            all.extend(due.take(most.saturating_sub(all.len())).cloned());
        }
        all
    }
}

/// Begins to ask about those that are due.
pub(super) fn ask(relay: &Arc<Relay>, asking: &mut JoinSet<()>, now: SystemTime) {
    while asking.try_join_next().is_some() {}
    for running in relay.session().to_be_asked(seconds(now), AT_ONCE.saturating_sub(asking.len())) {
        if let Some((token, principal)) = running.asking() {
            let relay = relay.clone();
            asking.spawn(async move { ask_one(&relay, &running, token.expose(), &principal, now).await });
        }
    }
}

async fn ask_one(relay: &Relay, running: &Running, token: &str, principal: &Principal, now: SystemTime) {
    let snapshot = relay.snapshot();
    match snapshot.issuers.confirm(token, accept(&running.service), now).await {
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
