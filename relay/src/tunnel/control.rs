//! A tunnel's life after its welcome: heartbeats, changes of services, renewals, goodbyes; it ends when the agent leaves, is removed or
//! suspended, falls silent or breaks the protocol, and then the tunnel is taken out of the registry.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, RelayMessage, ServiceOffer};
use postern_wire::link::{Code, Link, RecvStream, SendStream, StreamError};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use super::admit::{Admitted, HEARTBEAT, OFFERS_LIMIT, assigned};
use super::offering::Offering;
use super::registry::{NewTunnel, Registered, Tunnel};
use super::{heads, suspend_for_two};
use crate::enroll::{Barred, EnrollError, Renewed, tell_unrecorded};
use crate::metrics::ReasonLabels;
use crate::relay::Relay;
use crate::workers::WorkerId;

/// An agent that missed this many heartbeats is wedged, whatever its transport says.
const SILENCE: Duration = HEARTBEAT.saturating_mul(4);
/// A heartbeat that comes later than this says that the path is bad or the agent stands still: requests take other tunnels meanwhile.
const LATE: Duration = HEARTBEAT.saturating_add(Duration::from_secs(2));
/// After this an agent whose renewal failed here asks again.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
const RENEW_ANEW: Duration = Duration::from_secs(1);

/// Messages of other rooms that wait for the control stream: a few batches of renewed leases.
const WORDS: usize = 64;
/// How long an agent that is put out is given to read why.
const GOODBYE: Duration = Duration::from_millis(200);

/// Why a tunnel ended.
enum End {
    Agent,
    Cut,
    Drained,
    Silent,
    Protocol(String),
    Lost(StreamError),
}

/// Runs a tunnel until it ends.
pub async fn run(relay: &Arc<Relay>, link: Link, worker: WorkerId, admitted: Admitted) {
    let Admitted { agent, instance, mut send, mut recv, services, minor, grounds } = admitted;
    let (words, mut waiting) = mpsc::channel(WORDS);
    let new = NewTunnel {
        agent: agent.clone(),
        instance: instance.clone(),
        link: link.clone(),
        worker,
        since: SystemTime::now(),
        grounds,
        offers: services.clone(),
        minor,
        words,
    };
    let registered = relay.registry().register(new, relay.current());
    heads::give(relay, registered.tunnel());
    tell_time(registered.tunnel());
    if relay.enrollment().is_behind(&registered.tunnel().grounds) {
        registered.tunnel().try_say(RelayMessage::RenewNow);
    }
    relay.enrollment().saw([&instance], SystemTime::now());
    relay.metrics().tunnels.inc();
    // Not all that it says: names that relay.toml does not know would make lines of any length.
    let snapshot = relay.snapshot();
    let assigned: Vec<_> =
        services.iter().filter(|offer| offer.is_assigned(&snapshot.settings, &agent)).collect();
    relay.audit().event(
        "tunnel-open",
        serde_json::json!({ "agent": agent, "instance": instance, "address": link.peer_address().ip().to_canonical(), "link": link.kind().to_string(), "services": assigned }),
    );
    drop(snapshot);
    // Between admission and registration the agent may have been put out, unseen by whoever cuts registered tunnels.
    let is_in = relay.enrollment().standing(&agent, &instance).is_ok();
    if !is_in || !relay.enrollment().holds(&registered.tunnel().grounds) {
        registered.tunnel().sever();
    }
    let cut = registered.tunnel().cut.clone();
    // Raced from outside: whatever the loop waits for, an agent cannot delay its own end or our shutdown.
    let end = tokio::select! {
        biased;
        () = cut.cancelled() => End::Cut,
        end = converse(relay, &link, &registered, (&mut send, &mut recv), &mut waiting) => end,
        () = relay.shutdown().cut() => End::Drained,
    };
    relay.enrollment().saw([&instance], SystemTime::now());
    let (code, reason) = match end {
        End::Agent => (Code::DONE, "the agent said goodbye".to_owned()),
        End::Cut => put_out(relay, registered.tunnel(), &mut send, minor).await,
        End::Drained => (Code::DRAINED, "the relay shut down".to_owned()),
        End::Silent => (Code::TIMEOUT, format!("no heartbeat within {} s", SILENCE.as_secs())),
        End::Protocol(what) => (Code::PROTOCOL, what),
        End::Lost(error) => (Code::DONE, error.to_string()),
    };
    drop(registered);
    relay.metrics().tunnels.dec();
    link.close(code, &reason);
    tracing::info!(%agent, %instance, %reason, "tunnel closed");
    relay.audit().event(
        "tunnel-closed",
        serde_json::json!({ "agent": agent, "instance": instance, "reason": reason }),
    );
}

/// Tells an agent why it is put out; gives how the tunnel ends.
async fn put_out(relay: &Relay, tunnel: &Tunnel, send: &mut SendStream, minor: u16) -> (Code, String) {
    let (goodbye, reason) = match relay.enrollment().standing(&tunnel.agent, &tunnel.instance) {
        Err(Barred::NotEnrolled(_) | Barred::Replaced(_) | Barred::Older(_) | Barred::Two(_)) => {
            (RelayMessage::Revoked, "the agent was removed".to_owned())
        }
        Err(Barred::Suspended { reason, .. }) => {
            let told = format!("the agent is suspended: {reason}");
            (RelayMessage::Suspended { reason }, told)
        }
        Ok(_) if !relay.enrollment().holds(&tunnel.grounds) => {
            return (Code::DONE, "the authority that alone vouched for it was replaced".to_owned());
        }
        // Resumed meanwhile: it may come back at once.
        Ok(_) => return (Code::DONE, "the agent was suspended for a moment".to_owned()),
    };
    if minor >= goodbye.since_minor() {
        let said = send.message(&goodbye, CONTROL_LIMIT);
        let _ = tokio::time::timeout(GOODBYE, said).await;
    }
    (Code::REVOKED, reason)
}

/// Tells an agent what time it is here, for it to see how far its own clock is off.
pub(super) fn tell_time(tunnel: &Tunnel) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    // Whoever is behind gets the next one.
    let _ = tunnel.try_say(RelayMessage::Time { unix_ms });
}

/// Reads and answers until the agent leaves, falls silent or breaks the protocol.
async fn converse(
    relay: &Arc<Relay>,
    link: &Link,
    registered: &Registered<'_>,
    (send, recv): (&mut SendStream, &mut RecvStream),
    words: &mut mpsc::Receiver<Box<RelayMessage>>,
) -> End {
    let mut draining = false;
    let mut offering = Offering::new(Instant::now());
    loop {
        if let Some(offers) = offering.take(Instant::now()) {
            offer(relay, registered, &offers);
        }
        let now = Instant::now();
        let due = offering.due(now);
        let said = tokio::select! {
            message = next_message(registered.tunnel(), recv) => {
                let message = match message {
                    Err(_) => return End::Silent,
                    Ok(Ok(None)) => return End::Agent,
                    Ok(Err(StreamError::Codec(e))) => return End::Protocol(e.to_string()),
                    Ok(Err(e)) => return End::Lost(e),
                    Ok(Ok(Some(bytes))) => match codec::decode(&bytes) {
                        Ok(message) => message,
                        Err(e) => return End::Protocol(e.to_string()),
                    },
                };
                answer(relay, registered, &mut offering, send, message).await
            }
            // The registered tunnel holds the sender.
            Some(word) = words.recv() => say(send, &word).await,
            lost = link.closed() => return End::Lost(lost),
            () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => Ok(()),
            // The agent said goodbye. It cannot know what has arrived here of its last answers; we do.
            () = registered.tunnel().emptied(), if registered.tunnel().is_retired() => return End::Agent,
            () = relay.shutdown().draining(), if !draining => {
                draining = true;
                say(send, &RelayMessage::Draining { reconnect_after_ms: 500 }).await
            }
        };
        if let Err(end) = said {
            return end;
        }
    }
}

/// The next message, or nothing within [`SILENCE`].
async fn next_message(
    tunnel: &Tunnel,
    recv: &mut RecvStream,
) -> Result<Result<Option<Bytes>, StreamError>, Elapsed> {
    if let Ok(message) = tokio::time::timeout(LATE, recv.message(CONTROL_LIMIT)).await {
        return Ok(message);
    }
    tunnel.late();
    tokio::time::timeout(SILENCE.saturating_sub(LATE), recv.message(CONTROL_LIMIT)).await
}

/// Sends one message; an agent that takes none for as long as it may be silent is wedged.
async fn say(send: &mut SendStream, message: &RelayMessage) -> Result<(), End> {
    match tokio::time::timeout(SILENCE, send.message(message, CONTROL_LIMIT)).await {
        Ok(written) => written.map_err(End::Lost),
        Err(_) => Err(End::Silent),
    }
}

async fn answer(
    relay: &Arc<Relay>,
    registered: &Registered<'_>,
    offering: &mut Offering,
    send: &mut SendStream,
    message: AgentMessage,
) -> Result<(), End> {
    let tunnel = registered.tunnel();
    let reply = match message {
        AgentMessage::Heartbeat { seq } => {
            // The agent heard our welcome, or it would not be sending this.
            if tunnel.proved() {
                relay.arrived();
            }
            RelayMessage::HeartbeatAck { seq }
        }
        AgentMessage::Services(offers) if offers.len() <= OFFERS_LIMIT => {
            offering.change(offers);
            return Ok(());
        }
        AgentMessage::Services(_) => return Err(End::Protocol("too many services".to_owned())),
        AgentMessage::Renew { csr } => renew(relay, registered, csr).await,
        AgentMessage::Draining => {
            tunnel.retire();
            return Ok(());
        }
        AgentMessage::Probed { id, reached, detail, took_us } => {
            relay.probes().answered(tunnel, id, reached, &detail, took_us);
            return Ok(());
        }
        AgentMessage::Hello { .. } => return Err(End::Protocol("a second hello".to_owned())),
    };
    say(send, &reply).await
}

/// Takes up what the agent offers from now on.
fn offer(relay: &Relay, registered: &Registered<'_>, offers: &[ServiceOffer]) {
    let tunnel = registered.tunnel();
    // Who was put out in this moment is cut in the next one.
    let Ok(enrolled) = relay.enrollment().standing(&tunnel.agent, &tunnel.instance) else { return };
    let (services, refused) = assigned(&relay.snapshot(), &tunnel.agent, &enrolled, offers);
    if let Some(first) = refused.first() {
        tracing::warn!(agent = %tunnel.agent, count = refused.len(), reason = %first.reason, "services refused; the reason is the first one's");
    }
    registered.offer(services);
}

async fn renew(relay: &Arc<Relay>, registered: &Registered<'_>, csr: Vec<u8>) -> RelayMessage {
    let tunnel = registered.tunnel();
    let (enrollment, asking) = (relay.enrollment().clone(), tunnel.clone());
    // The database syncs to disk: not on a worker.
    let renewed = tokio::task::spawn_blocking(move || {
        let who = (&asking.agent, &asking.instance);
        enrollment.renew(who, &asking.grounds, &csr, SystemTime::now())
    });
    let renewed = renewed.await;
    let address = tunnel.link.peer_address().ip().to_canonical();
    let counted = |reason| relay.metrics().renewals.get_or_create(&ReasonLabels { reason }).inc();
    let refused = |reason: String, again: Duration| {
        counted("refused");
        // An agent that asks in a loop fills no log.
        if relay.audit().take_news(address, "renewal-refused", &format!("{}: {reason}", tunnel.instance)) {
            tracing::warn!(agent = %tunnel.agent, %reason, "renewal refused");
            relay.audit().event(
                "renewal-refused",
                serde_json::json!({ "agent": tunnel.agent, "instance": tunnel.instance, "reason": reason, "address": address }),
            );
        }
        let retry_after_ms = u32::try_from(again.as_millis()).unwrap_or(u32::MAX);
        RelayMessage::RenewRefused { reason, retry_after_ms }
    };
    match renewed {
        Ok(Ok(Renewed { chain, is_unrecorded })) => {
            counted("renewed");
            tracing::info!(agent = %tunnel.agent, instance = %tunnel.instance, "certificate renewed");
            relay.audit().event(
                "certificate-renewed",
                serde_json::json!({ "agent": tunnel.agent, "instance": tunnel.instance }),
            );
            if is_unrecorded {
                tell_unrecorded(relay.audit(), &tunnel.agent, &tunnel.instance, address);
            }
            RelayMessage::Renewed { chain: chain.into_iter().map(|c| c.to_vec()).collect() }
        }
        // It is to come back with its newest certificate, and may renew then.
        Ok(Err(e @ EnrollError::Barred(Barred::Replaced(_)))) => refused(e.to_string(), RENEW_ANEW),
        Ok(Err(e @ EnrollError::TooOften(wait))) => refused(e.to_string(), wait.max(RENEW_ANEW)),
        Ok(Err(e @ EnrollError::Barred(Barred::Two(_)))) => {
            suspend_for_two(relay, &tunnel.agent, &tunnel.instance, address).await;
            refused(e.to_string(), RENEW_AGAIN)
        }
        Ok(Err(e)) => refused(e.to_string(), RENEW_AGAIN),
        Err(e) => refused(e.to_string(), RENEW_AGAIN),
    }
}
