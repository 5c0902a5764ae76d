//! The TLS handshake of the public listener. Takes a connection, reads its `ClientHello`, and gives it with the configuration of the one
//! row of the protocol's table that it names: callers, agents' tunnels or joins. Each row has its own certificate, its own demands and its
//! own tickets; a hello that names two rows gets no certificate of either. Callers are asked for a certificate of theirs only at the hosts
//! that need one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use postern_wire::tls;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{Acceptor, ClientHello};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::eager::Eager;
use crate::relay::Relay;
use crate::tunnel;

/// Who speaks on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Callers,
    Agents,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Arrival {
    pub row: Row,
    pub stream: TlsStream<Eager<TcpStream>>,
}

/// Shakes hands until `deadline`; `None` where that came to nothing, which is told and counted here.
pub async fn shake(relay: &Relay, stream: TcpStream, peer: SocketAddr, deadline: Instant) -> Option<Arrival> {
    let hello = timeout_at(deadline, LazyConfigAcceptor::new(Acceptor::default(), Eager::new(stream))).await;
    let start = hello.map_err(io::Error::from).flatten().map_err(|e| failed(relay, peer, &e)).ok()?;
    let (row, config) = configuration(relay, &start.client_hello());
    if row == Row::Agents && !relay.admission().admits_agent(peer.ip(), true, Instant::now().into_std()) {
        relay.metrics().refused("agents");
        if relay.audit().take_or_count(peer.ip(), "agents-busy") {
            tracing::warn!(%peer, "an agent was refused: its address has too many at once");
        }
        return None;
    }
    let shaken = timeout_at(deadline, start.into_stream(config)).await.map_err(io::Error::from).flatten();
    if let (Row::Agents, Err(error)) = (row, &shaken)
        // What broke off or stood still says nothing of who it was.
        && error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()).is_some()
    {
        // As over QUIC, where the tunnel room finds out: who says to be an agent and proves nothing is in the audit log.
        tunnel::refused(relay, peer, &error.to_string(), false);
    }
    let stream = shaken.map_err(|e| failed(relay, peer, &e)).ok()?;
    Some(Arrival { row, stream })
}

fn configuration(relay: &Relay, hello: &ClientHello<'_>) -> (Row, Arc<ServerConfig>) {
    let mut names = hello.alpn().into_iter().flatten();
    let agents = relay.agents();
    // Only the first name is looked at: where another row's follows, no configuration has a certificate to show.
    match names.next() {
        Some(tls::ALPN_TUNNEL_TCP) => (Row::Agents, agents.tunnel()),
        Some(tls::ALPN_JOIN_TCP) => (Row::Agents, agents.join()),
        _ => {
            let snapshot = relay.snapshot();
            let asks = snapshot.routes.ask_for_certificate(&snapshot.settings, hello.server_name());
            let certificate = relay.certificate();
            (Row::Callers, if asks { certificate.asking() } else { certificate.config() })
        }
    }
}

/// What a token that is bound to this certificate says of it (RFC 8705, 3.1).
pub fn thumbprint(leaf: &CertificateDer<'_>) -> [u8; 32] {
    digest(&SHA256, leaf).as_ref().try_into().unwrap_or_default()
}

fn failed(relay: &Relay, peer: SocketAddr, error: &io::Error) {
    relay.metrics().refused("handshake");
    tracing::debug!(%peer, %error, "TLS handshake failed");
}
