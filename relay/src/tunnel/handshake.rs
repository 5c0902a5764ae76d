//! The relay's side of handshakes with agents: its identity, the QUIC endpoint, and a configuration for each of the TCP rows of the
//! protocol's table. Takes what enrolment signs and the roots in force, both of which change while it runs; refuses, over TCP, a tunnel without
//! a certificate that chains to one of those.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use postern_base::id::RelayName;
use postern_wire::link::quic;
use postern_wire::tls::{self, Identity, TlsError};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

use crate::enroll::{EnrollError, Enrollment};
use crate::relay::RelayError;

/// Streams that an agent may open: the control stream of a tunnel, or the one of a join.
const AGENT_STREAMS: u32 = 1;
/// Between two resets of connections that this process does not know: after a crash each tunnel needs one, and 2,000 want to be back soon.
const RESETS: Duration = Duration::from_millis(1);

/// What agents see in a handshake.
#[derive(Debug)]
pub struct AgentTls {
    name: RelayName,
    identity: Arc<Identity>,
    quic: quinn::ServerConfig,
    tunnel: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
    /// Lets a relay that was killed and came back tell agents that it does not know their tunnels any more, in a way they believe.
    reset: [u8; 32],
    /// Connection ids carry a checksum of it: only those of an earlier life of this relay are answered at all.
    ids: [u8; 32],
}

impl AgentTls {
    pub fn new(enrollment: &Enrollment, name: RelayName, now: SystemTime) -> Result<Self, RelayError> {
        enrollment.check_ca(now)?;
        let (chain, key) = enrollment.relay_identity(&name, now)?;
        let identity = Arc::new(Identity::new(chain, key)?);
        let config = |alpns: &[&[u8]]| tls::relay_config(identity.clone(), enrollment.roots().clone(), alpns);
        let crypto =
            quinn::crypto::rustls::QuicServerConfig::try_from(config(&[tls::ALPN_TUNNEL, tls::ALPN_JOIN])?)
                .map_err(|e| RelayError::Certificate(e.to_string()))?;
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        quic.transport_config(quic::transport(AGENT_STREAMS));
        Ok(Self {
            tunnel: Arc::new(config(&[tls::ALPN_TUNNEL_TCP])?),
            join: Arc::new(config(&[tls::ALPN_JOIN_TCP])?),
            reset: enrollment.derived(b"quic stateless reset"),
            ids: enrollment.derived(b"quic connection ids"),
            name,
            identity,
            quic,
        })
    }

    /// For `postern-tcp/1`.
    pub fn tunnel(&self) -> Arc<ServerConfig> {
        self.tunnel.clone()
    }

    /// For `postern-join-tcp/1`.
    pub fn join(&self) -> Arc<ServerConfig> {
        self.join.clone()
    }

    /// The one QUIC endpoint, driven by the runtime in whose context this is called.
    pub fn endpoint(&self, socket: UdpSocket) -> std::io::Result<quinn::Endpoint> {
        let mut config = quinn::EndpointConfig::default();
        let ids = self.ids.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        config
            .reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset)))
            .min_reset_interval(RESETS)
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        quinn::Endpoint::new(config, Some(self.quic.clone()), socket, Arc::new(quinn::TokioRuntime))
    }

    /// Whether the certificate in use has lived half its life.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let chain = self.identity.chain();
        let date = |of: fn(&CertificateDer<'_>) -> Result<i64, TlsError>| {
            let date = chain.first().and_then(|leaf| of(leaf).ok());
            date.and_then(|date| u64::try_from(date).ok()).unwrap_or(0)
        };
        let half = Duration::from_secs(date(tls::not_before).midpoint(date(tls::not_after)));
        SystemTime::UNIX_EPOCH + half <= now
    }

    /// A new key and certificate, shown in handshakes from now on.
    pub fn renew(&self, enrollment: &Enrollment, now: SystemTime) -> Result<(), EnrollError> {
        let (chain, key) = enrollment.relay_identity(&self.name, now)?;
        Ok(self.identity.replace(chain, key)?)
    }
}
