//! Enrolment as a whole: CA, invites, instances, suspensions and recoveries, each in a directory of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use postern_base::id::ServiceName;
use postern_wire::join::{Invite, JoinAnswer, JoinRequest, refusal};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;

use super::*;

mod joins;
mod recovery;
mod suspension;
mod taken;
mod wire;

const HOUR: Duration = Duration::from_hours(1);

pub(super) fn settings(dir: &Path) -> EnrollSettings {
    EnrollSettings {
        state: dir.join("state"),
        trust_domain: "example.com".parse().unwrap(),
        ca: CaSource::Ours,
        cert_ttl: 24 * HOUR,
        invite_ttl: Duration::from_mins(15),
        recover: 7 * 24 * HOUR,
    }
}

fn enrollment(dir: &Path) -> Enrollment {
    Enrollment::init(&settings(dir), SystemTime::now()).unwrap();
    Enrollment::open(settings(dir)).unwrap()
}

/// As over a tunnel that was opened with a recorded certificate.
fn renew(
    enrollment: &Enrollment,
    instance: &InstanceId,
    csr: &[u8],
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, EnrollError> {
    let (key, serial) = (String::new(), String::new());
    let shown = Shown { serial, key, epoch: 0, issuer: None, not_before: 0, not_after: 0 };
    let grounds = Grounds { shown, is_given: true, is_theirs: false };
    Ok(enrollment.renew((&agent("dc1"), instance), &grounds, csr, now)?.chain)
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn csr(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn request(invite: &Invite) -> JoinRequest {
    let instance = InstanceId::random().to_string();
    JoinRequest { secret: invite.secret.to_vec(), csr: csr(|_| {}), instance }
}

fn chain(joined: &Joined) -> Vec<CertificateDer<'static>> {
    let JoinAnswer::Granted { chain, trust_domain } = &joined.answer else { panic!("{joined:?}") };
    assert_eq!(trust_domain, "example.com");
    chain.iter().map(|der| der.clone().into()).collect()
}

fn code(refused: &JoinRefused) -> u16 {
    let JoinAnswer::Refused { code, .. } = refused.answer() else { panic!("{refused}") };
    code
}

/// As a relay checks an agent's chain.
fn verify_agent(root: CertificateDer<'static>, chain: &[CertificateDer<'static>]) {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).unwrap();
}

#[test]
fn init_makes_private_keys_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let missing = Enrollment::open(settings.clone()).unwrap_err().to_string();
    assert!(missing.ends_with("run: postern-relay init"), "{missing}");
    let first = Enrollment::init(&settings, SystemTime::now()).unwrap();
    assert_eq!(first.made.len(), 6);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&settings.state), 0o700);
    for key in ["ca/root.key", "ca/issuing.key", "postern.redb"] {
        assert_eq!(mode(&settings.state.join(key)), 0o600, "{key}");
    }
    let again = Enrollment::init(&settings, SystemTime::now()).unwrap();
    assert_eq!((again.made, again.root_key), (Vec::new(), first.root_key.clone()));

    // The root's key is taken away: everything works on, and init says nothing more about it.
    std::fs::remove_file(first.root_key.unwrap()).unwrap();
    assert_eq!(Enrollment::init(&settings, SystemTime::now()).unwrap().root_key, None);
    drop(Enrollment::open(settings.clone()).unwrap());

    let key = settings.state.join("ca/issuing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let loose = Enrollment::open(settings).unwrap_err().to_string();
    assert!(loose.contains("chmod 600"), "{loose}");
}

#[test]
fn the_issuing_ca_ends_and_is_replaced_under_the_same_root() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let enrollment = enrollment(dir.path());
    let (root, later) = (enrollment.ca.root(), SystemTime::now() + 91 * 24 * HOUR);
    let expired = enrollment.relay_identity(&"relay".parse().unwrap(), later).unwrap_err();
    assert!(matches!(expired, EnrollError::Ca(CaError::Expired)), "{expired}");
    drop(enrollment);
    for file in ["issuing.pem", "issuing.key"] {
        std::fs::remove_file(settings.state.join("ca").join(file)).unwrap();
    }
    assert_eq!(Enrollment::init(&settings, later).unwrap().made.len(), 2);
    assert_eq!(Enrollment::open(settings.clone()).unwrap().ca.root(), root);

    // Half of an issuing CA is named, and made new while the root's key is here.
    let key = settings.state.join("ca/issuing.key");
    std::fs::remove_file(&key).unwrap();
    let half = Enrollment::open(settings.clone()).unwrap_err();
    assert!(matches!(&half, EnrollError::Ca(CaError::Incomplete(path)) if *path == key), "{half}");
    assert_eq!(Enrollment::init(&settings, later).unwrap().made.len(), 2);
    assert_eq!(Enrollment::open(settings.clone()).unwrap().ca.root(), root);

    std::fs::remove_file(settings.state.join("ca/root.key")).unwrap();
    std::fs::remove_file(&key).unwrap();
    let half = Enrollment::init(&settings, later).unwrap_err();
    assert!(matches!(&half, EnrollError::Ca(CaError::Incomplete(path)) if *path == key), "{half}");
    std::fs::remove_file(settings.state.join("ca/issuing.pem")).unwrap();
    let without = Enrollment::init(&settings, later).unwrap_err();
    assert!(matches!(without, EnrollError::Ca(CaError::NoRootKey(_))), "{without}");
}

#[test]
fn no_certificate_outlives_the_issuing_ca() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let later = SystemTime::now() + 90 * 24 * HOUR - HOUR;
    let invite = enrollment.invite(&agent("dc1"), None, None, later).unwrap();
    let chain = chain(&enrollment.join(&request(&invite), later).unwrap());
    assert_eq!(tls::not_after(&chain[0]).unwrap(), tls::not_after(&chain[1]).unwrap());
}

#[test]
fn an_invite_becomes_one_instance() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let wiki: Vec<ServiceName> = vec!["wiki".parse().unwrap()];
    let invite = enrollment.invite(&agent("dc1"), Some(wiki.clone()), None, now).unwrap();
    assert_eq!(invite.pin, tls::pin(&enrollment.ca.root()).unwrap());
    assert_eq!(enrollment.invites().len(), 1);

    let request = request(&invite);
    let joined = enrollment.join(&request, now).unwrap();
    let chain = chain(&joined);
    verify_agent(enrollment.ca.root(), &chain);
    let id = SpiffeId::Agent {
        domain: "example.com".parse().unwrap(),
        name: agent("dc1"),
        instance: joined.instance.clone(),
    };
    assert_eq!(tls::spiffe_id(&chain[0]).unwrap(), id);
    let enrolled = Enrolled { services: Some(wiki) };
    assert_eq!(enrollment.standing(&agent("dc1"), &joined.instance), Ok(enrolled));
    let unknown =
        |name, instance| enrollment.standing(&agent(name), instance) == Err(Barred::NotEnrolled(agent(name)));
    assert!(unknown("dc2", &joined.instance), "the name is part of it");
    assert!(unknown("dc1", &InstanceId::random()));

    let again = enrollment.join(&request, now).unwrap_err();
    assert!(matches!(again, JoinRefused::Used { .. }), "{again}");
    assert_eq!(enrollment.invites(), []);
    assert_eq!(enrollment.agents().len(), 1);
}

#[test]
fn renewal_keeps_the_name_and_removal_is_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let dc1 = agent("dc1");
    let invite = enrollment.invite(&dc1, None, None, now).unwrap();
    let joined = enrollment.join(&request(&invite), now).unwrap();
    let first = chain(&joined);
    let renewed = renew(&enrollment, &joined.instance, &csr(|_| {}), now + 12 * HOUR).unwrap();
    assert_eq!(tls::spiffe_id(&renewed[0]).unwrap(), tls::spiffe_id(&first[0]).unwrap());
    assert!(tls::not_after(&renewed[0]).unwrap() > tls::not_after(&first[0]).unwrap());
    let row = &enrollment.agents()[0];
    assert_ne!(Some(&row.certificate), row.previous.as_ref());

    let open = enrollment.invite(&dc1, None, None, now).unwrap();
    assert_eq!(enrollment.remove(&dc1.clone().into(), now).unwrap(), 1);
    assert!(enrollment.standing(&dc1, &joined.instance).is_err());
    assert!(renew(&enrollment, &joined.instance, &csr(|_| {}), now).is_err());
    let void = enrollment.join(&request(&open), now).unwrap_err();
    assert_eq!(code(&void), refusal::INVALID, "removal voids open invites");
    assert!(matches!(enrollment.remove(&dc1.clone().into(), now), Err(EnrollError::UnknownAgent(_))));

    // The name may come back, the instance may not.
    let again = enrollment.invite(&dc1, None, None, now).unwrap();
    let mut old = request(&again);
    old.instance = joined.instance.to_string();
    assert_eq!(code(&enrollment.join(&old, now).unwrap_err()), refusal::BAD_REQUEST);
    let new = enrollment.join(&request(&again), now).unwrap();
    assert!(enrollment.standing(&dc1, &new.instance).is_ok());
    assert!(enrollment.standing(&dc1, &joined.instance).is_err());
}

#[test]
fn a_restart_forgets_nothing_and_two_cannot_hold_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let first = enrollment(dir.path());
    let now = SystemTime::now();
    let (kept, gone) = (agent("dc1"), agent("dc2"));
    let invite = |name| first.invite(name, None, None, now).unwrap();
    let (used, waiting) = (invite(&kept), invite(&kept));
    let instance = first.join(&request(&used), now).unwrap().instance;
    let removed = first.join(&request(&invite(&gone)), now).unwrap().instance;
    first.remove(&gone.clone().into(), now).unwrap();
    let held = Enrollment::open(settings(dir.path())).unwrap_err();
    assert!(matches!(held, EnrollError::Held(_)), "{held}");
    let (agents, invites) = (first.agents(), first.invites());
    drop(first);

    let second = Enrollment::open(settings(dir.path())).unwrap();
    assert_eq!((second.agents(), second.invites()), (agents, invites));
    assert!(second.standing(&kept, &instance).is_ok());
    assert!(second.standing(&gone, &removed).is_err());
    assert!(matches!(second.join(&request(&used), now), Err(JoinRefused::Used { .. })));
    second.join(&request(&waiting), now).unwrap();
    // Neither secret nor invite is on the disk.
    let stored = std::fs::read(dir.path().join("state/postern.redb")).unwrap();
    assert!(!stored.windows(waiting.secret.len()).any(|window| window == &waiting.secret[..]));
}
