//! The public certificate for a relay without a public CA: takes the relay's host; gives certificate and key; clients that are given
//! the certificate as their CA trust exactly this one key, since it is no authority over anything else.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postern_base::file::{self, Access};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use zeroize::Zeroizing;

/// Clients hold this very certificate, so every new one means handing it out again: long, but not for ever.
const LIFE: Duration = Duration::from_hours(825 * 24);
/// Clients' clocks may lag by this much.
const SKEW: Duration = Duration::from_mins(5);

/// Makes both files unless both are there; gives what it made.
pub(super) fn make(cert: &Path, key: &Path, host: &str, now: SystemTime) -> anyhow::Result<Vec<PathBuf>> {
    if cert.exists() && key.exists() {
        return Ok(Vec::new());
    }
    let mut names = vec![host.trim_matches(['[', ']']).to_owned()];
    for own in ["localhost", "127.0.0.1", "::1"] {
        if !names.iter().any(|name| name == own) {
            names.push(own.to_owned());
        }
    }
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| anyhow::anyhow!("no random numbers to be had from the system"))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    let pair = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
    let mut params = CertificateParams::new(names)?;
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LIFE).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Postern relay");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&*pair)?;
    if let Some(dir) = key.parent() {
        file::create_private_dir(dir)?;
    }
    file::write_atomic(key, Zeroizing::new(pair.serialize_pem()).as_bytes(), Access::Private)?;
    file::write_atomic(cert, certificate.pem().as_bytes(), Access::Public)?;
    Ok(vec![cert.to_owned(), key.to_owned()])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postern_wire::tls::provider;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    #[test]
    fn it_is_its_own_trust_anchor_for_its_names_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("tls/cert.pem"), dir.path().join("tls/key.pem"));
        assert_eq!(make(&cert, &key, "relay.example.com", SystemTime::now()).unwrap().len(), 2);
        assert!(make(&cert, &key, "relay.example.com", SystemTime::now()).unwrap().is_empty());
        let der = CertificateDer::from_pem_file(&cert).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der.clone()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let verify = |name: &'static str| {
            verifier.verify_server_cert(&der, &[], &ServerName::try_from(name).unwrap(), &[], UnixTime::now())
        };
        for good in ["relay.example.com", "localhost", "127.0.0.1", "::1"] {
            verify(good).unwrap();
        }
        assert!(verify("other.example.com").is_err());
    }
}
