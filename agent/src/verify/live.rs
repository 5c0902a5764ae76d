//! Live streams of verified callers: takes what was proved when one was opened, and the renewals that the relay passes on; ends when the
//! last good token has. A relay that renews with anything but the same caller's own fresh token renews nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_gate::principal::Principal;
use postern_wire::head::OwnedCredential;

use super::{Call, Refused, Verifier};
use crate::lease::Leases;
use crate::settings::verify::Verify;

/// How often the wall clock is asked: it may be set, and timers sleep while a machine does.
const LOOK: Duration = Duration::from_secs(30);

/// A stream that lives as long as its caller's tokens.
#[derive(Debug)]
pub struct Watched<'a> {
    pub verifier: &'a Verifier,
    pub leases: &'a Leases,
    pub verify: &'a Verify,
    pub request_id: &'a str,
    pub asked: Call<'a>,
    pub caller: Arc<Principal>,
}

impl Watched<'_> {
    /// Resolves when the caller's last token has expired.
    pub async fn expired(self) {
        let mut lease = self.leases.open(self.request_id);
        let mut expires = self.caller.expires_at();
        while let Ok(left) = expires.duration_since(SystemTime::now())
            && !left.is_zero()
        {
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => {}
                renewed = lease.renewed() => {
                    match self.judge(&renewed).await {
                        Ok(fresh) => expires = expires.max(fresh.expires_at()),
                        Err(error) => tracing::warn!(
                            request_id = %self.request_id.escape_debug(), service = %self.asked.service, %error,
                            "a renewal is not good here"
                        ),
                    }
                }
            }
        }
        tracing::info!(request_id = %self.request_id.escape_debug(), service = %self.asked.service, "a live stream outlasted its caller's token");
    }

    async fn judge(&self, renewed: &OwnedCredential) -> Result<Arc<Principal>, Refused> {
        let credential = renewed.borrowed();
        self.verifier.renew(self.verify, &self.asked, &self.caller, &credential, SystemTime::now()).await
    }
}
