//! The identity on disk and its renewal, with a certificate authority made for each test.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use postern_base::file::{self, Access};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};

use super::*;

mod elsewhere;
mod rotation;

const HOUR: Duration = Duration::from_hours(1);

/// A root and an issuing CA, as a relay's `init` makes them, and what rotations make of them.
pub(crate) struct TestCa {
    root: CertifiedIssuer<'static, KeyPair>,
    issuing: CertifiedIssuer<'static, KeyPair>,
    /// Of the root by the one before it.
    cross: Option<CertificateDer<'static>>,
}

fn authority(name: &str, depth: u8, epoch: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if epoch > 0 {
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), epoch.to_string());
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(authority("root", 1, 0), key).unwrap();
        Self { issuing: issuing(&root, 0), root, cross: None }
    }

    /// Its next issuing CA.
    pub(crate) fn rotate(&mut self, epoch: u64) {
        self.issuing = issuing(&self.root, epoch);
    }

    /// Its next root, and an issuing CA under that.
    pub(crate) fn replace_root(&mut self, epoch: u64) {
        let (key, params) = (KeyPair::generate().unwrap(), authority("root", 1, epoch));
        self.cross = Some(params.signed_by(&key, &self.root).unwrap().der().clone());
        self.root = CertifiedIssuer::self_signed(params, key).unwrap();
        self.rotate(epoch);
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Leaf, issuing CA, the cross certificate if there is one, and root, for the key of `csr`.
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
        let above = [self.issuing.der()].into_iter().chain(&self.cross).chain([self.root.der()]);
        [leaf.der()].into_iter().chain(above).map(|der| der.to_vec()).collect()
    }

    pub(crate) fn day(&self, csr: &[u8], id: &str) -> Vec<Vec<u8>> {
        let now = SystemTime::now();
        self.sign(csr, id, now - HOUR, now + 23 * HOUR)
    }
}

fn issuing(root: &CertifiedIssuer<'static, KeyPair>, epoch: u64) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::signed_by(authority("issuing", 0, epoch), KeyPair::generate().unwrap(), root).unwrap()
}

type Answer<'a> = &'a dyn Fn(&Renewal) -> Vec<Vec<u8>>;

pub(crate) const ID: &str = "spiffe://example.com/agent/dc1/01jc8";

pub(crate) fn stored(state: &Path, ca: &TestCa) -> AgentIdentity {
    let request = Renewal::new().unwrap();
    let chain = ca.day(request.csr(), ID);
    AgentIdentity::store(state, &request, chain, ca.root()).unwrap()
}

/// One whose certificate ended then, as it lies on the disk of an agent that was off.
pub(crate) fn ended(state: &Path, ca: &TestCa, end: SystemTime) -> AgentIdentity {
    let request = Renewal::new().unwrap();
    let chain = proof::parsed(ca.sign(request.csr(), ID, end - 24 * HOUR, end)).unwrap();
    let chain = proof::without_roots(chain, &[&ca.root()]);
    stored::write(state, request.key(), &chain, &ca.root()).unwrap();
    AgentIdentity::load(state).unwrap()
}

fn next_key(state: &Path) -> Option<Vec<u8>> {
    stored::next_key(state).unwrap().map(|key| key.subject_public_key_info())
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
    assert_eq!(loaded.roots(), [ca.root()]);
    assert_eq!(loaded.tls().chain(), stored.tls().chain());
    assert_eq!(loaded.tls().chain().len(), 2, "the root is not shown");
    let now = SystemTime::now();
    let half = loaded.renew_in(now).unwrap();
    assert!(half > 10 * HOUR && half <= 11 * HOUR, "{half:?}");
    assert_eq!(loaded.renew_in(now + 12 * HOUR), Some(Duration::ZERO));

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
    assert!(loaded.renew_in(now) > Some(20 * HOUR));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "its key is no longer the next one");
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
    let moved = AgentIdentity { source: Source::State(gone), ..identity };
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
    let ended = ended(dir.path(), &ca, now - HOUR);
    assert!(ended.is_expired(now) && !ended.is_expired(now - 2 * HOUR));
    assert_eq!(ended.name().as_str(), "dc1", "it is good for a recovery");

    let other = Renewal::new().unwrap();
    let key = Zeroizing::new(other.key().serialize_pem());
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

#[test]
fn the_next_key_is_on_disk_before_anybody_is_asked_and_stays_until_its_certificate_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    let lost = identity.renewal().unwrap();
    let key = lost.key().subject_public_key_info();
    assert_eq!(next_key(dir.path()), Some(key.clone()));
    let mode = fs::metadata(dir.path().join("next.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(lost);
    // After a lost answer, and after a restart: the relay may know that key as the newest.
    let identity = { AgentIdentity::load(identity.state().unwrap()).unwrap() };
    let again = identity.renewal().unwrap();
    assert_eq!(again.key().subject_public_key_info(), key);
    let recovery = identity.recovery().unwrap();
    assert!(recovery.is_asked);
    assert_eq!(recovery.next.key().subject_public_key_info(), key);
    let leaf = identity.tls().chain()[0].clone();
    assert_eq!(recovery.own.0.subject_public_key_info(), tls::public_key(&leaf).unwrap());
    // Refused answers keep it, a good one does not.
    assert!(identity.accept(recovery.next, Vec::new()).is_err());
    assert_eq!(next_key(dir.path()), Some(key.clone()));
    let chain = ca.day(again.csr(), ID);
    identity.accept(again, chain).unwrap();
    assert_eq!(next_key(dir.path()), None);
    assert!(!identity.recovery().unwrap().is_asked, "a key that nobody has seen");

    // A crash left it behind after its certificate was stored.
    stored::keep_next_key(dir.path(), &stored::own_key(dir.path()).unwrap()).unwrap();
    assert_ne!(identity.renewal().unwrap().key().subject_public_key_info(), key);
    // What cannot be read is replaced; what others can read is refused.
    file::write_atomic(&dir.path().join("next.key"), b"damaged", Access::Private).unwrap();
    identity.renewal().unwrap();
    fs::set_permissions(dir.path().join("next.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(identity.renewal().unwrap_err().to_string().contains("chmod 600"));
    assert!(AgentIdentity::load(dir.path()).unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn a_join_leaves_nothing_of_the_identity_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = TestCa::new();
    old.rotate(7);
    assert_eq!(stored(dir.path(), &old).floor(), 7);
    AgentIdentity::load(dir.path()).unwrap().renewal().unwrap();
    let joined = stored(dir.path(), &TestCa::new());
    assert_eq!((joined.floor(), AgentIdentity::load(dir.path()).unwrap().floor()), (0, 0));
    assert_eq!(next_key(dir.path()), None);
}
