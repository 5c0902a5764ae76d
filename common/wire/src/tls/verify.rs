//! Who is believed in a handshake. The relay's side takes agents under the roots in force, which change while it runs; the agent's side takes
//! relays of its trust domain that are not behind the newest authority it has seen. DNS names and the web's authorities play no part.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use postern_base::id::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::certificate::{epoch, not_after, not_before, pinned_root, spiffe_id};
use super::{SKEW, TlsError, provider};

/// The roots under which agents are believed, exchangeable while handshakes go on.
#[derive(Debug)]
pub struct Roots {
    current: ArcSwap<Arc<dyn ClientCertVerifier>>,
}

impl Roots {
    /// # Errors
    /// A root that is no certificate, or none at all.
    pub fn new(roots: &[CertificateDer<'static>]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(verifier(roots)?) }))
    }

    /// From now on these alone; on error the old ones stay.
    pub fn replace(&self, roots: &[CertificateDer<'static>]) -> Result<(), TlsError> {
        self.current.store(Arc::new(verifier(roots)?));
        Ok(())
    }

    /// That a chain, leaf first, was good at that time for whoever dials.
    pub fn verify(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), TlsError> {
        let (leaf, above) =
            chain.split_first().ok_or_else(|| TlsError::Certificate("there is none".to_owned()))?;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.current.load().verify_client_cert(leaf, above, UnixTime::since_unix_epoch(at))?;
        Ok(())
    }
}

fn verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store(roots)?), provider());
    verifier.build().map_err(|e| TlsError::Certificate(e.to_string()))
}

pub(super) fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

/// Accepts agents by chain; their names are for admission to judge.
#[derive(Debug)]
pub(super) struct AgentVerifier {
    pub(super) roots: Arc<Roots>,
    /// Whether a handshake without a certificate fails.
    pub(super) mandatory: bool,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: an agent has one certificate and shows it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.roots.current.load().verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, algorithms(&self.provider))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms(&self.provider).supported_schemes()
    }
}

fn algorithms(provider: &CryptoProvider) -> &WebPkiSupportedAlgorithms {
    &provider.signature_verification_algorithms
}

/// TLS 1.2 is never offered.
fn never() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::InvalidCertificate(CertificateError::BadSignature))
}

#[derive(Debug)]
pub(super) enum Trust {
    Roots {
        roots: RootCertStore,
        domain: TrustDomain,
        /// The highest epoch of an authority that this agent has seen: whoever shows an older one has its stolen key.
        floor: u64,
    },
    Pin([u8; 32]),
}

/// Accepts relays by chain, SPIFFE name and epoch.
#[derive(Debug)]
pub(super) struct RelayVerifier {
    pub(super) trust: Trust,
    pub(super) provider: Arc<CryptoProvider>,
}

impl RelayVerifier {
    fn chains(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            about(leaf, now)?,
            algorithms(&self.provider).all,
        )
    }
}

/// The time of the leaf's life that is nearest to now, as far as the clock may be off.
fn about(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
    let second = |date: Result<i64, TlsError>| {
        date.map(|second| u64::try_from(second).unwrap_or(0)).map_err(|e| refuse(&e.to_string()))
    };
    let (start, end) = (second(not_before(leaf))?, second(not_after(leaf))?);
    let near = now.as_secs().max(start).min(end);
    let is_near = near.abs_diff(now.as_secs()) <= SKEW.as_secs();
    Ok(if is_near { UnixTime::since_unix_epoch(Duration::from_secs(near)) } else { now })
}

fn refuse(why: &str) -> Error {
    Error::General(format!("the relay's certificate: {why}"))
}

impl ServerCertVerifier for RelayVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Roots { roots, .. } => self.chains(leaf, intermediates, roots, now)?,
            Trust::Pin(pin) => {
                let owned: Vec<_> = intermediates.iter().map(|c| c.clone().into_owned()).collect();
                let root = pinned_root(pin, &owned)
                    .ok_or_else(|| refuse("its chain does not end in the root that the invite names"))?;
                let root = store(std::slice::from_ref(root)).map_err(|e| refuse(&e.to_string()))?;
                self.chains(leaf, intermediates, &root, now)?;
            }
        }
        let SpiffeId::Relay { domain: found, .. } = spiffe_id(leaf).map_err(|e| refuse(&e.to_string()))?
        else {
            return Err(refuse("it belongs to an agent"));
        };
        let Trust::Roots { domain, floor, .. } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if *domain != found {
            return Err(refuse(&format!("it is a relay of {found}, not of {domain}")));
        }
        let shown = epoch(std::slice::from_ref(leaf));
        if shown < *floor {
            return Err(refuse(&format!(
                "its issuing CA has epoch {shown}, and this agent has seen epoch {floor}: either the key of a replaced CA is being misused, \
                 or the relay was restored from a backup older than its last `postern-relay ca rotate` (then rotate once more)"
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        never()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, algorithms(&self.provider))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms(&self.provider).supported_schemes()
    }
}
