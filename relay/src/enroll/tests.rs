//! Enrolment as a whole: CA, invites, instances and joins over a real QUIC connection, each in a directory of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::UNIX_EPOCH;

use postern_base::audit::chain::Chain;
use postern_base::audit::{Destination, LogSettings, Rotate, WhenFull};
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::refusal;
use postern_wire::link::Link;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;

use super::*;
use crate::audit::{self, Audit};
use crate::settings::{AuditSettings, Redact};

const HOUR: Duration = Duration::from_hours(1);

fn settings(dir: &Path) -> EnrollSettings {
    EnrollSettings {
        state: dir.join("state"),
        trust_domain: "example.com".parse().unwrap(),
        cert_ttl: 24 * HOUR,
        invite_ttl: Duration::from_mins(15),
    }
}

fn enrollment(dir: &Path) -> Enrollment {
    Enrollment::init(&settings(dir), SystemTime::now()).unwrap();
    Enrollment::open(settings(dir), SystemTime::now()).unwrap()
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
    let missing = Enrollment::open(settings.clone(), SystemTime::now()).unwrap_err().to_string();
    assert!(missing.ends_with("run: postern-relay init"), "{missing}");
    let first = Enrollment::init(&settings, SystemTime::now()).unwrap();
    assert_eq!(first.made.len(), 5);
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
    drop(Enrollment::open(settings.clone(), SystemTime::now()).unwrap());

    let key = settings.state.join("ca/issuing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let loose = Enrollment::open(settings, SystemTime::now()).unwrap_err().to_string();
    assert!(loose.contains("chmod 600"), "{loose}");
}

#[test]
fn the_issuing_ca_ends_and_is_replaced_under_the_same_root() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let root = enrollment(dir.path()).root();
    let later = SystemTime::now() + 91 * 24 * HOUR;
    let expired = Enrollment::open(settings.clone(), later).unwrap_err();
    assert!(matches!(expired, EnrollError::Ca(CaError::Expired(_))), "{expired}");
    for file in ["issuing.pem", "issuing.key"] {
        std::fs::remove_file(settings.state.join("ca").join(file)).unwrap();
    }
    assert_eq!(Enrollment::init(&settings, later).unwrap().made.len(), 2);
    assert_eq!(Enrollment::open(settings.clone(), later).unwrap().root(), root);

    // Half of an issuing CA is named, and made new while the root's key is here.
    let key = settings.state.join("ca/issuing.key");
    std::fs::remove_file(&key).unwrap();
    let half = Enrollment::open(settings.clone(), later).unwrap_err();
    assert!(matches!(&half, EnrollError::Ca(CaError::Incomplete(path)) if *path == key), "{half}");
    assert_eq!(Enrollment::init(&settings, later).unwrap().made.len(), 2);
    assert_eq!(Enrollment::open(settings.clone(), later).unwrap().root(), root);

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
    assert_eq!(invite.pin, tls::pin(&enrollment.root()).unwrap());
    assert_eq!(enrollment.invites().len(), 1);

    let request = request(&invite);
    let joined = enrollment.join(&request, now).unwrap();
    let chain = chain(&joined);
    verify_agent(enrollment.root(), &chain);
    let id = SpiffeId::Agent {
        domain: "example.com".parse().unwrap(),
        name: agent("dc1"),
        instance: joined.instance.clone(),
    };
    assert_eq!(tls::spiffe_id(&chain[0]).unwrap(), id);
    assert_eq!(enrollment.admit(&agent("dc1"), &joined.instance), Some(Enrolled { services: Some(wiki) }));
    assert_eq!(enrollment.admit(&agent("dc2"), &joined.instance), None, "the name is part of it");
    assert_eq!(enrollment.admit(&agent("dc1"), &InstanceId::random()), None);

    let again = enrollment.join(&request, now).unwrap_err();
    assert!(matches!(again, JoinRefused::Used { .. }), "{again}");
    assert_eq!(enrollment.invites(), []);
    assert_eq!(enrollment.agents().len(), 1);
}

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
    verify_agent(enrollment.root(), &chain);
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
fn renewal_keeps_the_name_and_removal_is_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let dc1 = agent("dc1");
    let invite = enrollment.invite(&dc1, None, None, now).unwrap();
    let joined = enrollment.join(&request(&invite), now).unwrap();
    let first = chain(&joined);
    let renewed = enrollment.renew(&dc1, &joined.instance, &csr(|_| {}), now + 12 * HOUR).unwrap();
    assert_eq!(tls::spiffe_id(&renewed[0]).unwrap(), tls::spiffe_id(&first[0]).unwrap());
    assert!(tls::not_after(&renewed[0]).unwrap() > tls::not_after(&first[0]).unwrap());
    let row = &enrollment.agents()[0];
    assert_ne!(Some(&row.certificate), row.previous.as_ref());

    let open = enrollment.invite(&dc1, None, None, now).unwrap();
    assert_eq!(enrollment.remove(&dc1, now).unwrap(), 1);
    assert_eq!(enrollment.admit(&dc1, &joined.instance), None);
    assert!(enrollment.renew(&dc1, &joined.instance, &csr(|_| {}), now).is_err());
    let void = enrollment.join(&request(&open), now).unwrap_err();
    assert_eq!(code(&void), refusal::INVALID, "removal voids open invites");
    assert!(matches!(enrollment.remove(&dc1, now), Err(EnrollError::UnknownAgent(_))));

    // The name may come back, the instance may not.
    let again = enrollment.invite(&dc1, None, None, now).unwrap();
    let mut old = request(&again);
    old.instance = joined.instance.to_string();
    assert_eq!(code(&enrollment.join(&old, now).unwrap_err()), refusal::BAD_REQUEST);
    let new = enrollment.join(&request(&again), now).unwrap();
    assert!(enrollment.admit(&dc1, &new.instance).is_some());
    assert_eq!(enrollment.admit(&dc1, &joined.instance), None);
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
    first.remove(&gone, now).unwrap();
    let held = Enrollment::open(settings(dir.path()), now).unwrap_err();
    assert!(matches!(held, EnrollError::Held(_)), "{held}");
    let (agents, invites) = (first.agents(), first.invites());
    drop(first);

    let second = Enrollment::open(settings(dir.path()), now).unwrap();
    assert_eq!((second.agents(), second.invites()), (agents, invites));
    assert!(second.admit(&kept, &instance).is_some());
    assert_eq!(second.admit(&gone, &removed), None);
    assert!(matches!(second.join(&request(&used), now), Err(JoinRefused::Used { .. })));
    second.join(&request(&waiting), now).unwrap();
    // Neither secret nor invite is on the disk.
    let stored = std::fs::read(dir.path().join("state/postern.redb")).unwrap();
    assert!(!stored.windows(waiting.secret.len()).any(|window| window == &waiting.secret[..]));
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

/// A relay's end and an agent's end of one join connection.
async fn connected(
    server: &quinn::Endpoint,
    pin: [u8; 32],
) -> Result<(Link, Link, quinn::Endpoint), quinn::ConnectionError> {
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = QuicClientConfig::try_from(tls::join_config(pin, tls::ALPN_JOIN).unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let connecting = client.connect_with(config, server.local_addr().unwrap(), "localhost").unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (agent, relay) = tokio::join!(connecting, accepting);
    Ok((Link::quic(relay?), Link::quic(agent?), client))
}

async fn ask(agent: &Link, message: &[u8]) -> JoinAnswer {
    let (mut send, mut recv) = agent.open().await.unwrap();
    send.send(&mut [bytes::Bytes::copy_from_slice(message)]).await.unwrap();
    send.finish();
    let answer = recv.message(JOIN_LIMIT).await.unwrap().unwrap();
    codec::decode(&answer).unwrap()
}

#[tokio::test]
async fn joins_over_quic_are_answered_audited_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = Arc::new(enrollment(dir.path()));
    let now = SystemTime::now();
    let (chain, key) = enrollment.relay_identity(&"relay".parse().unwrap(), now).unwrap();
    let identity = Arc::new(tls::Identity::new(chain, key).unwrap());
    let config = tls::relay_config(identity, enrollment.root(), &[tls::ALPN_TUNNEL, tls::ALPN_JOIN]).unwrap();
    let config = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let log = dir.path().join("audit.jsonl");
    let rotate = Rotate { size: None, keep_for: None };
    let to = Destination::File(log.clone());
    let settings = LogSettings { to, rotate, reserve: 0, full: WhenFull::Block };
    Chain::create(&audit::chain_path(dir.path())).unwrap();
    let audit = Audit::open(&AuditSettings { log: settings, redact: Redact::default() }, dir.path()).unwrap();
    let joins = JoinLimits::default();

    let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
    assert!(connected(&endpoint, [0; 32]).await.is_err(), "a relay with another root is not spoken to");
    let good = codec::encoded(&request(&invite), JOIN_LIMIT).unwrap();
    let mut answers = Vec::new();
    let garbage = [0, 0, 0, 3, 0xff, 0xff, 0xff];
    let huge = [0, 1, 0, 0];
    for message in [&good[..], &good[..], &garbage, &huge] {
        let (relay, agent, _client) = connected(&endpoint, invite.pin).await.unwrap();
        let served = serve_join(relay, enrollment.clone(), &joins, &audit);
        let (_, answer) = tokio::join!(served, ask(&agent, message));
        answers.push(answer);
    }
    assert!(matches!(answers[0], JoinAnswer::Granted { .. }));
    let codes: Vec<_> = answers[1..]
        .iter()
        .map(|answer| match answer {
            JoinAnswer::Refused { code, .. } => *code,
            JoinAnswer::Granted { .. } => 0,
        })
        .collect();
    assert_eq!(codes, [refusal::INVALID, refusal::BAD_REQUEST, refusal::BAD_REQUEST]);
    let mut last = 0;
    for _ in 0..30 {
        let (relay, agent, _client) = connected(&endpoint, invite.pin).await.unwrap();
        let served = serve_join(relay, enrollment.clone(), &joins, &audit);
        let (_, answer) = tokio::join!(served, ask(&agent, &good));
        let JoinAnswer::Refused { code, .. } = answer else { panic!("{answer:?}") };
        last = code;
    }
    assert_eq!(last, refusal::TOO_MANY);

    audit.close();
    let lines = std::fs::read_to_string(&log).unwrap();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 1 + 34, "one line per join, behind the file's own");
    assert!(lines.lines().nth(1).unwrap().contains("\"granted\""));
    assert!(
        lines.lines().nth(2).unwrap().contains("used before"),
        "the operator learns what the agent does not"
    );
    assert!(!lines.contains(&invite.to_string()));
}
