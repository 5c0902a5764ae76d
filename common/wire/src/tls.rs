//! Identities on the tunnel: which certificate each side shows, what each demands of the other, and the name a proved leaf bears.
//! TLS 1.3 only, no tickets, no resumption, no 0-RTT: every tunnel passes through these verifiers.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_base::id::TrustDomain;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme, version};

mod certificate;
mod verify;

#[cfg(test)]
mod tests;

pub use certificate::{
    epoch, fingerprint, hex, not_after, not_before, own_epoch, pin, pinned_root, public_key, serial,
    spiffe_id, successor,
};
pub use verify::Roots;
use verify::{AgentVerifier, RelayVerifier, Trust, store};

/// Tunnels between an enrolled agent and its relay.
pub const ALPN_TUNNEL: &[u8] = b"postern/1";
/// The same over TCP, where UDP is blocked.
pub const ALPN_TUNNEL_TCP: &[u8] = b"postern-tcp/1";
/// Enrolment: the agent has no certificate yet.
pub const ALPN_JOIN: &[u8] = b"postern-join/1";
pub const ALPN_JOIN_TCP: &[u8] = b"postern-join-tcp/1";

/// By how much clocks may be off: as much as tokens and certificates commonly forgive, and no more than a certificate that lasts minutes
/// can bear.
pub const SKEW: Duration = Duration::from_mins(5);

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("certificate: {0}")]
    Certificate(String),
    #[error("private key: {0}")]
    Key(String),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The one crypto provider of every Postern program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A chain and its key, exchangeable while connections run: new handshakes show the new one.
#[derive(Debug)]
pub struct Identity {
    current: ArcSwap<CertifiedKey>,
}

impl Identity {
    /// Refuses a key that does not belong to the leaf.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwap::from_pointee(certified(chain, key)?) })
    }

    /// Exchanges chain and key; on error the old ones stay.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.current.store(Arc::new(certified(chain, key)?));
        Ok(())
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().cert.clone()
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    let key = CertifiedKey::from_der(chain, key, &provider())?;
    key.keys_match()?;
    Ok(key)
}

/// Which row of the protocol's table an ALPN name belongs to: callers, tunnels or joins, over QUIC or TCP.
pub fn row(alpn: &[u8]) -> u8 {
    match alpn {
        ALPN_TUNNEL => 1,
        ALPN_JOIN => 2,
        ALPN_TUNNEL_TCP => 3,
        ALPN_JOIN_TCP => 4,
        _ => 0,
    }
}

impl ResolvesServerCert for Identity {
    /// No certificate, and so no handshake, for a `ClientHello` that wants to be two kinds of peer at once.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut rows = hello.alpn().into_iter().flatten().map(row);
        let first = rows.next();
        rows.all(|row| Some(row) == first).then(|| self.current.load_full())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The relay's side towards agents: chains to `roots` are verified, as these are at that time. Where `alpns` are tunnels alone one is
/// required; where they hold joins too, that is for the tunnel room to say.
pub fn relay_config(
    identity: Arc<Identity>,
    roots: Arc<Roots>,
    alpns: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mandatory = alpns.iter().all(|alpn| [ALPN_TUNNEL, ALPN_TUNNEL_TCP].contains(alpn));
    let verifier = AgentVerifier { roots, mandatory, provider: provider() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// The agent's side of a tunnel: shows `identity`, accepts only a relay of `domain` whose chain ends in one of `roots` and whose issuing CA is
/// of epoch `floor` or above. `alpn` is [`ALPN_TUNNEL`] or [`ALPN_TUNNEL_TCP`].
pub fn tunnel_config(
    identity: Arc<Identity>,
    roots: &[CertificateDer<'static>],
    domain: TrustDomain,
    floor: u64,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let trust = Trust::Roots { roots: store(roots)?, domain, floor };
    let mut config = client_builder(trust)?.with_client_cert_resolver(identity);
    harden(&mut config, alpn);
    Ok(config)
}

/// The agent's side of a recovery: as a tunnel's, but it shows no certificate, since its own has ended. `alpn` is [`ALPN_JOIN`] or
/// [`ALPN_JOIN_TCP`].
pub fn recover_config(
    roots: &[CertificateDer<'static>],
    domain: TrustDomain,
    floor: u64,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let trust = Trust::Roots { roots: store(roots)?, domain, floor };
    let mut config = client_builder(trust)?.with_no_client_auth();
    harden(&mut config, alpn);
    Ok(config)
}

/// The agent's side of a join: no certificate of its own; accepts a relay whose chain ends in the root with this pin. `alpn` is
/// [`ALPN_JOIN`] or [`ALPN_JOIN_TCP`].
pub fn join_config(pin: [u8; 32], alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = client_builder(Trust::Pin(pin))?.with_no_client_auth();
    harden(&mut config, alpn);
    Ok(config)
}

fn client_builder(
    trust: Trust,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(RelayVerifier { trust, provider: provider() })))
}

fn harden(config: &mut ClientConfig, alpn: &[u8]) {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
}
