//! The agents' side of the relay: takes QUIC and TCP connections, gives registered tunnels and finished joins; refuses whatever did not
//! prove an enrolled agent. Past its handshake a connection is a link, and nothing here asks of which kind. The steps are in [`admit`];
//! what a tunnel says while it lives is in [`control`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::id::{AgentName, InstanceId};
use postern_wire::link::{self, Code, Link};
use postern_wire::tls;
use quinn::ConnectionError;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::enroll::{TWO_KEYS, tell_suspended};
use crate::metrics::ReasonLabels;
use crate::public::eager::Eager;
use crate::relay::Relay;
use crate::workers::{Counted, WorkerId};

pub mod admit;
pub mod authority;
pub mod control;
pub mod handshake;
pub mod heads;
mod offering;
pub mod probe;
pub mod registry;
pub mod seen;

/// A QUIC handshake takes two round trips; ten seconds cover the worst path and a Retry.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// QUIC's own error codes for TLS alerts (RFC 9001, 4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Serves one QUIC connection of an agent until it ends; `handshake` counts it among those under way.
pub async fn serve(relay: Arc<Relay>, incoming: quinn::Incoming, worker: WorkerId, handshake: Counted) {
    let address = incoming.remote_address();
    let failed = |error: &dyn std::fmt::Display| {
        relay.metrics().refused("handshake");
        tracing::debug!(%address, %error, "handshake failed");
    };
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(e) => return failed(&e),
    };
    let link = match tokio::time::timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Link::quic(connection),
        Ok(Err(e)) => {
            if let ConnectionError::TransportError(fault) = &e
                && ALERTS.contains(&u64::from(fault.code))
            {
                refused(&relay, address, &fault.reason, false);
            }
            return failed(&e);
        }
        Err(elapsed) => return failed(&elapsed),
    };
    drop(handshake);
    serve_link(&relay, link, worker).await;
}

/// Serves one TCP connection of an agent, whose handshake is done, until it ends.
pub async fn serve_tcp(
    relay: Arc<Relay>,
    stream: TlsStream<Eager<TcpStream>>,
    peer: SocketAddr,
    worker: WorkerId,
) {
    match tokio::time::timeout(HANDSHAKE, link::tcp::accepted(stream, peer)).await {
        Ok(Ok(link)) => serve_link(&relay, link, worker).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "no link over TCP"),
        Err(_) => tracing::debug!(%peer, "no link over TCP in time"),
    }
}

async fn serve_link(relay: &Arc<Relay>, link: Link, worker: WorkerId) {
    if [tls::ALPN_JOIN, tls::ALPN_JOIN_TCP].contains(&link.alpn().as_slice()) {
        let served =
            crate::enroll::serve_join(link, relay.enrollment().clone(), relay.joins(), relay.audit()).await;
        relay.metrics().joins.get_or_create(&ReasonLabels { reason: served.word }).inc();
        if let Some(who) = served.suspended {
            relay.cut_agent(&who);
        }
        return;
    }
    match admit::admit(relay, &link, SystemTime::now()).await {
        Ok(admitted) => control::run(relay, link, worker, admitted).await,
        Err(error) => {
            refused(relay, link.peer_address(), &error.to_string(), error.is_proved());
            link.close(Code::UNAUTHENTICATED, &error.to_string());
        }
    }
}

/// Puts an instance out that two hold.
async fn suspend_for_two(relay: &Arc<Relay>, agent: &AgentName, instance: &InstanceId, address: IpAddr) {
    let (enrollment, name, of) = (relay.enrollment().clone(), agent.clone(), instance.clone());
    let suspending =
        tokio::task::spawn_blocking(move || enrollment.suspend_for_two(&name, &of, SystemTime::now()));
    let suspended =
        suspending.await.map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string()));
    match suspended {
        Ok(who) => {
            tell_suspended(relay.audit(), &who, TWO_KEYS, address);
            relay.cut_agent(&who);
        }
        Err(error) => tracing::error!(%agent, %instance, %error, "two hold it, and it cannot be suspended"),
    }
}

/// Tells and audits that somebody who came as an agent was not let in. Who goes on coming is told by their number; the reason tells apart only
/// those who proved a certificate, since strangers would have a new one each time.
pub fn refused(relay: &Relay, address: SocketAddr, reason: &str, is_proved: bool) {
    let audit = relay.audit();
    let is_told = if is_proved {
        audit.take_news(address.ip(), "tunnel-refused", reason)
    } else {
        audit.take_or_count(address.ip(), "tunnel-refused")
    };
    if !is_told {
        return tracing::debug!(%address, %reason, "tunnel refused again");
    }
    tracing::warn!(%address, %reason, "tunnel refused");
    let address = address.ip().to_canonical();
    audit.event("tunnel-refused", serde_json::json!({ "address": address, "reason": reason }));
}
