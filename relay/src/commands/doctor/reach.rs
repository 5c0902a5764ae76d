//! The public address as callers and agents reach it: its name, a TLS handshake, and handshakes with the names of a join over UDP and TCP, in
//! which the root that agents pin must show. Nothing is asked over them; a join that says nothing stands in the audit log as refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use postern_base::console::checks::Check;
use postern_base::console::span;
use postern_base::http_client::root_store;
use postern_base::sync::lock;
use postern_wire::link::Code;
use postern_wire::tls;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::settings::{Settings, TlsSettings};

/// A connection and its handshake: whoever waits longer takes the address for dead.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From here on the public certificate's end is worth a word.
const SOON: u64 = 14 * 86_400;

const CALLERS: &str = "callers' way (TCP)";

/// The addresses of the relay's public name.
pub(super) async fn name(settings: &Settings) -> (Vec<Check>, Vec<SocketAddr>) {
    let (host, port) = (settings.url.host().trim_matches(['[', ']']), settings.url.port());
    let check = "name";
    if let Ok(ip) = host.parse::<IpAddr>() {
        return (vec![Check::good(check, format!("{ip}, an address"))], vec![SocketAddr::new(ip, port)]);
    }
    let fix = format!("have DNS give {host} this relay's public address");
    match timeout(HANDSHAKE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            let shown: Vec<_> = found.iter().map(|address| address.ip().to_string()).collect();
            if found.is_empty() {
                return (vec![Check::bad(check, format!("{host} has no address"), fix)], found);
            }
            (vec![Check::good(check, format!("{host} is {}", shown.join(", ")))], found)
        }
        Ok(Err(e)) => (vec![Check::bad(check, format!("{host}: {e}"), fix)], Vec::new()),
        Err(_) => (vec![Check::bad(check, format!("{host}: no answer from DNS"), fix)], Vec::new()),
    }
}

/// A TLS handshake as a caller makes it.
pub(super) async fn callers(settings: &Settings, addresses: &[SocketAddr]) -> Vec<Check> {
    if addresses.is_empty() {
        return vec![Check::skipped(CALLERS, "the name has no address")];
    }
    let seen = Arc::new(Watching::new(settings));
    let config = seen.clone().config();
    let config = match config {
        Ok(config) => Arc::new(config),
        Err(e) => return vec![Check::bad(CALLERS, e, "see the certificate files of this machine")],
    };
    let mut checks = Vec::new();
    for address in addresses {
        checks.push(match shake(settings, *address, config.clone()).await {
            Err(why) => Check::bad(CALLERS, format!("{address}: {why}"), listen_fix("TCP", settings)),
            Ok(chain) => seen.judged(settings, *address, &chain),
        });
    }
    checks
}

fn listen_fix(kind: &str, settings: &Settings) -> String {
    format!(
        "let {kind} port {} through to this machine (firewall, NAT, balancer), or correct `listen` or `url`",
        settings.url.port()
    )
}

async fn shake(
    settings: &Settings,
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let name = server_name(settings)?;
    let stream = timeout(HANDSHAKE, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
    let stream = timeout(HANDSHAKE, TlsConnector::from(config).connect(name, stream)).await;
    let stream = stream.map_err(|_| "no TLS handshake in time".to_owned())?.map_err(|e| e.to_string())?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(chain.iter().map(|one| one.clone().into_owned()).collect())
}

fn server_name(settings: &Settings) -> Result<ServerName<'static>, String> {
    let host = settings.url.host().trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).map_err(|e| e.to_string())
}

/// Handshakes as a joining agent makes them, by UDP and by TCP; `pins` are the roots that it may have pinned.
pub(super) async fn agents(settings: &Settings, addresses: &[SocketAddr], pins: &[[u8; 32]]) -> Vec<Check> {
    let (udp, tcp) = ("agents' way (UDP)", "agents' way (TCP)");
    let Some(pin) = pins.first().filter(|_| !addresses.is_empty()) else {
        let why = if addresses.is_empty() { "the name has no address" } else { "agents do not join here" };
        return vec![Check::skipped(udp, why), Check::skipped(tcp, why)];
    };
    let mut checks = Vec::new();
    for address in addresses {
        let over_udp = over_udp(settings, *address, *pin).await;
        let config = tls::join_config(*pin, tls::ALPN_JOIN_TCP).map_err(|e| e.to_string());
        let shaken = match config {
            Ok(config) => shake(settings, *address, Arc::new(config)).await.map(drop),
            Err(e) => Err(e),
        };
        checks.push(match over_udp {
            Ok(took) => {
                Check::good(udp, format!("{address}: QUIC in {} ms, our root shown", took.as_millis()))
            }
            Err(why) if shaken.is_ok() => {
                let fix = format!("{}; agents fall back to TCP meanwhile", listen_fix("UDP", settings));
                Check::warn(udp, format!("{address}: {why}"), fix)
            }
            Err(why) => Check::bad(udp, format!("{address}: {why}"), listen_fix("UDP", settings)),
        });
        checks.push(match shaken {
            Ok(()) => Check::good(tcp, format!("{address}: our root shown")),
            Err(why) => {
                let fix = "what stands before this relay must pass TLS through as it is: agents are told apart by ALPN";
                Check::bad(tcp, format!("{address}: {why}"), fix)
            }
        });
    }
    checks
}

async fn over_udp(settings: &Settings, address: SocketAddr, pin: [u8; 32]) -> Result<Duration, String> {
    let config = tls::join_config(pin, tls::ALPN_JOIN).map_err(|e| e.to_string())?;
    let config = QuicClientConfig::try_from(config).map_err(|e| e.to_string())?;
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(|e| e.to_string())?;
    let host = settings.url.host().trim_matches(['[', ']']);
    let began = tokio::time::Instant::now();
    let connecting = endpoint
        .connect_with(quinn::ClientConfig::new(Arc::new(config)), address, host)
        .map_err(|e| e.to_string())?;
    let connection = timeout(HANDSHAKE, connecting).await;
    let connection = connection.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
    let took = began.elapsed();
    connection.close(Code::DONE.0.into(), b"doctor");
    // The goodbye leaves; it need not arrive.
    let _ = timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
    Ok(took)
}

/// Takes any certificate whose key the other side has, and keeps what a caller would have said to it.
#[derive(Debug)]
struct Watching {
    verifier: Result<Arc<WebPkiServerVerifier>, String>,
    said: Mutex<Option<rustls::Error>>,
}

impl Watching {
    fn new(settings: &Settings) -> Self {
        // A self-signed certificate is given to callers, who trust it by --ca.
        let own = match &settings.tls {
            TlsSettings::SelfSigned { cert, .. } => std::fs::read(cert).ok(),
            TlsSettings::Files { .. } => None,
        };
        let verifier = root_store(own.as_deref()).map_err(|e| e.to_string()).and_then(|roots| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider())
                .build()
                .map_err(|e| e.to_string())
        });
        Self { verifier, said: Mutex::default() }
    }

    fn config(self: Arc<Self>) -> Result<ClientConfig, String> {
        self.verifier.as_ref().map_err(Clone::clone)?;
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(self)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn judged(&self, settings: &Settings, address: SocketAddr, chain: &[CertificateDer<'static>]) -> Check {
        let renew = "renew the public certificate; the relay takes up the new files by itself";
        let Some(leaf) = chain.first() else {
            return Check::bad(CALLERS, format!("{address}: no certificate"), renew);
        };
        let own = std::fs::read(settings.tls.cert()).ok();
        let own = own.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
        let now = postern_base::clock::seconds(SystemTime::now());
        let ends = tls::not_after(leaf).ok().and_then(|ends| u64::try_from(ends).ok()).unwrap_or(0);
        let left = span(ends.saturating_sub(now));
        let said = lock(&self.said).take();
        let reached = format!("{address}: TLS, certificate good for {left}");
        match said {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                let fix = "give callers its authority (postern --ca FILE), or use a certificate that everybody trusts";
                Check::warn(CALLERS, format!("{reached}, by no authority that this machine trusts"), fix)
            }
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let host = settings.url.host();
                let fix = format!("get a certificate for {host}, or correct `url`");
                Check::bad(CALLERS, format!("{address}: the certificate is not for {host}"), fix)
            }
            Some(error) => Check::bad(CALLERS, format!("{address}: {error}"), renew),
            None if own.as_ref().is_some_and(|own| own != leaf) => {
                let fix = "if something before the relay ends TLS, agents' TCP way and client certificates do not work through it: pass TLS through";
                Check::warn(CALLERS, format!("{reached}, but not the one of relay.toml"), fix)
            }
            None if ends.saturating_sub(now) < SOON => Check::warn(CALLERS, reached, renew),
            None => Check::good(CALLERS, reached),
        }
    }
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let web = self.verifier.as_ref().map_err(|e| rustls::Error::General(e.clone()))?;
        let said = web.verify_server_cert(leaf, intermediates, name, ocsp, now).err();
        *lock(&self.said) = said;
        // Nothing is sent over this connection: what it shows is all that is wanted.
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
