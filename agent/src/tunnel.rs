//! Keeps one tunnel to one relay: dials, watches how the tunnel stands, and has the next one open and proved before the old one goes,
//! be it that the relay drains, that it owes an answer, or that QUIC is back where TCP had to do.

use std::sync::Arc;
use std::time::Duration;

use postern_base::defaults::RECONNECT_HEALTHY;
use postern_wire::link::LinkKind;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Transport;
use crate::settings::RelayAddress;
use crate::supervisor::Agent;
use crate::upstream::Upstreams;

pub mod clock;
pub mod control;
pub mod dial;
pub(crate) mod pace;
mod permits;
mod pulse;
pub mod view;
pub mod wake;

use control::{Condition, Ended, Life};
use dial::{Dialer, Tunnel, Want};
use pace::{Failure, Pace};

/// How soon a suspended agent asks again, less what `pace` adds.
pub(crate) const SUSPENDED_AGAIN: Duration =
    postern_wire::control::SUSPENDED_AGAIN.saturating_sub(pace::SPREAD);
/// An agent that was removed stays so until somebody acts.
const REMOVED_AGAIN: Duration = Duration::from_mins(1);
/// QUIC is tried this soon after TCP had to do, and after waking: a relay that restarts, or a network that is just coming up, is no
/// reason to stay on TCP. From then on every `tunnel.retry_quic`.
const QUIC_SOON: Duration = Duration::from_secs(10);
/// Tasks of tunnels that finish what they have, two of each: with more, a change to QUIC waits.
const OLD_TASKS: usize = 8;

/// Runs until the agent shuts down.
pub async fn keep(agent: Arc<Agent>, upstreams: Arc<Upstreams>, relay: RelayAddress) {
    let mut slot = Slot {
        dialer: Arc::new(Dialer::new(agent.clone(), relay)),
        wakes: agent.wakes.subscribe(),
        agent,
        upstreams,
        tasks: TaskTracker::new(),
        pace: Pace::new(),
        not_before: Instant::now(),
        quic_at: Instant::now(),
        last_kind: None,
    };
    slot.run().await;
    slot.tasks.close();
    slot.tasks.wait().await;
}

/// What keeps one tunnel.
struct Slot {
    agent: Arc<Agent>,
    upstreams: Arc<Upstreams>,
    dialer: Arc<Dialer>,
    wakes: watch::Receiver<u64>,
    /// Every tunnel's life, also of those that finish what they have while the next one is already open.
    tasks: TaskTracker,
    pace: Pace,
    /// The next dial waits until then.
    not_before: Instant,
    /// When QUIC is tried again.
    quic_at: Instant,
    last_kind: Option<LinkKind>,
}

/// The tunnel in use.
struct Held {
    kind: LinkKind,
    since: Instant,
    condition: watch::Receiver<Condition>,
    leave: CancellationToken,
}

impl Held {
    fn condition(&mut self) -> Condition {
        self.condition.borrow_and_update().clone()
    }

    /// Resolves when a heartbeat was answered, or the first one is late.
    async fn is_proved(&mut self) -> bool {
        let settled = self.condition.wait_for(|condition| *condition != Condition::New).await;
        settled.is_ok_and(|condition| *condition == Condition::Well)
    }
}

impl Slot {
    async fn run(&mut self) {
        let mut held = None;
        while let Some(want) = self.need(&mut held).await {
            let Some(tunnel) = self.open(want, &mut held).await else { continue };
            let mut next = self.start(tunnel);
            if next.is_proved().await {
                self.take(next, &mut held);
            } else {
                // It ends by itself; were it to come to life, what the relay sends on it would be served.
                next.leave.cancel();
                self.failed(want, Failure::Refused);
            }
        }
    }

    /// Waits until another tunnel is needed; `None` when the agent leaves.
    async fn need(&mut self, held: &mut Option<Held>) -> Option<Want> {
        loop {
            if self.agent.shutdown.is_draining() {
                return None;
            }
            let any = Want::Any { was_tcp: self.last_kind == Some(LinkKind::Tcp) };
            let Some(current) = held else { return Some(any) };
            match current.condition() {
                Condition::New | Condition::Well => {}
                Condition::Late => return Some(any),
                Condition::RelayDrains { reconnect_after } => {
                    let now = Instant::now();
                    self.pace.hurry(now);
                    self.not_before = now + reconnect_after.mul_f64(rand::random());
                    return Some(any);
                }
                Condition::Ended(ended) => {
                    self.ended(ended, current.since);
                    *held = None;
                    continue;
                }
            }
            let may_change = current.kind == LinkKind::Tcp
                && self.agent.settings.transport == Transport::Auto
                && self.tasks.len() <= OLD_TASKS;
            tokio::select! {
                changed = current.condition.changed() => if changed.is_err() {
                    // Its task ended without a word, by a panic.
                    *held = None;
                },
                () = tokio::time::sleep_until(self.quic_at), if may_change => return Some(Want::Quic),
                Ok(()) = self.wakes.changed() => self.quic_at = self.quic_at.min(Instant::now() + QUIC_SOON),
                () = self.agent.shutdown.draining() => return None,
            }
        }
    }

    fn ended(&mut self, ended: Ended, since: Instant) {
        let now = Instant::now();
        if since.elapsed() >= RECONNECT_HEALTHY {
            self.pace.healthy();
        }
        let how = match ended {
            Ended::Well | Ended::Lost => Failure::Refused,
            Ended::Silent => Failure::Silent,
            Ended::Revoked => Failure::Asked(REMOVED_AGAIN),
            Ended::Suspended => Failure::Asked(SUSPENDED_AGAIN),
            Ended::Drained => return self.ended_well(),
        };
        self.agent.metrics.reconnects.inc();
        self.not_before = now + self.pace.failed(how, now, rand::random());
    }

    /// The relay drained and is gone; it is expected back soon.
    fn ended_well(&mut self) {
        let now = Instant::now();
        self.pace.hurry(now);
        self.not_before = now + self.pace.failed(Failure::Silent, now, rand::random());
    }

    fn failed(&mut self, want: Want, how: Failure) {
        let now = Instant::now();
        if want == Want::Quic {
            // Half of the time to one and a half of it: agents that lost UDP together do not ask together.
            self.quic_at = now + self.agent.settings.retry_quic.mul_f64(0.5 + rand::random::<f64>());
            return;
        }
        self.agent.metrics.reconnects.inc();
        self.not_before = now + self.pace.failed(how, now, rand::random());
    }

    /// Dials until there is a tunnel. `None` when none is needed any more: the one held answers again, the agent leaves, or QUIC is not
    /// back.
    async fn open(&mut self, want: Want, held: &mut Option<Held>) -> Option<Tunnel> {
        let (shutdown, dialer) = (self.agent.shutdown.clone(), self.dialer.clone());
        loop {
            let start = if want == Want::Quic { Instant::now() } else { self.not_before };
            tokio::select! {
                () = tokio::time::sleep_until(start) => {}
                // Whoever slept does not wait on.
                _ = self.wakes.changed() => {}
                () = until(held.as_ref(), |condition| *condition == Condition::Ended(Ended::Drained)) => {
                    *held = None;
                    self.ended_well();
                    continue;
                }
                () = needless(want, held.as_ref()) => return None,
                () = shutdown.draining() => return None,
            }
            tokio::select! {
                () = self.agent.certified() => {}
                () = needless(want, held.as_ref()) => return None,
                () = shutdown.draining() => return None,
            }
            let dialled = tokio::select! {
                dialled = dialer.dial(want) => dialled,
                () = needless(want, held.as_ref()) => return None,
                () = shutdown.draining() => return None,
            };
            let (relay, error) = match dialled {
                Ok(tunnel) => return Some(tunnel),
                Err(error) => (dialer.relay(), error),
            };
            if want == Want::Quic {
                tracing::debug!(%relay, %error, "QUIC is not back");
                self.failed(want, error.failure());
                return None;
            }
            self.agent.failed(&error.to_string());
            if error.failure() == Failure::Refused {
                self.agent.doubts.notify_one();
            }
            if error.is_suspended() {
                self.agent.suspended_by(relay, &error.to_string());
            } else if self.pace.is_hurried(Instant::now()) {
                tracing::debug!(%relay, %error, "the relay is not back");
            } else if error.failure() == Failure::Silent {
                tracing::warn!(%relay, %error, "no tunnel: is the relay running, and is UDP or TCP to its port open?");
            } else {
                tracing::warn!(%relay, %error, "no tunnel");
            }
            self.failed(want, error.failure());
        }
    }

    fn start(&self, tunnel: Tunnel) -> Held {
        let (condition, watched) = watch::channel(Condition::New);
        let (kind, leave) = (tunnel.link.kind(), CancellationToken::new());
        let (agent, upstreams) = (self.agent.clone(), self.upstreams.clone());
        let life = Life::new(agent, upstreams, tunnel, &self.tasks, condition, leave.clone());
        self.tasks.spawn(life.run());
        Held { kind, since: Instant::now(), condition: watched, leave }
    }

    /// The new tunnel is proved: the old one may go.
    fn take(&mut self, next: Held, held: &mut Option<Held>) {
        let (now, relay) = (Instant::now(), self.dialer.relay());
        match (self.last_kind, next.kind) {
            (Some(LinkKind::Quic) | None, LinkKind::Tcp) => {
                tracing::info!(%relay, "this tunnel runs over TCP now: UDP does not get through");
            }
            (Some(LinkKind::Tcp), LinkKind::Quic) => {
                tracing::info!(%relay, "this tunnel runs over QUIC again");
            }
            (Some(LinkKind::Quic) | None, LinkKind::Quic) | (Some(LinkKind::Tcp), LinkKind::Tcp) => {}
        }
        self.last_kind = Some(next.kind);
        self.pace.back();
        self.quic_at =
            now + self.agent.settings.retry_quic.min(QUIC_SOON).mul_f64(0.5 + rand::random::<f64>());
        if let Some(old) = held.replace(next) {
            if old.since.elapsed() >= RECONNECT_HEALTHY {
                self.pace.healthy();
            }
            // Where the relay drains, it closes the tunnel when it has finished.
            if !matches!(*old.condition.borrow(), Condition::RelayDrains { .. }) {
                old.leave.cancel();
            }
        }
    }
}

/// Resolves when the reason for a dial has gone.
async fn needless(want: Want, held: Option<&Held>) {
    until(held, |condition| match want {
        Want::Any { .. } => *condition == Condition::Well,
        Want::Quic => *condition != Condition::Well,
    })
    .await;
}

/// Resolves when the tunnel held stands like that; never where there is none.
async fn until(held: Option<&Held>, is_so: impl FnMut(&Condition) -> bool) {
    let Some(held) = held else { return std::future::pending().await };
    if held.condition.clone().wait_for(is_so).await.is_err() {
        // Its task is gone, and will say nothing more.
        std::future::pending::<()>().await;
    }
}
