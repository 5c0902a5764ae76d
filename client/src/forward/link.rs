//! Takes signs that the relay is gone; says so once, tries until it is back, says that once. Requests do not wait for it: they try
//! the relay themselves and are told when it cannot be reached.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::output::Output;
use crate::relay_api::Relay;

/// How often an idle forward looks whether the relay is there, so that it can say when it is not.
const LOOK: Duration = Duration::from_secs(15);
/// The first wait for a relay that is gone; a restart is over in about this time.
const RETRY: Duration = Duration::from_secs(1);
/// The longest wait: an outage of hours must not cost a request a second.
const RETRY_CAP: Duration = Duration::from_secs(8);

/// What the requests of a forward know of the relay.
#[derive(Debug, Default)]
pub(crate) struct Link {
    changed: Notify,
}

impl Link {
    /// A request could not reach the relay.
    pub(crate) fn failed(&self) {
        self.changed.notify_one();
    }

    /// The next sign that it is gone.
    #[cfg(test)]
    pub(crate) async fn lost(&self) {
        self.changed.notified().await;
    }

    /// Runs as long as the forward does.
    pub(crate) async fn watch(&self, relay: &Relay, out: &Output) -> std::convert::Infallible {
        loop {
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
            // Twice: the first may only have found out that a pooled connection was closed.
            if relay.answers().await || relay.answers().await {
                continue;
            }
            let lost = Instant::now();
            let mut wait = RETRY;
            out.warn(&format!("relay lost, retrying in {} s ...", wait.as_secs()));
            loop {
                tokio::time::sleep(wait).await;
                if relay.answers().await {
                    break;
                }
                wait = (wait * 2).min(RETRY_CAP);
            }
            out.done(&format!("back after {:.1} s", lost.elapsed().as_secs_f64()));
        }
    }
}
