//! The certificate authority of a stand's agents, for doubles of agents and relays: takes the state directory that `init` made; gives
//! identities under any name, also such as nobody would sign.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use postern_wire::tls::{self, Identity};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What a certificate is good for.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Agent,
    Relay,
}

#[derive(Debug)]
pub struct AgentsCa {
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificate and what is above it; the root last.
    above: Vec<CertificateDer<'static>>,
}

impl AgentsCa {
    /// The real one, in a relay's state directory.
    pub fn of(state: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(state.join("ca").join(name));
        let (issuing, root) = (read("issuing.pem")?, read("root.pem")?);
        let issuer = Issuer::from_ca_cert_pem(&issuing, KeyPair::from_pem(&read("issuing.key")?)?)?;
        let above = [issuing, root].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
        Ok(Self { issuer, above: above.into_iter().collect::<Result<_, _>>()? })
    }

    /// One that nobody trusts.
    pub fn foreign() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), above: vec![certificate] })
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.above[self.above.len() - 1].clone()
    }

    /// A certificate with this name alone, and its key.
    pub fn identity(&self, uri: &str, side: Side) -> Result<Arc<Identity>> {
        let mut params = CertificateParams::default();
        // Newer than any that was given before, and good for longer.
        let now = SystemTime::now();
        (params.not_before, params.not_after) = (now.into(), (now + Duration::from_hours(720)).into());
        params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match side {
            Side::Agent => ExtendedKeyUsagePurpose::ClientAuth,
            Side::Relay => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let chain = std::iter::once(leaf).chain(self.above.iter().cloned()).collect();
        Ok(Arc::new(Identity::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?))
    }

    /// What an invite to this authority's relay pins.
    pub fn pin(&self) -> Result<[u8; 32]> {
        Ok(tls::pin(&self.root())?)
    }
}
