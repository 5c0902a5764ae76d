//! Recovery: which key of an instance brings it back, for how long, and what an older one does.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use postern_wire::join::RecoverRequest;
use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose, PublicKeyData, SanType};

use super::super::ca::sign;
use super::super::recover::OLD_KEY;
use super::*;

const EXPORTER: [u8; 32] = [7; 32];
const DAY: Duration = Duration::from_hours(24);

/// An instance that has joined, with its key.
pub(super) struct Dc1 {
    pub(super) instance: InstanceId,
    pub(super) key: KeyPair,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

pub(super) fn csr_of(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

impl Dc1 {
    pub(super) fn join(enrollment: &Enrollment) -> Self {
        let now = SystemTime::now();
        let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = JoinRequest { csr: csr_of(&key), ..request(&invite) };
        let joined = enrollment.join(&request, now).unwrap();
        Self { chain: chain(&joined), instance: joined.instance, key }
    }

    pub(super) fn who(&self) -> Who {
        Who::instance(&agent("dc1"), &self.instance)
    }

    /// The next certificate, for a key of its own.
    fn renew(&self, enrollment: &Enrollment, now: SystemTime) -> Self {
        let key = KeyPair::generate().unwrap();
        let chain = renew(enrollment, &self.instance, &csr_of(&key), now).unwrap();
        Self { instance: self.instance.clone(), key, chain }
    }

    /// What it asks with its chain and this key.
    pub(super) fn recover(&self, key: &KeyPair, exporter: &[u8; 32]) -> RecoverRequest {
        let csr = csr(|_| {});
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
        let signature = signer.sign(&SystemRandom::new(), &RecoverRequest::signed(exporter, &csr)).unwrap();
        RecoverRequest {
            chain: self.chain.iter().map(|der| der.to_vec()).collect(),
            key: key.subject_public_key_info(),
            csr,
            signature: signature.as_ref().to_vec(),
        }
    }

    fn try_with(&self, enrollment: &Enrollment, key: &KeyPair, now: SystemTime) -> Result<Joined, u16> {
        enrollment.recover(&self.recover(key, &EXPORTER), &EXPORTER, now).map_err(|refused| code(&refused))
    }

    pub(super) fn back(&self, enrollment: &Enrollment, now: SystemTime) -> Result<Joined, u16> {
        self.try_with(enrollment, &self.key, now)
    }
}

#[test]
fn the_newest_key_brings_an_instance_back_within_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let first = Dc1::join(&enrollment);
    let late = SystemTime::now() + 8 * DAY + HOUR;
    let refused = enrollment.recover(&first.recover(&first.key, &EXPORTER), &EXPORTER, late).unwrap_err();
    let JoinAnswer::Refused { code, reason } = refused.answer() else { panic!() };
    assert_eq!(code, refusal::TOO_LATE);
    assert!(reason.contains("agents.recover (7d)") && reason.contains("agent invite dc1"), "{reason}");

    let in_time = SystemTime::now() + 8 * DAY - HOUR;
    let joined = first.back(&enrollment, in_time).unwrap();
    assert_eq!(joined.instance, first.instance);
    let given = chain(&joined);
    assert_eq!(tls::spiffe_id(&given[0]).unwrap(), tls::spiffe_id(&first.chain[0]).unwrap());
    let row = &enrollment.agents()[0];
    assert_eq!(row.certificate.serial, tls::serial(&given[0]).unwrap());
    assert_eq!(row.previous.as_ref().unwrap().serial, tls::serial(&first.chain[0]).unwrap());

    let never = EnrollSettings { recover: Duration::ZERO, ..settings(dir.path()) };
    drop(enrollment);
    let enrollment = Enrollment::open(never).unwrap();
    let second = Dc1::join(&enrollment);
    assert_eq!(second.back(&enrollment, SystemTime::now()).unwrap_err(), refusal::TOO_LATE, "0 is off");
}

#[test]
fn an_older_key_suspends_and_a_strange_one_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let (first, later) = (Dc1::join(&enrollment), SystemTime::now() + 2 * DAY);
    let second = first.renew(&enrollment, later);
    let strange = KeyPair::generate().unwrap();
    assert_eq!(first.try_with(&enrollment, &strange, later).unwrap_err(), refusal::UNKNOWN_KEY);
    assert_eq!(enrollment.suspensions(), []);
    // Its answer was lost: the agent shows the chain from before and proves the key that it asked for.
    let third = first.try_with(&enrollment, &second.key, later).unwrap();

    assert_eq!(first.back(&enrollment, later).unwrap_err(), refusal::OLD_KEY);
    let [row] = &enrollment.suspensions()[..] else { panic!() };
    assert_eq!((&row.who, row.suspension.by), (&first.who(), None));
    assert_eq!(row.suspension.reason, OLD_KEY);
    assert!(enrollment.standing(&agent("dc1"), &first.instance).is_err());
    for one in [&first, &second] {
        assert_eq!(one.back(&enrollment, later).unwrap_err(), refusal::SUSPENDED);
    }
    let unchanged = &enrollment.agents()[0].certificate.serial;
    assert_eq!(*unchanged, tls::serial(&chain(&third)[0]).unwrap());

    enrollment.resume(&first.who()).unwrap();
    assert_eq!(second.back(&enrollment, later).unwrap_err(), refusal::UNKNOWN_KEY, "not again");
    assert_eq!(enrollment.suspensions(), []);
}

#[test]
fn a_key_that_ended_long_ago_puts_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let (first, now) = (Dc1::join(&enrollment), SystemTime::now());
    let last = first.renew(&enrollment, now + 8 * DAY);
    assert_eq!(first.back(&enrollment, now + 8 * DAY + HOUR).unwrap_err(), refusal::UNKNOWN_KEY);
    assert_eq!(enrollment.suspensions(), []);
    last.back(&enrollment, now + 8 * DAY + HOUR).unwrap();
}

#[test]
fn an_older_copy_is_not_the_newest_because_it_ends_later() {
    let dir = tempfile::tempdir().unwrap();
    let long = enrollment(dir.path());
    let (first, now) = (Dc1::join(&long), SystemTime::now());
    drop(long);
    let short = EnrollSettings { cert_ttl: HOUR, ..settings(dir.path()) };
    let enrollment = Enrollment::open(short).unwrap();
    let second = first.renew(&enrollment, now + HOUR);
    let third = second.renew(&enrollment, now + 2 * HOUR);
    let latest = &enrollment.agents()[0].certificate;
    assert!(tls::not_after(&first.chain[0]).unwrap() > i64::try_from(latest.not_after).unwrap());

    let admit = |one: &Dc1| {
        let shown = Shown::of(&one.chain).unwrap();
        enrollment.admit(&agent("dc1"), &first.instance, shown, now).map(|(_, grounds)| grounds.is_given)
    };
    assert_eq!((admit(&second), admit(&third)), (Ok(true), Ok(true)));
    assert_eq!(admit(&first), Err(Barred::Older(agent("dc1"))));
    assert_eq!(enrollment.suspensions(), []);
    assert_eq!(first.back(&enrollment, now + 2 * HOUR).unwrap_err(), refusal::OLD_KEY);
}

#[test]
fn a_renewal_asked_for_again_with_its_key_leaves_the_one_before_it_valid() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let (first, next) = (Dc1::join(&enrollment), KeyPair::generate().unwrap());
    let renew = || renew(&enrollment, &first.instance, &csr_of(&next), now).unwrap();
    let lost = renew();
    let got = renew();
    assert_ne!(tls::serial(&lost[0]).unwrap(), tls::serial(&got[0]).unwrap());
    let row = &enrollment.agents()[0];
    assert_eq!(row.certificate.serial, tls::serial(&got[0]).unwrap());
    let previous = row.previous.as_ref().unwrap();
    assert_eq!(previous.serial, tls::serial(&first.chain[0]).unwrap(), "the agent still shows that one");
}

#[test]
fn whoever_is_out_or_from_elsewhere_stays_out() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (here, there) = (enrollment(dir.path()), enrollment(elsewhere.path()));
    let now = SystemTime::now();
    let (own, foreign) = (Dc1::join(&here), Dc1::join(&there));
    assert_eq!(foreign.back(&here, now).unwrap_err(), refusal::NOT_ENROLLED);
    let elsewhere = here.recover(&own.recover(&own.key, &[8; 32]), &EXPORTER, now).unwrap_err();
    assert!(matches!(elsewhere, JoinRefused::Unproved(_)), "{elsewhere}");
    let garbage = RecoverRequest { chain: vec![vec![1, 2, 3]], ..own.recover(&own.key, &EXPORTER) };
    assert_eq!(code(&here.recover(&garbage, &EXPORTER, now).unwrap_err()), refusal::BAD_REQUEST);
    let empty = RecoverRequest { chain: Vec::new(), ..garbage };
    assert_eq!(code(&here.recover(&empty, &EXPORTER, now).unwrap_err()), refusal::BAD_REQUEST);

    here.suspend(&agent("dc1").into(), "stolen", Some(1), now).unwrap();
    assert_eq!(own.back(&here, now).unwrap_err(), refusal::SUSPENDED);
    here.resume(&agent("dc1").into()).unwrap();
    here.remove(&own.who(), now).unwrap();
    assert_eq!(own.back(&here, now).unwrap_err(), refusal::NOT_ENROLLED);
}

#[test]
fn a_state_that_was_put_back_to_an_earlier_day_takes_the_later_key() {
    let dir = tempfile::tempdir().unwrap();
    let database = settings(dir.path()).database();
    let before = enrollment(dir.path());
    let (first, later) = (Dc1::join(&before), SystemTime::now() + HOUR);
    drop(before);
    let backup = std::fs::read(&database).unwrap();
    let after = Enrollment::open(settings(dir.path())).unwrap();
    let second = first.renew(&after, later);
    drop(after);
    std::fs::write(&database, backup).unwrap();

    let restored = Enrollment::open(settings(dir.path())).unwrap();
    let admitted = restored.admit(&agent("dc1"), &second.instance, Shown::of(&second.chain).unwrap(), later);
    let grounds = admitted.unwrap().1;
    assert!(!grounds.is_given && restored.is_behind(&grounds), "let in, and asked to renew");
    let joined = second.back(&restored, later + 2 * DAY).unwrap();
    assert_eq!(restored.agents()[0].certificate.serial, tls::serial(&chain(&joined)[0]).unwrap());
    assert_eq!(second.back(&restored, later + 2 * DAY).unwrap_err(), refusal::OLD_KEY, "once");
}

/// Puts a new issuing CA in force.
pub(super) fn rotate(enrollment: &Enrollment, dir: &Path, now: SystemTime) {
    let root = dir.join("state/ca/root.key");
    let key = KeyPair::from_pem(&std::fs::read_to_string(&root).unwrap()).unwrap();
    let prepared = enrollment.ca.prepare(false).unwrap();
    let domain = "example.com".parse().unwrap();
    let signed = sign(&prepared, &domain, (&key, &root), None, now).unwrap();
    enrollment.ca.install(&signed, now).unwrap();
}

/// A thief has the issuing key, and signs the instance's name for his own key, with the serial of the real one, and good for longer.
pub(super) fn forge(dir: &Path, dc1: &Dc1, now: SystemTime) -> Dc1 {
    let ca = dir.join("state/ca");
    let read = |name: &str| std::fs::read_to_string(ca.join(name)).unwrap();
    let stolen = KeyPair::from_pem(&read("issuing.key")).unwrap();
    let stolen = Issuer::from_ca_cert_pem(&read("issuing.pem"), stolen).unwrap();
    let thief = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://example.com/agent/dc1/{}", dc1.instance);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (now.into(), (now + 30 * DAY).into());
    let (_, leaf) = x509_parser::parse_x509_certificate(&dc1.chain[0]).unwrap();
    params.serial_number = Some(leaf.raw_serial().to_vec().into());
    let forged = params.signed_by(&thief, &stolen).unwrap().der().clone();
    let chain = [vec![forged], dc1.chain[1..].to_vec()].concat();
    Dc1 { instance: dc1.instance.clone(), key: thief, chain }
}

#[test]
fn the_key_of_a_replaced_authority_is_worth_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let dc1 = Dc1::join(&enrollment);
    let epoch = enrollment.epoch();
    let forged = forge(dir.path(), &dc1, now);
    verify_agent(enrollment.ca.root(), &forged.chain);
    let admit = |one: &Dc1| {
        let admitted = enrollment.admit(&agent("dc1"), &dc1.instance, Shown::of(&one.chain).unwrap(), now);
        admitted.map(|(_, grounds)| grounds)
    };
    let tunnel = admit(&forged).expect("until the authority is replaced that is so");
    let own_tunnel = admit(&dc1).unwrap();
    let renew =
        |grounds: &Grounds| enrollment.renew((&agent("dc1"), &dc1.instance), grounds, &csr(|_| {}), now);
    assert!(enrollment.holds(&tunnel) && enrollment.is_behind(&tunnel) && !enrollment.is_behind(&own_tunnel));

    rotate(&enrollment, dir.path(), now);
    let next = enrollment.epoch();
    assert!(next > epoch);
    // The tunnel that he has open already is good for nothing either; the instance's own stays.
    assert!(!enrollment.holds(&tunnel) && enrollment.holds(&own_tunnel) && enrollment.is_behind(&own_tunnel));
    let refused = renew(&tunnel).unwrap_err();
    assert!(matches!(refused, EnrollError::Barred(Barred::Replaced(_))), "{refused}");
    assert_eq!(enrollment.agents()[0].certificate.epoch, epoch, "nothing was recorded");
    assert_eq!(admit(&forged), Err(Barred::Replaced(agent("dc1"))));
    assert_eq!(forged.back(&enrollment, now).unwrap_err(), refusal::UNKNOWN_KEY);
    assert_eq!(enrollment.suspensions(), [], "nor can he have anybody suspended");

    // The instance itself comes and goes as before, and moves with its next certificate.
    assert!(admit(&dc1).is_ok());
    let moved = dc1.renew(&enrollment, now);
    assert_eq!(enrollment.agents()[0].certificate.epoch, next);
    assert!(
        admit(&dc1).is_ok() && admit(&moved).is_ok(),
        "the one before is good while it takes up the new one"
    );
    let again = moved.renew(&enrollment, now);
    assert!(admit(&again).is_ok() && admit(&moved).is_ok());
    assert!(enrollment.holds(&own_tunnel), "tunnels outlive certificates");
    assert_eq!(admit(&dc1), Err(Barred::Replaced(agent("dc1"))));
    assert_eq!(dc1.back(&enrollment, now).unwrap_err(), refusal::UNKNOWN_KEY);
    again.back(&enrollment, now + 2 * DAY).unwrap();
}
