//! What certificates are asked for with: the next key and its request, and for a recovery the key of the certificate that ended. No key is
//! ever shown or logged.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use zeroize::Zeroizing;

use super::{IdentityError, stored};

/// The next key, and the request for a certificate that it signed.
pub struct Renewal {
    csr: Vec<u8>,
    key: Zeroizing<KeyPair>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewal(…)")
    }
}

impl Renewal {
    /// With a key that is nowhere on disk yet.
    pub(crate) fn new() -> Result<Self, IdentityError> {
        Self::of(stored::new_key()?)
    }

    pub(super) fn of(key: Zeroizing<KeyPair>) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        // The relay takes the key alone and writes every name itself.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "postern-agent");
        let csr = params.serialize_request(&*key)?.der().to_vec();
        Ok(Self { csr, key })
    }

    /// PKCS #10, DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    pub(crate) fn key(&self) -> &KeyPair {
        &self.key
    }
}

/// What a recovery proves itself with: one of these two keys is the newest that the relay knows.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) next: Renewal,
    /// Whether the next key was shown to a relay before, as by a renewal whose answer was lost.
    pub(crate) is_asked: bool,
    pub(crate) own: OwnKey,
}

/// The key of the certificate that ended.
pub(crate) struct OwnKey(pub(crate) Zeroizing<KeyPair>);

impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnKey(…)")
    }
}
