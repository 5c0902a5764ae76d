//! A tunnel's life: heartbeats and their answers, request streams, what the agent offers, goodbyes from either side. It says in a watch
//! how it stands: usable only once a heartbeat was answered, and no longer while an answer is late.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, RelayMessage};
use postern_wire::link::{Code, StreamError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::dial::{Tunnel, quic};
use super::permits::Permits;
use super::pulse::Pulse;
use super::view::Shown;
use crate::supervisor::Agent;
use crate::upstream::Upstreams;

mod condition;
mod probes;
mod renewal;
mod streams;

pub use condition::{Condition, Ended};
use probes::Probes;
use renewal::Renewing;
use streams::{accept, quiet};

/// A control message that cannot be handed over for this long meets a relay that takes nothing.
const SEND: Duration = Duration::from_secs(10);
/// After a close, what was sent last has this long to leave: three times the probe timeout of a path that may be dead, and twice what the TCP
/// link keeps its last bytes for.
const LINGER: Duration = Duration::from_secs(1);
/// A silence that is noticed later than this was slept through here.
const NOTICED: Duration = Duration::from_secs(1);

/// What the tunnel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    RelayDrains,
    /// We said goodbye; the answer to the heartbeat of this number shows that it was read.
    Leaving {
        farewell: u64,
        is_read: bool,
    },
}

/// What one turn of the loop saw.
enum Event {
    Message(RelayMessage),
    Gone(String),
    Beat,
    Late,
    Silent,
    Woke,
    Offers,
    Renew,
    Probed(AgentMessage),
    Leave,
    Idle,
    Cut,
}

pub(super) struct Life {
    agent: Arc<Agent>,
    tunnel: Tunnel,
    /// The requests that run on this tunnel.
    requests: TaskTracker,
    /// Takes the streams that the relay opens, apart from this loop, so that a request costs no turn of it.
    accepting: AbortOnDropHandle<StreamError>,
    permits: Arc<Permits>,
    condition: watch::Sender<Condition>,
    /// Another tunnel took this one's place.
    leave: CancellationToken,
    phase: Phase,
    shown: Shown,
    pulse: Pulse,
    renewing: Renewing,
    probes: Probes,
    wakes: watch::Receiver<u64>,
}

impl Life {
    pub(super) fn new(
        agent: Arc<Agent>,
        upstreams: Arc<Upstreams>,
        mut tunnel: Tunnel,
        tasks: &TaskTracker,
        condition: watch::Sender<Condition>,
        leave: CancellationToken,
    ) -> Self {
        let requests = TaskTracker::new();
        let permits = Arc::new(Permits::new());
        let audit = agent.audit.queue(&tunnel.relay);
        let accepting =
            accept(agent.clone(), upstreams, (tunnel.link.clone(), audit), requests.clone(), permits.clone());
        Self {
            accepting: AbortOnDropHandle::new(tasks.spawn(accepting)),
            pulse: Pulse::new(tunnel.heartbeat, Instant::now()),
            renewing: Renewing::new(&agent),
            probes: Probes::default(),
            wakes: agent.wakes.subscribe(),
            phase: Phase::Serving,
            shown: Shown::new(&agent, &tunnel.relay, &tunnel.link, std::mem::take(&mut tunnel.refused)),
            agent,
            tunnel,
            requests,
            permits,
            condition,
            leave,
        }
    }

    /// Lives until the end.
    pub(super) async fn run(mut self) {
        let ended = loop {
            let event = self.next().await;
            let Err(ended) = self.handle(event).await else { continue };
            break ended;
        };
        self.shown.set_usable(false);
        self.renewing.give_up(&self.agent, "the tunnel ended before the answer came");
        // Nobody may be left to hear it.
        self.condition.send_replace(Condition::Ended(ended));
        if self.tunnel.link.is_closed() {
            return;
        }
        self.tunnel.send.finish();
        // Requests that still run here see their streams end, and end with them.
        self.tunnel.link.close(Code::DONE, "the agent says goodbye");
        match &self.tunnel.endpoint {
            Some(endpoint) => drop(tokio::time::timeout(LINGER, endpoint.wait_idle()).await),
            None => tokio::time::sleep(LINGER).await,
        }
    }

    /// Waits for whatever comes next.
    async fn next(&mut self) -> Event {
        let now = Instant::now();
        let serving = self.phase == Phase::Serving;
        // Told once, and never of a tunnel that nothing new is to run on.
        let tells_late = serving && *self.condition.borrow() != Condition::Late;
        let late_at = self.pulse.late_at().filter(|_| tells_late);
        let leaving = matches!(self.phase, Phase::Leaving { .. });
        let is_read = matches!(self.phase, Phase::Leaving { is_read: true, .. });
        tokio::select! {
            ended = &mut self.accepting => Event::Gone(ended.map_or_else(|e| e.to_string(), |e| e.to_string())),
            message = self.tunnel.recv.message(CONTROL_LIMIT) => control_message(message),
            () = tokio::time::sleep_until(self.pulse.due()) => Event::Beat,
            () = tokio::time::sleep_until(late_at.unwrap_or(now)), if late_at.is_some() => Event::Late,
            () = tokio::time::sleep_until(self.pulse.gone_at()) => Event::Silent,
            Ok(()) = self.wakes.changed() => Event::Woke,
            Ok(()) = self.tunnel.offers.changed(), if serving => Event::Offers,
            () = tokio::time::sleep_until(self.renewing.at()), if serving => Event::Renew,
            probed = self.probes.next() => Event::Probed(probed),
            () = self.leave.cancelled(), if !leaving => Event::Leave,
            () = self.agent.shutdown.draining(), if !leaving => Event::Leave,
            () = quiet(&self.requests), if is_read => Event::Idle,
            () = self.agent.shutdown.cut() => Event::Cut,
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), Ended> {
        let now = Instant::now();
        match event {
            Event::Message(message) => self.obey(message).await,
            Event::Gone(reason) => Err(self.gone(&reason)),
            Event::Silent if now > self.pulse.gone_at() + NOTICED => {
                // Not the relay was silent: we did not look. It gets the time to answer now.
                self.pulse.woke(now);
                Ok(())
            }
            Event::Silent => Err(self.gone("the relay left the heartbeats unanswered")),
            Event::Woke => {
                self.pulse.woke(now);
                self.renewing.look_again(&self.agent);
                Ok(())
            }
            Event::Beat => {
                self.permits.beat(self.requests.len(), &self.tunnel.link);
                let seq = self.pulse.beat(now);
                self.say(&AgentMessage::Heartbeat { seq }).await
            }
            Event::Late => {
                self.late();
                Ok(())
            }
            Event::Offers => {
                let offers = self.tunnel.offers.borrow_and_update().to_vec();
                self.say(&AgentMessage::Services(offers)).await
            }
            Event::Renew => match self.renewing.ask(&self.agent).await {
                Some(asked) => self.say(&asked).await,
                None => Ok(()),
            },
            Event::Probed(probed) => self.say(&probed).await,
            Event::Leave => self.say_goodbye(now).await,
            Event::Idle if self.requests.is_empty() => Err(Ended::Well),
            Event::Idle => Ok(()),
            Event::Cut => Err(Ended::Well),
        }
    }

    async fn obey(&mut self, message: RelayMessage) -> Result<(), Ended> {
        match message {
            RelayMessage::HeartbeatAck { seq } => {
                if let Some(took) = self.pulse.answered(seq, Instant::now()) {
                    self.shown.answered(took);
                }
                if let Phase::Leaving { farewell, is_read } = &mut self.phase {
                    *is_read |= seq >= *farewell;
                    self.requests.close();
                } else if self.phase == Phase::Serving && !self.shown.is_usable() {
                    self.shown.set_usable(true);
                    self.condition.send_replace(Condition::Well);
                }
            }
            RelayMessage::Renewed { chain } => self.renewing.renewed(&self.agent, chain).await,
            RelayMessage::RenewRefused { reason, retry_after_ms } => {
                let retry_after = Duration::from_millis(u64::from(retry_after_ms));
                self.renewing.refused(&self.agent, &reason, retry_after);
            }
            RelayMessage::Draining { reconnect_after_ms } if self.phase == Phase::Serving => {
                tracing::info!(relay = %self.tunnel.relay, "the relay drains; opening the next tunnel");
                self.stop_serving(Phase::RelayDrains);
                let reconnect_after = Duration::from_millis(u64::from(reconnect_after_ms));
                self.condition.send_replace(Condition::RelayDrains { reconnect_after });
            }
            RelayMessage::RenewNow if self.phase == Phase::Serving => self.renewing.want(&self.agent),
            RelayMessage::Time { unix_ms } => {
                self.agent.clock.heard(unix_ms, self.tunnel.link.round_trip(), SystemTime::now());
                self.renewing.look_again(&self.agent);
            }
            RelayMessage::Probe { id, service } => self.probes.start(&self.agent, id, service),
            RelayMessage::Draining { .. } | RelayMessage::RenewNow => {}
            RelayMessage::Revoked => {
                tracing::error!(relay = %self.tunnel.relay, "this agent was removed: join again with a new invite (postern-agent join RELAY --force)");
                self.agent.failed("this agent was removed: join again with a new invite");
                return Err(Ended::Revoked);
            }
            RelayMessage::Lease { request_id, credential } => {
                self.agent.leases.renew(&request_id, credential);
            }
            RelayMessage::ChainHead { sequence, hash } => {
                let Agent { heads, audit, .. } = &*self.agent;
                heads.keep(audit, &self.tunnel.relay.to_string(), sequence, hash, std::time::Instant::now());
            }
            RelayMessage::Suspended { reason } => {
                self.agent.suspended_by(&self.tunnel.relay, &reason.escape_debug().to_string());
                return Err(Ended::Suspended);
            }
            RelayMessage::Welcome { .. } | RelayMessage::Refused { .. } => {
                self.tunnel.link.close(Code::PROTOCOL, "a second welcome");
                return Err(self.gone("the relay broke the protocol"));
            }
        }
        Ok(())
    }

    async fn say(&mut self, message: &AgentMessage) -> Result<(), Ended> {
        match tokio::time::timeout(SEND, self.tunnel.send.message(message, CONTROL_LIMIT)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.gone(&e.to_string())),
            Err(_) => Err(self.gone("the relay takes nothing")),
        }
    }

    /// Says why the tunnel ends, where that is news.
    fn gone(&self, reason: &str) -> Ended {
        match self.phase {
            Phase::Leaving { .. } => return Ended::Well,
            Phase::RelayDrains => return Ended::Drained,
            Phase::Serving => {}
        }
        tracing::warn!(relay = %self.tunnel.relay, link = %self.tunnel.link.kind(), %reason, "tunnel lost");
        self.agent.failed(&format!("tunnel to {} lost: {reason}", self.tunnel.relay));
        if self.pulse.is_late(Instant::now()) { Ended::Silent } else { Ended::Lost }
    }

    /// A request would perhaps not succeed now. Another tunnel is tried beside this one; and in case something on the way forgot the
    /// flow of this one, or its address is gone, QUIC goes on from a fresh socket, with everything that runs on it.
    fn late(&mut self) {
        self.shown.set_usable(false);
        self.pulse.hasten(Instant::now());
        tracing::debug!(relay = %self.tunnel.relay, link = %self.tunnel.link.kind(), "the relay owes an answer");
        self.condition.send_replace(Condition::Late);
        if let Some(endpoint) = &self.tunnel.endpoint {
            let address = quic::any(self.tunnel.link.peer_address());
            let moved = std::net::UdpSocket::bind(address).and_then(|socket| endpoint.rebind(socket));
            if let Err(error) = moved {
                tracing::debug!(%error, "no fresh socket");
            }
        }
    }

    fn stop_serving(&mut self, phase: Phase) {
        self.phase = phase;
        self.shown.set_usable(false);
        // Another tunnel may renew meanwhile.
        self.renewing.give_up(&self.agent, "the tunnel ended before the answer came");
    }

    /// Tells the relay to send nothing more, and asks it whether it has read that.
    async fn say_goodbye(&mut self, now: Instant) -> Result<(), Ended> {
        let farewell = self.pulse.beat(now);
        self.stop_serving(Phase::Leaving { farewell, is_read: false });
        self.say(&AgentMessage::Draining).await?;
        self.say(&AgentMessage::Heartbeat { seq: farewell }).await
    }
}

fn control_message(message: Result<Option<bytes::Bytes>, StreamError>) -> Event {
    match message {
        Ok(None) => Event::Gone("the relay said goodbye".to_owned()),
        Err(e) => Event::Gone(e.to_string()),
        Ok(Some(bytes)) => match codec::decode(&bytes) {
            Ok(message) => Event::Message(message),
            Err(e) => Event::Gone(format!("the relay broke the protocol: {e}")),
        },
    }
}
