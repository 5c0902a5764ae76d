//! One double: keeps one tunnel over QUIC, sends heartbeats, answers requests, and comes back when its relay goes, as a real agent does.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt, Full};
use postern_wire::body::{self, FramedBody};
use postern_wire::codec::{self, CONTROL_LIMIT, HEAD_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage, ServiceKind, ServiceOffer};
use postern_wire::head::{Fields, ResponseHead};
use postern_wire::link::{Code, Link, RecvStream, SendStream};
use quinn::Endpoint;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Board;
use super::enrol::Enrolled;
use super::pace::{Failure, Pace};
use crate::site::BODY;

/// Handshake and welcome, each.
const DIAL: Duration = Duration::from_secs(4);
/// As the real agent does: QUIC repeats its first packet after 1 s, and then after 3.
const ONCE_MORE: Duration = Duration::from_millis(1500);
/// A peer that takes nothing of an answer for so long is given up.
const IDLE: Duration = Duration::from_secs(10);
/// So long a tunnel lives before the next failure counts as the first.
const HEALTHY: Duration = postern_base::defaults::RECONNECT_HEALTHY;

/// One of many.
pub(super) struct Double {
    enrolled: Arc<Enrolled>,
    relay: SocketAddr,
    services: Vec<String>,
    board: Arc<Board>,
    stop: CancellationToken,
    /// The head of every answer.
    head: Bytes,
}

/// A tunnel that was welcomed.
struct Tunnel {
    link: Link,
    send: SendStream,
    recv: RecvStream,
    heartbeat: Duration,
}

/// How a tunnel ended.
enum End {
    /// The relay asked us to leave within this time; the tunnel still finishes what it has.
    Drains(Duration),
    Lost,
    Stopped,
}

/// Counts a usable tunnel until it is dropped.
struct Usable<'a>(&'a Board);

impl Drop for Usable<'_> {
    fn drop(&mut self) {
        self.0.left();
    }
}

impl Double {
    pub(super) fn new(
        enrolled: Arc<Enrolled>,
        relay: SocketAddr,
        services: Vec<String>,
        board: Arc<Board>,
        stop: CancellationToken,
    ) -> Self {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(BODY));
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let head = ResponseHead::Http { status: 200, fields: Fields::Map(&fields) };
        let head = codec::encoded(&head, HEAD_LIMIT).unwrap_or_default();
        Self { enrolled, relay, services, board, stop, head }
    }

    /// Until told to stop.
    pub(super) async fn live(self: Arc<Self>, endpoint: Endpoint) {
        let mut pace = Pace::new();
        let mut requests = JoinSet::new();
        while !self.stop.is_cancelled() {
            let since = Instant::now();
            let now = tokio::time::Instant::now;
            let wait = match self.dial(&endpoint).await {
                Ok(tunnel) => {
                    pace.back();
                    match self.serve(tunnel, &mut requests).await {
                        End::Stopped => return,
                        End::Drains(within) => {
                            pace.hurry(now());
                            within.mul_f64(rand::random())
                        }
                        End::Lost => {
                            if since.elapsed() >= HEALTHY {
                                pace.healthy();
                            }
                            pace.failed(Failure::Refused, now(), rand::random())
                        }
                    }
                }
                Err(failure) => pace.failed(failure, now(), rand::random()),
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<Tunnel, Failure> {
        let link = timeout(DIAL, self.connect(endpoint)).await.map_err(|_| Failure::Silent)??;
        match timeout(DIAL, self.greet(link)).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(_)) | Err(_) => Err(Failure::Refused),
        }
    }

    /// Tries once, and once more beside it where nothing comes back.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Link, Failure> {
        let mut first = pin!(self.attempt(endpoint));
        tokio::select! {
            done = &mut first => return done,
            () = sleep(ONCE_MORE) => {}
        }
        tokio::select! {
            done = first => done,
            done = self.attempt(endpoint) => done,
        }
    }

    async fn attempt(&self, endpoint: &Endpoint) -> Result<Link, Failure> {
        let connecting = endpoint.connect_with(self.enrolled.client.clone(), self.relay, "relay");
        match connecting.map_err(|_| Failure::Refused)?.await {
            Ok(connection) => Ok(Link::quic(connection)),
            Err(quinn::ConnectionError::TimedOut) => Err(Failure::Silent),
            Err(_) => Err(Failure::Refused),
        }
    }

    async fn greet(&self, link: Link) -> Result<Result<Tunnel, Failure>> {
        let (mut send, mut recv) = link.control().await?;
        let services = self.services.iter().map(|name| ServiceOffer {
            name: name.clone(),
            kind: ServiceKind::Http,
            healthy: true,
            wants_caller_token: false,
        });
        let hello = AgentMessage::Hello {
            minor: MINOR,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.enrolled.instance.to_string(),
            services: services.collect(),
        };
        send.message(&hello, CONTROL_LIMIT).await?;
        let welcome = recv.message(CONTROL_LIMIT).await?.context("no welcome")?;
        Ok(match codec::decode(&welcome)? {
            RelayMessage::Welcome { heartbeat_ms, .. } => {
                let heartbeat = Duration::from_millis(heartbeat_ms.max(500).into());
                Ok(Tunnel { link, send, recv, heartbeat })
            }
            RelayMessage::Refused { retry_after_ms: Some(wait), .. } => {
                Err(Failure::Asked(Duration::from_millis(wait.into())))
            }
            RelayMessage::Refused { retry_after_ms: None, .. }
            | RelayMessage::HeartbeatAck { .. }
            | RelayMessage::Renewed { .. }
            | RelayMessage::RenewRefused { .. }
            | RelayMessage::Draining { .. }
            | RelayMessage::Revoked
            | RelayMessage::Lease { .. }
            | RelayMessage::ChainHead { .. }
            | RelayMessage::Suspended { .. }
            | RelayMessage::RenewNow
            | RelayMessage::Time { .. }
            | RelayMessage::Probe { .. } => Err(Failure::Refused),
        })
    }

    /// Until the tunnel ends, or the relay asks to leave it: then what it still carries goes on in `requests`.
    async fn serve(self: &Arc<Self>, tunnel: Tunnel, requests: &mut JoinSet<()>) -> End {
        let Tunnel { link, mut send, mut recv, heartbeat } = tunnel;
        let accepting = requests.spawn(self.clone().accept(link.clone()));
        let mut beats = interval(heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut usable = None;
        let mut seq = 0;
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    seq += 1;
                    if send.message(&AgentMessage::Heartbeat { seq }, CONTROL_LIMIT).await.is_err() {
                        return End::Lost;
                    }
                }
                message = recv.message(CONTROL_LIMIT) => {
                    let Ok(Some(bytes)) = message else { return End::Lost };
                    match codec::decode(&bytes) {
                        Ok(RelayMessage::HeartbeatAck { .. }) => {
                            usable.get_or_insert_with(|| {
                                self.board.arrived();
                                Usable(&self.board)
                            });
                        }
                        Ok(RelayMessage::Draining { reconnect_after_ms }) => {
                            // The link lives on with the task that accepts, until the relay closes it.
                            requests.spawn(async move {
                                let _control = (send, recv);
                                link.closed().await;
                            });
                            return End::Drains(Duration::from_millis(reconnect_after_ms.into()));
                        }
                        Ok(_) => {}
                        Err(_) => return End::Lost,
                    }
                }
                () = self.stop.cancelled() => {
                    send.finish();
                    link.close(Code::DONE, "the agent says goodbye");
                    accepting.abort();
                    return End::Stopped;
                }
            }
        }
    }

    /// Answers every request that comes, until the link ends.
    async fn accept(self: Arc<Self>, link: Link) {
        let mut running = JoinSet::new();
        while let Ok((send, recv)) = link.accept().await {
            // One that breaks off is seen by its caller.
            let double = self.clone();
            running.spawn(async move { double.answer(send, recv).await });
            while running.try_join_next().is_some() {}
        }
    }

    async fn answer(&self, mut send: SendStream, mut recv: RecvStream) -> Result<()> {
        recv.message(HEAD_LIMIT).await?.context("no head")?;
        FramedBody::new(recv).collect().await?;
        let body = Full::new(Bytes::from_static(&[b'x'; BODY]));
        Ok(body::send(&mut send, self.head.clone(), body, Some(IDLE)).await?)
    }
}
