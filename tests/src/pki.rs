//! Takes a directory; gives a certificate authority of its own, server certificates for loopback and for any names, and client
//! certificates, as PEM files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The test authority. Whoever trusts `ca_file` trusts everything it signs.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// Where a certificate and its key lie.
#[derive(Debug, Clone)]
pub struct CertFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl CertFiles {
    /// The certificate and its key, as rustls wants them.
    pub fn read(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        Ok((CertificateDer::from_pem_file(&self.cert)?, PrivateKeyDer::from_pem_file(&self.key)?))
    }
}

impl Pki {
    pub fn create(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        // A name of its own: another stand's certificate is then told from a broken one.
        let name = format!("Postern test authority {:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(dir.join("ca.pem"), certificate.pem())?;
        Ok(Self {
            dir: dir.to_owned(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority's own certificate, for `--ca`, `ca = …` and curl.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A server certificate for loopback and `names`, written as NAME.pem and NAME.key; called again it replaces them.
    pub fn server(&self, name: &str, names: &[&str]) -> Result<CertFiles> {
        let all = ["127.0.0.1", "localhost"].iter().chain(names).map(|n| (*n).to_owned());
        self.signed(name, CertificateParams::new(all.collect::<Vec<_>>())?)
    }

    /// A client certificate whose subject is `CN=NAME`, written as NAME.pem and NAME.key.
    pub fn client(&self, name: &str) -> Result<CertFiles> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(name, params)
    }

    fn signed(&self, name: &str, mut params: CertificateParams) -> Result<CertFiles> {
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = CertFiles {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        write_private(&files.key, &key.serialize_pem())?;
        std::fs::write(&files.cert, certificate.pem())?;
        Ok(files)
    }

    /// This authority and nothing else.
    pub fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        Ok(roots)
    }
}

/// Keys are for their owner alone: the relay refuses others.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
