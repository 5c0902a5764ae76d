//! TLS towards upstreams: takes a service's `tls` and reads the files it names; gives rustls' configuration; refuses certificates and keys
//! that cannot be used, each under its own key of agent.toml.

use std::path::Path;
use std::sync::Arc;

use postern_base::http_client::root_store;
use postern_wire::tls::provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig, RootCertStore, SupportedProtocolVersion, version};

use super::UpstreamError;
use crate::config::service::TlsVersion;
use crate::settings::Service;
use crate::settings::service::{Protocol, Tls};

const SINCE_12: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
const SINCE_13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// The configuration for a service whose upstream speaks TLS.
///
/// # Errors
/// A file that cannot be read or used.
pub(crate) fn config(service: &Service, tls: &Tls) -> Result<Arc<ClientConfig>, UpstreamError> {
    let refuse = |key: &str, reason: String| UpstreamError {
        service: service.name.clone(),
        key: format!("tls{key}"),
        reason,
    };
    let roots = match &tls.ca {
        // An own authority replaces the system's: nobody else may speak for this upstream.
        Some(path) => own_roots(path).map_err(|reason| refuse(".ca", reason))?,
        None => root_store(None).map_err(|e| refuse("", e.to_string()))?,
    };
    let versions = match tls.min_version {
        TlsVersion::V12 => SINCE_12,
        TlsVersion::V13 => SINCE_13,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| refuse("", e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert).map_err(|reason| refuse(".cert", reason))?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| refuse(".key", format!("{}: {e}", key.display())))?;
            let built = builder.with_client_auth_cert(chain, key);
            built.map_err(|e| refuse(".key", format!("it does not go with tls.cert: {e}")))?
        }
    };
    let alpn: &[u8] = if service.protocol == Protocol::Http2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

fn own_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|e| named(&e))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|e| named(&e))?;
    if found.is_empty() { Err(named(&"no certificate in it")) } else { Ok(found) }
}

/// What callers may read of a failed handshake: rustls' own words name the upstream where its certificate is for another name.
pub(super) fn shown(error: &rustls::Error) -> String {
    let is_for_another = matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    );
    if is_for_another {
        return "the certificate is for another name: set tls.server_name".to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_for_a_wrong_name_do_not_name_the_upstream() {
        let expected = rustls::pki_types::ServerName::try_from("billing.corp").unwrap();
        let presented = vec!["other.corp".to_owned()];
        let error = CertificateError::NotValidForNameContext { expected, presented };
        let text = shown(&rustls::Error::InvalidCertificate(error));
        assert!(!text.contains("corp") && text.contains("tls.server_name"), "{text}");
    }
}
