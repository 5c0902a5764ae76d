//! Joins: what costs an invite and what does not, and how many invites are kept.

use std::sync::Barrier;
use std::time::UNIX_EPOCH;

use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::super::invite::{self, KEEP_SPENT, MAX_INVITES};
use super::*;

#[test]
fn bad_joins_are_refused_and_cost_no_invite() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
    let good = request(&invite);

    let forged = JoinRequest { secret: vec![7; 20], ..good.clone() };
    let forged = enrollment.join(&forged, now).unwrap_err();
    let used = JoinRefused::Used { agent: agent("dc1") };
    assert_eq!(forged.answer(), used.answer(), "guessing learns nothing");
    let late = enrollment.join(&good, now + Duration::from_mins(15)).unwrap_err();
    assert_eq!(code(&late), refusal::EXPIRED);

    // A request whose signature is not by its own key proves no possession.
    let mut broken = good.csr.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let big = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let other_curve = CertificateParams::default().serialize_request(&big).unwrap().der().to_vec();
    for bad in [
        JoinRequest { csr: broken, ..good.clone() },
        JoinRequest { csr: other_curve, ..good.clone() },
        JoinRequest { csr: b"not DER".to_vec(), ..good.clone() },
        JoinRequest { instance: "../../etc".to_owned(), ..good.clone() },
    ] {
        assert_eq!(code(&enrollment.join(&bad, now).unwrap_err()), refusal::BAD_REQUEST);
    }
    enrollment.join(&good, now).unwrap();

    let other = enrollment.invite(&agent("dc2"), None, None, now).unwrap();
    let taken = JoinRequest { secret: other.secret.to_vec(), ..good };
    assert_eq!(
        code(&enrollment.join(&taken, now).unwrap_err()),
        refusal::BAD_REQUEST,
        "an instance has one name"
    );
}

#[test]
fn what_a_request_asks_for_is_not_granted() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
    let greedy = csr(|params| {
        params.subject_alt_names = vec![
            SanType::URI("spiffe://example.com/relay/relay".try_into().unwrap()),
            SanType::DnsName("relay.example.com".try_into().unwrap()),
        ];
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let joined = enrollment.join(&JoinRequest { csr: greedy, ..request(&invite) }, now).unwrap();
    let chain = chain(&joined);
    let SpiffeId::Agent { name, instance, .. } = tls::spiffe_id(&chain[0]).unwrap() else { panic!() };
    assert_eq!((name, instance), (agent("dc1"), joined.instance));
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    verify_agent(enrollment.ca.root(), &chain);
}

#[test]
fn of_ten_that_race_for_one_invite_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
    let start = Barrier::new(10);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let racer = || {
            let request = request(&invite);
            start.wait();
            enrollment.join(&request, now)
        };
        let racers: Vec<_> = (0..10).map(|_| scope.spawn(racer)).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let losers = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    losers.for_each(|loser| assert_eq!(code(loser), refusal::INVALID));
    assert_eq!(enrollment.agents().len(), 1);
}

#[test]
fn spent_invites_are_swept_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    enrollment.invite(&agent("dc1"), None, Some(HOUR), now).unwrap();
    let later = now + KEEP_SPENT + 2 * HOUR;
    enrollment.invite(&agent("dc2"), None, None, later).unwrap();
    let left = enrollment.invites();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].agent, agent("dc2"));
    assert_eq!(left[0].expires, later.duration_since(UNIX_EPOCH).unwrap().as_secs() + 15 * 60);
}

#[test]
fn open_invites_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    enrollment.invite(&agent("dc1"), None, None, now).unwrap();
    let one = enrollment.state.load().invites.values().next().unwrap().clone();
    let hashes = (1..MAX_INVITES).map(|n| invite::hash(&n.to_be_bytes()));
    let invites = hashes.map(|hash| (hash, Some(one.clone()))).collect();
    enrollment.commit(&enrollment.writing(), Change { invites, ..Change::default() }).unwrap();
    let full = enrollment.invite(&agent("dc1"), None, None, now).unwrap_err();
    assert!(matches!(full, EnrollError::TooManyInvites), "{full}");
}
