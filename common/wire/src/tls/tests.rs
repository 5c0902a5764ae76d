//! Certificates as authorities of ours make them, and as thieves would.

use std::time::SystemTime;

use postern_base::id::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName, UnixTime};

use super::*;

/// A CA with its key; who signs it says whose it is.
struct Authority {
    certificate: CertificateDer<'static>,
    params: CertificateParams,
    key: KeyPair,
}

fn params(name: &str, epoch: Option<&str>, depth: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(epoch) = epoch {
        let number = DnValue::PrintableString(epoch.try_into().unwrap());
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), number);
    }
    params.is_ca = IsCa::Ca(depth.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Authority {
    fn root(name: &str, epoch: Option<&str>) -> Self {
        let (params, key) = (params(name, epoch, Some(2)), KeyPair::generate().unwrap());
        Self { certificate: params.self_signed(&key).unwrap().into(), params, key }
    }

    fn issuing(&self, epoch: Option<&str>) -> Self {
        let (params, key) = (params("issuing", epoch, Some(0)), KeyPair::generate().unwrap());
        Self { certificate: self.certify(&params, &key), params, key }
    }

    fn certify(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap();
        params.signed_by(key, &issuer).unwrap().into()
    }

    fn cross(&self, next: &Self, depth: Option<u8>) -> CertificateDer<'static> {
        let mut params = next.params.clone();
        params.is_ca = IsCa::Ca(depth.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
        self.certify(&params, &next.key)
    }

    fn leaf(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(SerialNumber::from_slice(&[0x0f, 0xab]));
        let key = KeyPair::generate().unwrap();
        (self.certify(&params, &key), key)
    }

    fn relay(&self) -> CertificateDer<'static> {
        self.leaf("spiffe://example.com/relay/r1", ExtendedKeyUsagePurpose::ServerAuth).0
    }
}

fn believes(
    roots: &[&Authority],
    floor: u64,
    chain: &[&CertificateDer<'static>],
) -> Result<(), rustls::Error> {
    let roots: Vec<_> = roots.iter().map(|root| root.certificate.clone()).collect();
    let trust = Trust::Roots { roots: store(&roots).unwrap(), domain: "example.com".parse().unwrap(), floor };
    let verifier = RelayVerifier { trust, provider: provider() };
    let above: Vec<_> = chain[1..].iter().map(|one| (*one).clone()).collect();
    let name = ServerName::try_from("relay.example.com").unwrap();
    verifier.verify_server_cert(chain[0], &above, &name, &[], UnixTime::now()).map(drop)
}

#[test]
fn certificates_say_who_and_which() {
    let issuing = Authority::root("root", None).issuing(Some("7"));
    let (leaf, key) = issuing.leaf("spiffe://example.com/agent/dc1/i1", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(matches!(spiffe_id(&leaf).unwrap(), SpiffeId::Agent { .. }));
    assert_eq!(serial(&leaf).unwrap(), "0fab");
    assert_eq!(public_key(&leaf).unwrap(), rcgen::PublicKeyData::subject_public_key_info(&key));
    assert_eq!(fingerprint(&public_key(&leaf).unwrap()), pin(&leaf).unwrap());
    assert_eq!((epoch(&[leaf]), own_epoch(&issuing.certificate)), (7, 7));
    for none in [None, Some("x"), Some("-1"), Some("18446744073709551616")] {
        let issuing = Authority::root("root", None).issuing(none);
        assert_eq!(epoch(&[issuing.relay()]), 0, "{none:?}");
    }
    assert_eq!(epoch(&[]), 0);
    assert!(serial(&vec![1, 2].into()).is_err());
}

#[test]
fn a_relay_behind_the_floor_is_refused_whatever_it_adds_to_its_chain() {
    let root = Authority::root("root", None);
    let (old, new) = (root.issuing(None), root.issuing(Some("1")));
    believes(&[&root], 1, &[&new.relay(), &new.certificate]).unwrap();
    believes(&[&root], 0, &[&old.relay(), &old.certificate]).unwrap();
    let stolen = old.relay();
    for chain in [
        vec![&stolen, &old.certificate],
        vec![&stolen, &new.certificate, &old.certificate],
        vec![&stolen, &old.certificate, &new.certificate, &root.certificate],
        vec![&stolen, &new.certificate],
    ] {
        let refused = believes(&[&root], 1, &chain).unwrap_err().to_string();
        assert!(refused.contains("epoch 0") || refused.contains("UnknownIssuer"), "{refused}");
    }
    // The old key under the new name: the signature is not the new authority's.
    let mut forger = root.issuing(Some("1"));
    forger.key = old.key;
    assert!(believes(&[&root], 1, &[&forger.relay(), &new.certificate]).is_err());
    assert!(believes(&[&root], 1, &[&forger.relay(), &new.certificate, &old.certificate]).is_err());
}

#[test]
fn roots_follow_each_other_by_a_cross_certificate_alone() {
    let (old, new) = (Authority::root("root", None), Authority::root("root", Some("3")));
    let issuing = new.issuing(Some("3"));
    let cross = old.cross(&new, Some(1));
    let leaf = issuing.relay();
    let chain = [leaf.clone(), issuing.certificate.clone(), cross.clone(), new.certificate.clone()];
    assert_eq!(successor(&old.certificate, &chain), Some(new.certificate.clone()));
    assert_eq!(successor(&new.certificate, &chain), None, "it is there already");
    believes(&[&old], 3, &[&leaf, &issuing.certificate, &cross, &new.certificate, &old.certificate]).unwrap();
    believes(&[&new], 3, &[&leaf, &issuing.certificate, &cross, &new.certificate, &old.certificate]).unwrap();
    believes(&[&old, &new], 3, &[&leaf, &issuing.certificate, &cross]).unwrap();

    assert_eq!(
        successor(&old.certificate, std::slice::from_ref(&new.certificate)),
        None,
        "nobody vouches for it"
    );
    assert_eq!(successor(&old.certificate, std::slice::from_ref(&cross)), None, "the root itself is missing");
    let stranger = Authority::root("root", None);
    let foreign = stranger.cross(&new, Some(1));
    assert_eq!(successor(&old.certificate, &[foreign, new.certificate.clone()]), None, "another root's word");
    for shallow in [Some(0), None] {
        let shallow = old.cross(&new, shallow);
        assert_eq!(successor(&old.certificate, &[shallow, new.certificate.clone()]), None);
    }
    // Back to the root before: a thief of its key has the old cross certificate of nothing.
    let back = new.cross(&old, Some(1));
    assert_eq!(successor(&new.certificate, &[back, old.certificate.clone()]), None, "epochs only rise");
    // Whoever holds an issuing key makes itself a root with that key, under that name.
    let issuing = old.issuing(Some("9"));
    let mut params = issuing.params.clone();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(2));
    let own: CertificateDer<'static> = params.self_signed(&issuing.key).unwrap().into();
    assert_eq!(successor(&old.certificate, &[issuing.certificate, own]), None, "an issuing CA is no cross");
}

#[test]
fn the_roots_in_force_change_under_running_verifiers() {
    let (old, new) = (Authority::root("old", None), Authority::root("new", None));
    let roots = Roots::new(std::slice::from_ref(&old.certificate)).unwrap();
    let agent = |root: &Authority| {
        let issuing = root.issuing(None);
        let uri = "spiffe://example.com/agent/dc1/i1";
        [issuing.leaf(uri, ExtendedKeyUsagePurpose::ClientAuth).0, issuing.certificate]
    };
    let (by_old, by_new) = (agent(&old), agent(&new));
    let now = SystemTime::now();
    assert!(roots.verify(&by_old, now).is_ok() && roots.verify(&by_new, now).is_err());
    roots.replace(&[old.certificate.clone(), new.certificate.clone()]).unwrap();
    assert!(roots.verify(&by_old, now).is_ok() && roots.verify(&by_new, now).is_ok());
    roots.replace(std::slice::from_ref(&new.certificate)).unwrap();
    assert!(roots.verify(&by_old, now).is_err() && roots.verify(&by_new, now).is_ok());
    assert!(roots.replace(&[]).is_err() && roots.replace(&[vec![1].into()]).is_err());
    assert!(roots.verify(&by_new, now).is_ok(), "what cannot be used changes nothing");
    assert!(roots.verify(&[], now).is_err());
    let relay = new.issuing(None);
    assert!(roots.verify(&[relay.relay(), relay.certificate], now).is_err(), "a relay's is not for dialling");
    let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(new.key.serialize_der()).into();
    let identity = Arc::new(Identity::new(vec![new.certificate.clone()], key).unwrap());
    let config = relay_config(identity, roots, &[ALPN_TUNNEL]).unwrap();
    assert_eq!(config.send_tls13_tickets, 0);
}
