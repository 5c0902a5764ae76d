//! Takes connections of local programs; carries each to a TCP service on a stream of its own. While the relay is away, a new connection
//! waits a little; then, or when it is refused, it is reset, and the reason is told once, not once per connection.

use std::sync::Arc;
use std::time::Duration;

use postern_base::backoff::Backoff;
use tokio::time::Instant;

use super::Stream;
use super::guard::Refusal;
use super::link::Link;
use super::opening::BeganAsHttp;
use super::peer::Whose;
use super::told::Told;
use crate::channel::{Channel, ChannelError, Opener};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::splice::{Broken, splice};

/// How long a new connection waits for a relay that is away: a restart is over by then, and programs do not wait longer.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(1);

/// One TCP service, ready to be reached.
pub(crate) struct Tcp {
    opener: Opener,
    link: Arc<Link>,
    told: Told,
    /// Held while the relay is asked why it ended a connection: of many that end together one asks.
    asking: tokio::sync::Mutex<()>,
}

impl Tcp {
    pub(crate) fn new(opener: Opener, link: Arc<Link>, out: Output) -> Self {
        Self { opener, link, told: Told::new(out), asking: tokio::sync::Mutex::default() }
    }

    /// Carries one connection to its end; says whether it reached the service.
    pub(super) async fn carry(&self, local: &mut Stream, whose: Whose) -> bool {
        if whose != Whose::Own {
            // One that is nobody's any more was only closed early.
            if whose == Whose::Other {
                self.told.failure(&other_user());
            }
            local.reset();
            return false;
        }
        let Ok(channel) = self.open().await else {
            local.reset();
            return false;
        };
        self.splice(local, channel).await;
        true
    }

    /// A stream to the service; why there is none has been told.
    pub(super) async fn open(&self) -> Result<Channel, Exit> {
        match self.opened().await {
            Ok(channel) => {
                self.told.clear();
                Ok(channel)
            }
            Err(error) => {
                let is_over = self.opener.is_over(&error);
                let failure = self.opener.failure(error);
                let exit = failure.exit;
                if is_over {
                    self.link.end(failure);
                } else {
                    self.told.failure(&failure);
                }
                Err(exit)
            }
        }
    }

    pub(super) async fn splice(&self, local: &mut Stream, mut channel: Channel) {
        match splice(local, &mut channel.stream, &channel.early).await {
            Ok(()) => {}
            Err(Broken::Local(error)) if BeganAsHttp::is(&error) => {
                local.reset();
                let service = &self.opener.service;
                let message = format!("a connection to {service} was ended: {error}");
                let fix = format!(
                    "programs that speak HTTP to a TCP service reach it by: postern forward {service}"
                );
                self.told.failure(&Failure::new(Exit::Denied, message).fix(fix));
            }
            Err(error @ Broken::Local(_)) => tracing::debug!(%error, "a connection broke"),
            Err(error @ Broken::Far(_)) => {
                tracing::info!(%error, "a connection broke");
                local.reset();
                if channel.is_expired() {
                    self.told.failure(&expired(&self.opener));
                } else if let Ok(_one) = self.asking.try_lock()
                    && let Some(failure) = self.opener.why_ended().await
                {
                    self.told.failure(&failure);
                }
            }
        }
    }

    async fn opened(&self) -> Result<Channel, ChannelError> {
        let begin = Instant::now();
        let mut backoff = Backoff::new(RETRY, RETRY_CAP);
        let mut lost_tunnel = false;
        loop {
            let error = match self.opener.open().await {
                Ok(channel) => return Ok(channel),
                Err(error) => error,
            };
            if error.is_lost() {
                self.link.failed();
            }
            let wait = backoff.next(rand::random());
            // A dead tunnel may take longer than all patience to be found out; the next one is then known to live.
            let again = error.is_tunnel_lost() && !lost_tunnel;
            lost_tunnel |= again;
            if !again && (!error.may_pass() || begin.elapsed() + wait > PATIENCE) {
                return Err(error);
            }
            tracing::debug!(%error, "a connection waits");
            tokio::time::sleep(wait).await;
        }
    }
}

/// What is said of a connection from another user's program.
pub(super) fn other_user() -> Failure {
    let (_, words) = Refusal::OtherUser.words();
    Failure::new(Exit::Other, format!("a connection was refused. {words}"))
}

/// Why a stream was cut whose token is no longer good.
pub(crate) fn expired(opener: &Opener) -> Failure {
    let message = format!("a connection to {} was cut: the token that opened it has expired", opener.service);
    Failure::new(Exit::LoginNeeded, message).fix("connect again: that takes a new token")
}

#[cfg(test)]
#[path = "tcp/tests.rs"]
mod tests;
