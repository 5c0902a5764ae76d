//! Identities on the tunnel: which certificate each side shows, what each demands of the other, and the name a proved leaf bears.
//! TLS 1.3 only, no tickets, no resumption, no 0-RTT: every tunnel passes through these verifiers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use postern_base::id::{SpiffeId, TrustDomain};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    version,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Tunnels between an enrolled agent and its relay.
pub const ALPN_TUNNEL: &[u8] = b"postern/1";
/// The same over TCP, where UDP is blocked.
pub const ALPN_TUNNEL_TCP: &[u8] = b"postern-tcp/1";
/// Enrolment: the agent has no certificate yet.
pub const ALPN_JOIN: &[u8] = b"postern-join/1";
pub const ALPN_JOIN_TCP: &[u8] = b"postern-join-tcp/1";

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

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| TlsError::Certificate(e.to_string()))?;
    Ok(parsed)
}

/// The SPIFFE id of a leaf: it must have exactly one URI name and nothing else that could pass for an identity.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
    let leaf = parse(leaf)?;
    let names = leaf.subject_alternative_name().map_err(|e| TlsError::Certificate(e.to_string()))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    match names {
        [GeneralName::URI(uri)] => {
            uri.parse().map_err(|e: postern_base::id::IdError| TlsError::Certificate(e.to_string()))
        }
        _ => Err(TlsError::Certificate("needs exactly one name, a SPIFFE URI".to_owned())),
    }
}

/// When a certificate stops being valid, in seconds since the epoch.
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

/// When a certificate starts being valid, in seconds since the epoch.
pub fn not_before(certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
    Ok(parse(certificate)?.validity().not_before.timestamp())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what an invite pins.
pub fn pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TlsError> {
    let parsed = parse(certificate)?;
    let hash = digest::digest(&digest::SHA256, parsed.public_key().raw);
    hash.as_ref().try_into().map_err(|_| TlsError::Certificate("no public key".to_owned()))
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

/// The relay's side towards agents: chains to `root` are verified. Where `alpns` are tunnels alone one is required; where they hold joins
/// too, that is for the tunnel room to say.
pub fn relay_config(
    identity: Arc<Identity>,
    root: CertificateDer<'static>,
    alpns: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let tunnels_alone = alpns.iter().all(|alpn| [ALPN_TUNNEL, ALPN_TUNNEL_TCP].contains(alpn));
    let verifier = if tunnels_alone { verifier } else { verifier.allow_unauthenticated() };
    let verifier = verifier.build().map_err(|e| TlsError::Certificate(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// The agent's side of a tunnel: shows `identity`, accepts only a relay of `domain` whose chain ends in `root`. `alpn` is
/// [`ALPN_TUNNEL`] or [`ALPN_TUNNEL_TCP`].
pub fn tunnel_config(
    identity: Arc<Identity>,
    root: &CertificateDer<'static>,
    domain: TrustDomain,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let verifier = RelayVerifier { trust: Trust::Root { roots, domain }, provider: provider() };
    let mut config = client_builder(verifier)?.with_client_cert_resolver(identity);
    harden(&mut config, alpn);
    Ok(config)
}

/// The agent's side of a join: no certificate of its own; accepts a relay whose chain ends in the root with this pin. `alpn` is
/// [`ALPN_JOIN`] or [`ALPN_JOIN_TCP`].
pub fn join_config(pin: [u8; 32], alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let verifier = RelayVerifier { trust: Trust::Pin(pin), provider: provider() };
    let mut config = client_builder(verifier)?.with_no_client_auth();
    harden(&mut config, alpn);
    Ok(config)
}

fn client_builder(
    verifier: RelayVerifier,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn harden(config: &mut ClientConfig, alpn: &[u8]) {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
}

/// The root with this pin in a chain that the peer presented.
pub fn pinned_root<'a>(
    pin: &[u8; 32],
    chain: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    chain.iter().find(|certificate| self::pin(certificate).is_ok_and(|found| found == *pin))
}

#[derive(Debug)]
enum Trust {
    Root { roots: RootCertStore, domain: TrustDomain },
    Pin([u8; 32]),
}

/// Accepts relays by chain and SPIFFE name; DNS names and the web's certificate authorities play no part.
#[derive(Debug)]
struct RelayVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for RelayVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refuse = |why: &str| rustls::Error::General(format!("the relay's certificate: {why}"));
        let pinned;
        let roots = match &self.trust {
            Trust::Root { roots, .. } => roots,
            Trust::Pin(pin) => {
                let owned: Vec<_> = intermediates.iter().map(|c| c.clone().into_owned()).collect();
                let root = pinned_root(pin, &owned)
                    .ok_or_else(|| refuse("its chain does not end in the root that the invite names"))?;
                let mut store = RootCertStore::empty();
                store.add(root.clone())?;
                pinned = store;
                &pinned
            }
        };
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            now,
            algorithms,
        )?;
        match spiffe_id(leaf).map_err(|e| refuse(&e.to_string()))? {
            SpiffeId::Relay { domain: found, .. } => match &self.trust {
                Trust::Root { domain, .. } if *domain != found => {
                    Err(refuse(&format!("it is a relay of {found}, not of {domain}")))
                }
                Trust::Root { .. } | Trust::Pin(_) => Ok(ServerCertVerified::assertion()),
            },
            SpiffeId::Agent { .. } => Err(refuse("it belongs to an agent")),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // TLS 1.2 is never offered.
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
