//! Authorities of an operator's own: takes names; gives roots, issuing CAs and leaves as PEM, and writes them as an operator's tools would.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A CA and its key.
pub(super) struct Authority {
    pub(super) pem: String,
    pub(super) key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    pub(super) fn root(name: &str) -> Result<Self> {
        let (params, key) = (params(name), KeyPair::generate()?);
        Ok(Self { pem: params.self_signed(&key)?.pem(), key, params })
    }

    pub(super) fn issuing(&self, name: &str) -> Result<Self> {
        let (params, key) = (params(name), KeyPair::generate()?);
        let issuer = Issuer::from_params(&self.params, &self.key);
        Ok(Self { pem: params.signed_by(&key, &issuer)?.pem(), key, params })
    }

    /// Certificate and key for one SPIFFE name, PEM.
    pub(super) fn leaf(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> Result<(String, String)> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_params(&self.params, &self.key);
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// In one rename, readable by its owner alone.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write;
    let aside = path.with_extension("aside");
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
    file.write_all(text.as_bytes())?;
    Ok(fs::rename(&aside, path)?)
}
