//! Two ends of a tunnel in one process: HTTP/2 over TLS as between relay and agent, over memory instead of a network.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use postern_wire::link::{Link, RecvStream, SendStream, tcp};
use postern_wire::tls::{self, ALPN_TUNNEL_TCP, Identity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Sent and not yet read: more than any input.
const PIPE: usize = 1024 * 1024;

pub struct Pair {
    relay: Link,
    agent: Link,
}

impl Pair {
    pub async fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let identity = |id: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
            let leaf = params.signed_by(&key, &ca).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            Arc::new(Identity::new(vec![leaf.der().clone(), ca.der().clone()], key).unwrap())
        };
        let root = ca.der().clone();
        let relay = identity("spiffe://example.com/relay/relay");
        let agent = identity("spiffe://example.com/agent/dc1/one");
        let server = tls::relay_config(
            relay,
            tls::Roots::new(std::slice::from_ref(&root)).unwrap(),
            &[ALPN_TUNNEL_TCP],
        )
        .unwrap();
        let client =
            tls::tunnel_config(agent, &[root], "example.com".parse().unwrap(), 0, ALPN_TUNNEL_TCP).unwrap();
        let (relay_end, agent_end) = tokio::io::duplex(PIPE);
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let accepted = async {
            let stream = TlsAcceptor::from(Arc::new(server)).accept(relay_end).await.unwrap();
            tcp::accepted(stream, peer).await.unwrap()
        };
        let dialled = async {
            let name = "relay".try_into().unwrap();
            let stream = TlsConnector::from(Arc::new(client)).connect(name, agent_end).await.unwrap();
            tcp::dialled(stream, peer).await.unwrap()
        };
        let (relay, agent) = tokio::join!(accepted, dialled);
        Self { relay, agent }
    }

    /// A stream that the relay opened, from its end to the agent's; the other direction lives as long.
    pub async fn stream(&self) -> (SendStream, RecvStream, (RecvStream, SendStream)) {
        let (opened, accepted) = tokio::join!(self.relay.open(), self.agent.accept());
        let ((send, back), (far_back, recv)) = (opened.unwrap(), accepted.unwrap());
        (send, recv, (back, far_back))
    }
}
