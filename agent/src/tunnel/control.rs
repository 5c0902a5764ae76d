//! A tunnel's life: heartbeats and their answers, request streams, renewal at half-life, goodbyes from either side. The tunnel counts as
//! usable only once a heartbeat was answered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, RelayMessage};
use postern_wire::link::{Code, Link, StreamError};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::dial::Tunnel;
use crate::identity::Renewal;
use crate::request;
use crate::supervisor::{Agent, Usable};
use crate::upstream::Upstreams;

/// A relay that leaves this many heartbeats unanswered is wedged, whatever its transport says.
const UNANSWERED: u32 = 4;
/// How soon a refused renewal is tried again where the relay says nothing else.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
/// After the goodbye was answered, streams that the relay opened before it may still be on their way.
const LAST_STREAMS: Duration = Duration::from_millis(100);

/// How a tunnel ended.
#[derive(Debug)]
pub enum Ended {
    /// The relay drains; what runs on this tunnel goes on in the background.
    RelayDrains {
        reconnect_after: Duration,
    },
    /// We shut down, and everything that ran is finished or cut.
    Leaving,
    Revoked,
    Lost(String),
}

/// What one turn of the loop saw.
enum Event {
    Message(RelayMessage),
    Gone(String),
    Beat,
    Renew,
    Leave,
}

/// Serves a tunnel until it ends; `tasks` owns what outlives this call, above all a tunnel whose relay drains.
pub async fn serve(
    agent: &Arc<Agent>,
    upstreams: &Arc<Upstreams>,
    tunnel: Tunnel,
    tasks: &TaskTracker,
) -> Ended {
    let mut life = Life::new(agent.clone(), upstreams.clone(), tunnel, tasks);
    loop {
        let event = life.next().await;
        match life.handle(event).await {
            None => {}
            Some(Ended::RelayDrains { reconnect_after }) => {
                tasks.spawn(life.finish());
                return Ended::RelayDrains { reconnect_after };
            }
            Some(ended) => {
                // Requests that still run here see their streams end.
                life.tunnel.link.close(Code::DONE, "the agent gave this tunnel up");
                return ended;
            }
        }
    }
}

struct Life {
    agent: Arc<Agent>,
    tunnel: Tunnel,
    /// The requests that run on this tunnel.
    requests: TaskTracker,
    /// Takes the streams that the relay opens, apart from this loop, so that a request costs no turn of it.
    accepting: AbortOnDropHandle<StreamError>,
    usable: Option<Usable>,
    beats: tokio::time::Interval,
    seq: u64,
    answered: Instant,
    renew_at: Instant,
    /// Asked for and not yet answered; no other tunnel asks meanwhile.
    renewal: Option<(Renewal, OwnedMutexGuard<()>)>,
}

impl Life {
    fn new(agent: Arc<Agent>, upstreams: Arc<Upstreams>, tunnel: Tunnel, tasks: &TaskTracker) -> Self {
        let mut beats = tokio::time::interval(tunnel.heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let renew_at = Instant::now() + agent.identity.renew_in(SystemTime::now());
        let requests = TaskTracker::new();
        let accepting = accept(agent.clone(), upstreams, tunnel.link.clone(), requests.clone());
        let accepting = AbortOnDropHandle::new(tasks.spawn(accepting));
        let answered = Instant::now();
        Self {
            agent,
            tunnel,
            requests,
            accepting,
            usable: None,
            beats,
            seq: 0,
            answered,
            renew_at,
            renewal: None,
        }
    }

    /// Waits for whatever comes next.
    async fn next(&mut self) -> Event {
        let silence = self.answered + self.tunnel.heartbeat * UNANSWERED;
        tokio::select! {
            ended = &mut self.accepting => Event::Gone(ended.map_or_else(|e| e.to_string(), |e| e.to_string())),
            message = self.tunnel.recv.message(CONTROL_LIMIT) => control_message(message),
            _ = self.beats.tick() => Event::Beat,
            () = tokio::time::sleep_until(silence) => Event::Gone("the relay left the heartbeats unanswered".to_owned()),
            () = tokio::time::sleep_until(self.renew_at), if self.renewal.is_none() => Event::Renew,
            () = self.agent.shutdown.draining() => Event::Leave,
        }
    }

    async fn handle(&mut self, event: Event) -> Option<Ended> {
        let sent = match event {
            Event::Gone(reason) => return Some(Ended::Lost(reason)),
            Event::Beat => {
                self.seq += 1;
                self.tunnel.send.message(&AgentMessage::Heartbeat { seq: self.seq }, CONTROL_LIMIT).await
            }
            Event::Renew => self.ask_for_renewal().await,
            Event::Leave => {
                self.say_goodbye().await;
                return Some(Ended::Leaving);
            }
            Event::Message(RelayMessage::Renewed { chain }) => {
                self.renewed(chain).await;
                return None;
            }
            Event::Message(message) => return self.obey(message),
        };
        sent.err().map(|e| Ended::Lost(e.to_string()))
    }

    fn obey(&mut self, message: RelayMessage) -> Option<Ended> {
        match message {
            RelayMessage::HeartbeatAck { .. } => {
                self.answered = Instant::now();
                if self.usable.is_none() {
                    self.usable = Some(self.agent.usable());
                }
                None
            }
            RelayMessage::RenewRefused { reason, retry_after_ms } => {
                tracing::error!(reason = %reason.escape_debug(), "the certificate was not renewed; trying again");
                self.renewal = None;
                self.renew_at = Instant::now()
                    + Duration::from_millis(u64::from(retry_after_ms)).max(Duration::from_secs(1));
                None
            }
            RelayMessage::Draining { reconnect_after_ms } => Some(Ended::RelayDrains {
                reconnect_after: Duration::from_millis(u64::from(reconnect_after_ms)),
            }),
            RelayMessage::Revoked => Some(Ended::Revoked),
            RelayMessage::Welcome { .. } | RelayMessage::Refused { .. } | RelayMessage::Renewed { .. } => {
                self.tunnel.link.close(Code::PROTOCOL, "a second welcome");
                Some(Ended::Lost("the relay broke the protocol".to_owned()))
            }
        }
    }

    /// Asks over this tunnel unless another one is doing so; then looks again a little later.
    async fn ask_for_renewal(&mut self) -> Result<(), StreamError> {
        let due = self.agent.identity.renew_in(SystemTime::now());
        let (true, Ok(only)) = (due.is_zero(), self.agent.renewing.clone().try_lock_owned()) else {
            self.renew_at = Instant::now() + due.max(Duration::from_secs(1));
            return Ok(());
        };
        let renewal = match self.agent.identity.renewal() {
            Ok(renewal) => renewal,
            Err(e) => {
                tracing::error!(error = %e, "no certificate request could be made");
                self.renew_at = Instant::now() + RENEW_AGAIN;
                return Ok(());
            }
        };
        let asked = AgentMessage::Renew { csr: renewal.csr().to_vec() };
        self.renewal = Some((renewal, only));
        self.tunnel.send.message(&asked, CONTROL_LIMIT).await
    }

    async fn renewed(&mut self, chain: Vec<Vec<u8>>) {
        let Some((renewal, _only)) = self.renewal.take() else { return };
        let agent = self.agent.clone();
        // It syncs to disk: not where requests are served.
        let kept = tokio::task::spawn_blocking(move || agent.identity.accept(renewal, chain)).await;
        let Ok(kept) = kept else { return };
        match kept {
            Ok(()) => tracing::info!("certificate renewed"),
            Err(e) => tracing::error!(error = %e, "the renewed certificate cannot be used; trying again"),
        }
        let due = self.agent.identity.renew_in(SystemTime::now());
        self.renew_at = Instant::now() + due.max(Duration::from_secs(1));
    }

    /// Tells the relay to send nothing more, then finishes what runs.
    async fn say_goodbye(&mut self) {
        self.usable = None;
        let farewell = async {
            self.tunnel.send.message(&AgentMessage::Draining, CONTROL_LIMIT).await?;
            self.seq += 1;
            self.tunnel.send.message(&AgentMessage::Heartbeat { seq: self.seq }, CONTROL_LIMIT).await
        };
        let told = farewell.await.is_ok();
        let finished = async {
            // The answer to a heartbeat sent after the goodbye proves that the relay has read the goodbye.
            let mut answered = !told;
            while !answered {
                answered = match control_message(self.tunnel.recv.message(CONTROL_LIMIT).await) {
                    Event::Message(RelayMessage::HeartbeatAck { seq }) => seq == self.seq,
                    Event::Message(_) => false,
                    Event::Gone(_) | Event::Beat | Event::Renew | Event::Leave => true,
                };
            }
            self.requests.close();
            loop {
                self.requests.wait().await;
                tokio::time::sleep(LAST_STREAMS).await;
                if self.requests.is_empty() {
                    return;
                }
            }
        };
        let cut = self.agent.shutdown.clone();
        tokio::select! {
            () = finished => {}
            _ = &mut self.accepting => {}
            () = cut.cut() => {}
        }
        self.close().await;
    }

    /// Finishes what runs on a tunnel whose relay drains, until the relay closes it.
    async fn finish(mut self) {
        self.usable = None;
        // Another tunnel may renew meanwhile.
        self.renewal = None;
        let cut = self.agent.shutdown.clone();
        loop {
            tokio::select! {
                _ = &mut self.accepting => break,
                () = cut.cut() => break,
                _ = self.beats.tick() => {
                    self.seq += 1;
                    let beat = AgentMessage::Heartbeat { seq: self.seq };
                    if self.tunnel.send.message(&beat, CONTROL_LIMIT).await.is_err() {
                        break;
                    }
                }
            }
        }
        self.close().await;
    }

    /// Requests that still run see their streams end, and end with them.
    async fn close(&mut self) {
        self.tunnel.send.finish();
        self.tunnel.link.close(Code::DONE, "the agent says goodbye");
        // Bounded: three times the probe timeout of a path that may be dead.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tunnel.endpoint.wait_idle()).await;
    }
}

/// Serves every stream that the relay opens, until the link ends.
async fn accept(
    agent: Arc<Agent>,
    upstreams: Arc<Upstreams>,
    link: Link,
    requests: TaskTracker,
) -> StreamError {
    loop {
        match link.accept().await {
            Ok((send, recv)) => {
                let (agent, upstreams) = (agent.clone(), upstreams.clone());
                requests.spawn(async move { request::serve(&agent, &upstreams, send, recv).await });
            }
            Err(e) => return e,
        }
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
