//! The agents' side of the relay: takes QUIC connections, gives registered tunnels and finished joins; refuses whatever did not prove
//! an enrolled agent. The steps are in [`admit`]; what a tunnel says while it lives is in [`control`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_wire::link::{Code, Link};
use postern_wire::tls;

use crate::metrics::ReasonLabels;
use crate::relay::Relay;
use crate::workers::{Counted, WorkerId};

pub mod admit;
pub mod control;
pub mod registry;

/// A QUIC handshake takes two round trips; ten seconds cover the worst path and a Retry.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection of an agent until it ends; `handshake` counts it among those under way.
pub async fn serve(relay: Arc<Relay>, incoming: quinn::Incoming, worker: WorkerId, handshake: Counted) {
    let address = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(e) => return tracing::debug!(%address, error = %e, "handshake refused"),
    };
    let link = match tokio::time::timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Link::new(connection),
        Ok(Err(e)) => return tracing::debug!(%address, error = %e, "handshake failed"),
        Err(_) => return tracing::debug!(%address, "handshake timed out"),
    };
    drop(handshake);
    if link.alpn() == tls::ALPN_JOIN {
        let reason =
            crate::enroll::serve_join(link, relay.enrollment().clone(), relay.joins(), relay.audit()).await;
        relay.metrics().joins.get_or_create(&ReasonLabels { reason }).inc();
        return;
    }
    match admit::admit(&relay, &link, SystemTime::now()).await {
        Ok(admitted) => control::run(&relay, link, worker, admitted).await,
        Err(refused) => {
            tracing::warn!(%address, reason = %refused, "tunnel refused");
            relay.audit().event(
                "tunnel-refused",
                serde_json::json!({ "address": address.ip(), "reason": refused.to_string() }),
            );
            link.close(Code::UNAUTHENTICATED, &refused.to_string());
        }
    }
}
