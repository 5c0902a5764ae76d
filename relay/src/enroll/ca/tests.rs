//! The authority alone: its rotations, and what it installs and refuses.

mod disk;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use postern_base::id::InstanceId;

use super::files::{ISSUING, ISSUING_KEY, OVERLAP, ROOT, ROOT_KEY, SEED};
use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn domain() -> TrustDomain {
    "example.com".parse().unwrap()
}

fn agent_id() -> SpiffeId {
    SpiffeId::Agent { domain: domain(), name: "dc1".parse().unwrap(), instance: InstanceId::random() }
}

fn relay_id() -> SpiffeId {
    SpiffeId::Relay { domain: domain(), name: "relay".parse().unwrap() }
}

fn open(dir: &Path) -> Ca {
    Ca::open(dir, CaSource::Ours, &domain()).unwrap()
}

fn init(dir: &Path) -> Ca {
    Ca::init(dir, &CaSource::Ours, &domain(), SystemTime::now()).unwrap();
    open(dir)
}

fn issue(ca: &Ca) -> Issued {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    ca.agent(&agent_id(), request.der(), HOUR, SystemTime::now()).unwrap()
}

/// As the command does it.
fn rotate(ca: &Ca, root: bool) {
    let prepared = ca.prepare(root).unwrap();
    let (path, key) = root_key(&prepared, &ca.dir, None).unwrap();
    let next = root.then(|| NewRootKey::make(&ca.dir).unwrap());
    let next_key = next.as_ref().map(NewRootKey::key);
    let signed = sign(&prepared, &domain(), (&key, &path), next_key, SystemTime::now()).unwrap();
    ca.install(&signed, SystemTime::now()).unwrap();
    next.map(|next| next.keep().unwrap());
}

/// Whether a relay of `ca` is believed by an agent with this root and floor.
fn believed(ca: &Ca, root: &CertificateDer<'static>, floor: u64) -> bool {
    let (chain, _) = ca.relay(&relay_id(), HOUR, SystemTime::now()).unwrap();
    let behind = tls::epoch(&chain) < floor;
    // A relay's certificate is for serving: what stands above it is judged with an agent's.
    let mut chain = chain;
    chain[0] = issue(ca).chain[0].clone();
    let chains = Roots::new(std::slice::from_ref(root)).unwrap().verify(&chain, SystemTime::now()).is_ok();
    chains && !behind
}

#[test]
fn issuing_cas_follow_each_other_while_old_certificates_hold() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let (root, secret, before) = (ca.root(), ca.derived(b"x"), issue(&ca));
    assert_eq!((ca.epoch(), before.epoch, before.chain.len()), (1, 1, 3));
    let key = fs::read(dir.path().join(ISSUING_KEY)).unwrap();
    let mut epoch = ca.epoch();
    for _ in 0..2 {
        rotate(&ca, false);
        assert!(ca.epoch() > epoch, "{} after {epoch}", ca.epoch());
        epoch = ca.epoch();
        let issued = issue(&ca);
        assert_eq!((ca.epoch(), issued.epoch, issued.chain.len()), (epoch, epoch, 3));
        assert_eq!(tls::epoch(&issued.chain), epoch);
        assert_eq!(issued.key, tls::pin(&issued.chain[0]).unwrap());
        assert_eq!(issued.serial, tls::serial(&issued.chain[0]).unwrap());
        assert!(believed(&ca, &root, epoch) && !believed(&ca, &root, epoch + 1));
    }
    assert_eq!(
        ca.vouches(&before.chain, SystemTime::now()).unwrap().shown.epoch,
        1,
        "judged by its key then"
    );
    assert_ne!(fs::read(dir.path().join(ISSUING_KEY)).unwrap(), key, "the old key is gone from the disk");
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!([ISSUING_KEY, ROOT_KEY, SEED, ISSUING].map(mode), [0o600, 0o600, 0o600, 0o644]);
    drop(ca);
    let ca = open(dir.path());
    assert_eq!((ca.epoch(), ca.root(), ca.derived(b"x")), (epoch, root, secret));
}

#[test]
fn roots_follow_each_other_with_an_overlap_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let (old, before) = (ca.root(), issue(&ca));
    let old_key = fs::read(dir.path().join(ROOT_KEY)).unwrap();
    assert!(matches!(ca.finish(), Err(CaError::NoOverlap)));
    rotate(&ca, true);
    let (new, epoch) = (ca.root(), ca.epoch());
    assert!(epoch > 1);
    assert_ne!((&old, &old_key), (&new, &fs::read(dir.path().join(ROOT_KEY)).unwrap()));
    let check = |ca: &Ca| {
        let after = issue(ca);
        assert_eq!(
            (ca.epoch(), after.chain.len()),
            (epoch, 4),
            "one more would be too long for agents of before"
        );
        assert_eq!(tls::successor(&old, &after.chain), Some(new.clone()));
        assert!(believed(ca, &old, epoch) && believed(ca, &new, epoch));
        let (shown, _) = ca.relay(&relay_id(), HOUR, SystemTime::now()).unwrap();
        let pins = [tls::pin(&old).unwrap(), tls::pin(&new).unwrap()];
        assert!(pins.iter().all(|pin| tls::pinned_root(pin, &shown).is_some()), "invites to either are good");
        for chain in [&before.chain, &after.chain] {
            assert!(ca.vouches(chain, SystemTime::now()).is_ok());
        }
        let report = ca.report(SystemTime::now());
        assert!(report.overlap && report.root_key.is_some());
        assert_eq!(report.certificates.iter().map(|row| row.epoch).collect::<Vec<_>>(), [epoch, 0, epoch]);
    };
    check(&ca);
    drop(ca);
    let ca = open(dir.path());
    check(&ca);
    assert!(matches!(ca.prepare(true), Err(CaError::Overlap)), "one at a time");

    // The issuing CA may be replaced meanwhile, by the new root's key.
    rotate(&ca, false);
    let epoch = ca.epoch();
    assert!(believed(&ca, &old, epoch) && believed(&ca, &new, epoch));
    ca.finish().unwrap();
    assert!(!believed(&ca, &old, epoch) && believed(&ca, &new, epoch));
    assert!(ca.vouches(&before.chain, SystemTime::now()).is_err());
    assert!(!dir.path().join(OVERLAP).exists());
    drop(ca);
    let ca = open(dir.path());
    assert_eq!((ca.epoch(), ca.root(), issue(&ca).chain.len()), (epoch, new.clone(), 3));
    // And once more: the next root is of a higher epoch than this one.
    rotate(&ca, true);
    assert_eq!(tls::successor(&new, &issue(&ca).chain), Some(ca.root()));
}

#[test]
fn what_the_root_did_not_sign_for_this_key_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let now = SystemTime::now();
    let signed = |prepared: &Prepared, key: &KeyPair| {
        sign(prepared, &domain(), (key, Path::new("root.key")), None, now)
    };
    let prepared = ca.prepare(false).unwrap();
    let (_, key) = root_key(&prepared, &ca.dir, None).unwrap();
    let stranger = new_key().unwrap();
    assert!(matches!(signed(&prepared, &stranger), Err(CaError::OtherRoot { .. })), "not the root's key");
    let good = signed(&prepared, &key).unwrap();
    // Another preparation makes another key; and each is for one use.
    let again = ca.prepare(false).unwrap();
    assert!(matches!(ca.install(&good, now), Err(CaError::Mismatch(_))));
    assert!(matches!(ca.install(&signed(&again, &key).unwrap(), now), Err(CaError::Superseded)));
    // A root of one's own, with all that belongs to it.
    let prepared = ca.prepare(false).unwrap();
    let own = make::root_params(&domain(), None, now).unwrap().self_signed(&*stranger).unwrap();
    let forged = Prepared { root: own.pem(), ..prepared };
    assert!(ca.install(&signed(&forged, &stranger).unwrap(), now).is_err());
    let prepared = ca.prepare(true).unwrap();
    let forged = Prepared { root: own.pem(), ..prepared };
    let next = new_key().unwrap();
    let forged = sign(&forged, &domain(), (&stranger, Path::new("k")), Some(&next), now).unwrap();
    assert!(matches!(ca.install(&forged, now), Err(CaError::Mismatch(_))));
    // An epoch that is not the next one.
    let prepared = ca.prepare(false).unwrap();
    let skipped = Prepared { epoch: prepared.epoch + 5, ..prepared };
    assert!(matches!(ca.install(&signed(&skipped, &key).unwrap(), now), Err(CaError::Superseded)));
    assert_eq!(ca.epoch(), 1);
    assert_eq!(open(dir.path()).epoch(), 1);
    assert!(matches!(root_key(&again, &ca.dir, Some(Path::new("/nowhere"))), Err(CaError::Io { .. })));
}

#[test]
fn an_epoch_is_counted_once_and_never_far_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, now) = (init(dir.path()), SystemTime::now());
    // The issuing CA is of an earlier day, as after a restore: what was counted since is behind us all the same.
    let prepared = ca.prepare(false).unwrap();
    assert!(prepared.epoch >= seconds(now), "{}", prepared.epoch);
    let (path, key) = root_key(&prepared, &ca.dir, None).unwrap();
    let signed = |prepared: &Prepared| sign(prepared, &domain(), (&key, &path), None, now);
    for epoch in [seconds(now) + 2 * 3600, u64::MAX] {
        let (key, root) = (prepared.key.clone(), prepared.root.clone());
        let far = Prepared { epoch, key, root, issuing: prepared.issuing.clone() };
        assert!(matches!(signed(&far), Err(CaError::Epoch(_))), "{epoch}");
    }
    ca.install(&signed(&prepared).unwrap(), now).unwrap();
    assert_eq!(ca.epoch(), prepared.epoch);
    // And where the clock was put back, one after the other.
    let earlier = now - Duration::from_hours(24);
    let prepared = ca.prepare(false).unwrap();
    let next = Prepared { epoch: ca.epoch() + 1, ..prepared };
    assert!(sign(&next, &domain(), (&key, &path), None, earlier).is_ok());
}

#[test]
fn directories_of_before_work_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(init(dir.path()));
    // As it was made before there were epochs: none in the name, less depth below the root, no seed.
    let now = SystemTime::now();
    let (root_pem, key) = (dir.path().join(ROOT), files::read_key(&dir.path().join(ROOT_KEY)).unwrap());
    let mut root = make::root_params(&domain(), None, now).unwrap();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    fs::write(&root_pem, root.self_signed(&*key).unwrap().pem()).unwrap();
    let mut issuing = make::root_params(&domain(), None, now).unwrap();
    issuing.distinguished_name = make::common_name("Postern issuing CA of example.com");
    issuing.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let issuing_key = files::read_key(&dir.path().join(ISSUING_KEY)).unwrap();
    let issuer = files::read_certificate(&root_pem).unwrap();
    let issuing =
        issuing.signed_by(&*issuing_key, &Issuer::from_ca_cert_der(&issuer, &*key).unwrap()).unwrap();
    fs::write(dir.path().join(ISSUING), issuing.pem()).unwrap();
    fs::remove_file(dir.path().join(SEED)).unwrap();

    let ca = open(dir.path());
    let before = issue(&ca);
    assert_eq!((ca.epoch(), before.epoch, tls::epoch(&before.chain)), (0, 0, 0));
    rotate(&ca, true);
    assert!(ca.epoch() > 0);
    assert!(believed(&ca, &issuer, ca.epoch()), "a chain of three below a root that was made for two");
    assert!(ca.vouches(&before.chain, now).is_ok() && dir.path().join(SEED).exists());
}

#[test]
fn what_ends_soon_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    fs::remove_file(dir.path().join(ROOT_KEY)).unwrap();
    let day = 24 * HOUR;
    let warnings = |days: u32| ca.report(SystemTime::now() + days * day).warnings.join("\n");
    assert_eq!(warnings(75), "");
    assert!(warnings(77).contains("issuing CA") && warnings(77).contains("ends in 1"), "{}", warnings(77));
    assert!(warnings(91).contains("has expired: run: postern-relay ca rotate --root-key FILE"));
    assert!(warnings(3500).contains("ca rotate --root --root-key"), "{}", warnings(3500));
}
