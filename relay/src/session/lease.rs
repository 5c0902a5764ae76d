//! Leases: a live stream has an id that only its opener was told, and lives until its token expires. Takes an id with a fresh token that is
//! already proved; gives the stream that token's time; refuses ids that are not this caller's like ids that are nobody's.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_gate::principal::Principal;
use postern_wire::control::RelayMessage;
use postern_wire::head::Credential;
use serde_json::json;

use super::Session;
use super::running::{Cut, Running, Unfit};
use crate::relay::Relay;
use crate::settings::TokenUse;

/// 128 random bits. Whoever names it and is the stream's caller may renew it, so nothing shows it but the answer that opens the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId([u8; 16]);

impl LeaseId {
    pub(super) fn random() -> Self {
        Self(rand::random())
    }

    /// As the caller is told it.
    pub fn told(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        Some(Self(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }
}

/// The first 8 bytes of its SHA-256, for logs and audit.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        digest(&SHA256, &self.0).as_ref().iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({self})")
    }
}

/// Why a stream keeps the time it has. Shown to callers.
#[derive(Debug, thiserror::Error)]
pub enum Unrenewed {
    /// There is none, or another caller's: alike.
    #[error("no live stream of this caller has this lease")]
    Unknown,
    #[error("this token expires before the one that the stream has: show a newer one")]
    Older,
    #[error("the stream's service does not take this token")]
    NotTaken,
    #[error("{0}")]
    Denied(String),
    #[error("the stream's agent does not take the new token: open another stream")]
    Untold,
    #[error("the stream was cut: {}", .0.reason())]
    Cut(Cut),
}

impl Session {
    /// The live stream of a lease, and whether it is this caller's to renew: same issuer, subject, client and key.
    fn own(&self, lease: &str, caller: &Principal) -> Option<Arc<Running>> {
        let running = self.by_lease(lease)?;
        let opener = running.principal();
        opener.is_same_caller(caller).then_some(running)
    }

    /// Gives a stream the time of a fresh token, where its target is still permitted. Gives when that ends, in seconds since the epoch.
    pub async fn renew(
        &self,
        relay: &Relay,
        lease: &str,
        caller: &Arc<Principal>,
        shown: &Credential<'_>,
        now: SystemTime,
    ) -> Result<u64, Unrenewed> {
        let running = self.own(lease, caller).ok_or(Unrenewed::Unknown)?;
        if caller.expires() < running.until() {
            return Err(Unrenewed::Older);
        }
        let snapshot = relay.snapshot();
        running.permitted(&snapshot, caller).map_err(|unfit| match unfit {
            Unfit::Service | Unfit::Token => Unrenewed::NotTaken,
            Unfit::Denied(denial) => Unrenewed::Denied(denial.detail()),
        })?;
        if running.service.caller_token == TokenUse::Agent {
            // The agent judges it too. One that hears nothing of it would end the stream when the old token expires.
            let request_id = running.request_id.to_string();
            let message = RelayMessage::Lease { request_id, credential: shown.owned() };
            let tunnel = running.tunnel().ok_or(Unrenewed::Untold)?;
            if !tunnel.say(message).await {
                return Err(Unrenewed::Untold);
            }
        }
        running.renewed(caller.clone(), shown.token, now);
        self.next_question.is_for(&running);
        // What changed since it was judged did not see this token.
        self.look_again(&running, relay, &snapshot);
        if let Some(cut) = running.was_cut() {
            return Err(Unrenewed::Cut(cut));
        }
        let detail = json!({
            "request_id": running.request_id,
            "lease": running.lease().map(ToString::to_string),
            "service": running.service.name,
            "token": caller.token_id().to_string(),
            "expires": caller.expires(),
        });
        relay.audit().event("lease", detail);
        Ok(caller.expires())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_caller_is_told_the_id_itself() {
        let lease = LeaseId([7; 16]);
        assert_eq!(lease.told(), "BwcHBwcHBwcHBwcHBwcHBw");
        assert_eq!(LeaseId::read(&lease.told()), Some(lease));
        assert_ne!(LeaseId::random(), LeaseId::random());
        let shown = lease.to_string();
        assert!(shown.len() == 16 && !format!("{lease:?}").contains(&lease.told()));
        for bad in
            ["", "BwcHBwcHBwcHBwcHBwcHB", "BwcHBwcHBwcHBwcHBwcHBwc", "BwcHBwcHBwcHBwcHBwcHBx", shown.as_str()]
        {
            assert_eq!(LeaseId::read(bad), None, "{bad}");
        }
    }
}
