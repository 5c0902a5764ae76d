//! The identity on disk and its renewal, with a certificate authority made for each test.

use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateSigningRequestParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};

use super::*;

const HOUR: Duration = Duration::from_hours(1);

/// A root and an issuing CA, as a relay's `init` makes them.
pub(crate) struct TestCa {
    root: CertificateDer<'static>,
    issuing: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let authority = |name: &str, depth| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let root = CertifiedIssuer::self_signed(authority("root", 1), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuing = CertifiedIssuer::signed_by(authority("issuing", 0), key, &root).unwrap();
        Self { root: root.der().clone(), issuing }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// Leaf, issuing CA and root for the key of `csr`.
    pub(crate) fn sign(&self, csr: &[u8], id: &str, start: SystemTime, end: SystemTime) -> Vec<Vec<u8>> {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = start.into();
        params.not_after = end.into();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&request.public_key, &self.issuing).unwrap();
        vec![leaf.der().to_vec(), self.issuing.der().to_vec(), self.root.to_vec()]
    }

    pub(crate) fn day(&self, csr: &[u8], id: &str) -> Vec<Vec<u8>> {
        let now = SystemTime::now();
        self.sign(csr, id, now - HOUR, now + 23 * HOUR)
    }
}

type Answer<'a> = &'a dyn Fn(&Renewal) -> Vec<Vec<u8>>;

const ID: &str = "spiffe://example.com/agent/dc1/01jc8";

fn stored(state: &Path, ca: &TestCa) -> AgentIdentity {
    let request = Renewal::new().unwrap();
    let chain = ca.day(request.csr(), ID);
    AgentIdentity::store(state, &request, chain, ca.root()).unwrap()
}

#[test]
fn what_join_stored_is_loaded_again_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let missing = AgentIdentity::load(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("postern-agent join"), "{missing}");
    let stored = stored(dir.path(), &ca);
    let loaded = AgentIdentity::load(dir.path()).unwrap();
    assert_eq!((loaded.name().as_str(), loaded.instance().as_str()), ("dc1", "01jc8"));
    assert_eq!(loaded.domain().as_str(), "example.com");
    assert_eq!(loaded.root(), &ca.root());
    assert_eq!(loaded.tls().chain(), stored.tls().chain());
    assert_eq!(loaded.tls().chain().len(), 2, "the root is not shown");
    let now = SystemTime::now();
    let half = loaded.renew_in(now);
    assert!(half > 10 * HOUR && half <= 11 * HOUR, "{half:?}");
    assert_eq!(loaded.renew_in(now + 12 * HOUR), Duration::ZERO);

    let file = dir.path().join("identity.pem");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(AgentIdentity::load(dir.path()).unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn a_renewal_changes_key_and_chain_together() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    let before = (identity.tls().chain(), fs::read(dir.path().join("identity.pem")).unwrap());
    let renewal = identity.renewal().unwrap();
    let now = SystemTime::now();
    let chain = ca.sign(renewal.csr(), ID, now - HOUR, now + 47 * HOUR);
    identity.accept(renewal, chain.clone()).unwrap();
    assert_eq!(identity.tls().chain()[0].as_ref(), chain[0]);
    assert_ne!(identity.tls().chain(), before.0);
    let loaded = AgentIdentity::load(dir.path()).unwrap();
    assert_eq!(loaded.tls().chain(), identity.tls().chain());
    assert!(loaded.renew_in(now) > 20 * HOUR);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_foreign_or_broken_renewal_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    let before = (identity.tls().chain(), fs::read(dir.path().join("identity.pem")).unwrap());
    let now = SystemTime::now();
    let csr = |renewal: &Renewal| renewal.csr().to_vec();
    let cases: [(&str, Answer<'_>); 8] = [
        ("another name", &|r| ca.day(&csr(r), "spiffe://example.com/agent/dc2/01jc8")),
        ("another instance", &|r| ca.day(&csr(r), "spiffe://example.com/agent/dc1/01jc9")),
        ("another domain", &|r| ca.day(&csr(r), "spiffe://example.org/agent/dc1/01jc8")),
        ("a relay's name", &|r| ca.day(&csr(r), "spiffe://example.com/relay/relay")),
        ("another root", &|r| TestCa::new().day(&csr(r), ID)),
        ("another key", &|_| ca.day(Renewal::new().unwrap().csr(), ID)),
        ("ended already", &|r| ca.sign(&csr(r), ID, now - 2 * HOUR, now - HOUR)),
        ("nothing", &|_| Vec::new()),
    ];
    for (what, chain) in cases {
        let renewal = identity.renewal().unwrap();
        let chain = chain(&renewal);
        assert!(identity.accept(renewal, chain).is_err(), "{what}");
        assert_eq!(identity.tls().chain(), before.0, "{what}");
        assert_eq!(fs::read(dir.path().join("identity.pem")).unwrap(), before.1, "{what}");
    }
    // A full or read-only disk keeps the old identity in use.
    let renewal = identity.renewal().unwrap();
    let chain = ca.day(renewal.csr(), ID);
    let gone = dir.path().join("gone");
    fs::rename(dir.path().join("identity.pem"), dir.path().join("kept.pem")).unwrap();
    let moved = AgentIdentity { path: gone.join("identity.pem"), ..identity };
    assert!(matches!(moved.accept(renewal, chain), Err(IdentityError::Io { .. })));
    assert_eq!(moved.tls().chain(), before.0);
}

#[test]
fn a_renewal_does_not_undo_a_newer_join() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let running = stored(dir.path(), &ca);
    let request = Renewal::new().unwrap();
    let chain = ca.day(request.csr(), "spiffe://example.com/agent/dc1/01jc9");
    AgentIdentity::store(dir.path(), &request, chain, ca.root()).unwrap();
    let renewal = running.renewal().unwrap();
    let chain = ca.day(renewal.csr(), ID);
    assert!(matches!(running.accept(renewal, chain), Err(IdentityError::Replaced(_))));
    assert_eq!(AgentIdentity::load(dir.path()).unwrap().instance().as_str(), "01jc9");
}

#[test]
fn ended_and_damaged_identities_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let now = SystemTime::now();
    let whole = {
        drop(stored(dir.path(), &ca));
        fs::read_to_string(dir.path().join("identity.pem")).unwrap()
    };
    let request = Renewal::new().unwrap();
    let ended = ca.sign(request.csr(), ID, now - 3 * HOUR, now - HOUR);
    let chain: Vec<CertificateDer<'_>> = ended[..2].iter().map(|der| der.clone().into()).collect();
    write(&dir.path().join("identity.pem"), &request.key, &chain, &ca.root()).unwrap();
    let error = AgentIdentity::load(dir.path()).unwrap_err();
    assert!(matches!(&error, IdentityError::Expired { name, .. } if name.as_str() == "dc1"), "{error}");

    let other = Renewal::new().unwrap();
    let key = Zeroizing::new(other.key.serialize_pem());
    let certificates = &whole[whole.find("-----BEGIN CERTIFICATE").unwrap()..];
    for damaged in
        [format!("{}{certificates}", key.as_str()), whole[..whole.len() / 2].to_owned(), String::new()]
    {
        file::write_atomic(&dir.path().join("identity.pem"), damaged.as_bytes(), Access::Private).unwrap();
        let error = AgentIdentity::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("postern-agent join"), "{error}");
    }
}

#[test]
fn a_state_directory_is_one_agents() {
    let dir = tempfile::tempdir().unwrap();
    let mine = only_one(dir.path()).unwrap();
    let mode = fs::metadata(dir.path().join("run.lock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(only_one(dir.path()), Err(IdentityError::Running)));
    drop(mine);
    only_one(dir.path()).unwrap();
    assert!(matches!(only_one(&dir.path().join("none")), Err(IdentityError::Missing(_))));
}
