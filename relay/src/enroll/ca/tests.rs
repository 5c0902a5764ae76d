//! The authority alone: its files, its rotations, and what a crash leaves of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use postern_base::file::Access;
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

/// A directory with another authority of the same root ready to take over, as if it had been staged.
fn two_authorities(dir: &Path) -> Vec<(&'static str, Vec<u8>, Access)> {
    let ca = init(dir);
    let names = [ROOT, OVERLAP, ISSUING, ISSUING_KEY];
    let read = |name: &str| fs::read(dir.join(name)).ok();
    let before = [ROOT, OVERLAP, ISSUING, ISSUING_KEY, ROOT_KEY].map(|name| (name, read(name)));
    rotate(&ca, true);
    let after = names.map(|name| (name, read(name).unwrap(), Access::Private));
    for (name, bytes) in before {
        match bytes {
            Some(bytes) => fs::write(dir.join(name), bytes).unwrap(),
            None => fs::remove_file(dir.join(name)).unwrap(),
        }
    }
    assert_eq!(open(dir).epoch(), 1);
    after.into_iter().collect()
}

#[test]
fn a_crash_at_any_point_leaves_one_authority_whole() {
    let pristine = tempfile::tempdir().unwrap();
    let next = two_authorities(pristine.path());
    let copy = || {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(pristine.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        dir
    };
    let changes: Vec<Change<'_>> =
        next.iter().map(|(name, bytes, access)| (*name, bytes.as_slice(), *access)).collect();
    // Before the marker: any number of files staged.
    for staged in 0..=changes.len() {
        let dir = copy();
        files::stage(dir.path(), &changes[..staged]).unwrap();
        let ca = open(dir.path());
        assert_eq!(ca.epoch(), 1, "{staged} staged");
        rotate(&ca, true);
        assert!(open(dir.path()).epoch() > 1, "what was staged then is in nobody's way");
    }
    // Behind it: any number of files in their places.
    for moved in 0..=changes.len() {
        let dir = copy();
        files::stage(dir.path(), &changes).unwrap();
        let committed = dir.path().join("committed");
        fs::rename(dir.path().join("staged"), &committed).unwrap();
        for (name, _, _) in &changes[..moved] {
            fs::rename(committed.join(name), dir.path().join(name)).unwrap();
        }
        let ca = open(dir.path());
        assert!(ca.epoch() > 1 && ca.report(SystemTime::now()).overlap, "{moved} moved");
        assert!(!committed.exists());
        issue(&ca);
    }
}

#[test]
fn a_new_roots_key_survives_a_crash_before_it_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let prepared = ca.prepare(true).unwrap();
    let (path, key) = root_key(&prepared, &ca.dir, None).unwrap();
    let next = NewRootKey::make(dir.path()).unwrap();
    let signed = sign(&prepared, &domain(), (&key, &path), Some(next.key()), SystemTime::now()).unwrap();
    // Made, and never signed by: the key beside it stays the root's.
    assert!(root_key(&prepared, &ca.dir, None).is_ok_and(|(found, _)| found == path));
    ca.install(&signed, SystemTime::now()).unwrap();
    drop(next);
    let epoch = ca.epoch();
    rotate(&ca, false);
    assert!(ca.epoch() > epoch);
    assert!(!dir.path().join("root.key.next").exists());
}

#[test]
fn a_new_roots_key_stays_with_the_one_that_the_operator_keeps() {
    let (dir, safe) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = init(dir.path());
    let [old, new, newest] =
        ["root.key", "root.key.new", "root.key.new.new"].map(|name| safe.path().join(name));
    fs::rename(dir.path().join(ROOT_KEY), &old).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&old, Some(65534), Some(65533)).unwrap();
    }
    for (from, to) in [(&old, &new), (&new, &newest)] {
        let before = fs::read(from).unwrap();
        let prepared = ca.prepare(true).unwrap();
        let (path, key) = root_key(&prepared, &ca.dir, Some(from)).unwrap();
        let next = NewRootKey::beside(from).unwrap();
        let again = NewRootKey::beside(from).unwrap_err();
        assert!(matches!(again, CaError::NewKeyThere(there) if there == *to));
        let now = SystemTime::now();
        let signed = sign(&prepared, &domain(), (&key, &path), Some(next.key()), now).unwrap();
        ca.install(&signed, now).unwrap();
        assert_eq!(next.keep().unwrap(), *to);
        ca.finish().unwrap();
        let (meta, other) = (fs::metadata(to).unwrap(), fs::metadata(from).unwrap());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_eq!((meta.uid(), meta.gid()), (other.uid(), other.gid()));
        assert_eq!(fs::read(from).unwrap(), before);
        assert!([ROOT_KEY, "root.key.next"].iter().all(|name| !dir.path().join(name).exists()));
    }
}

#[test]
fn what_root_rotates_the_relays_user_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(65534), Some(65533)).unwrap();
    own(dir.path());
    for file in fs::read_dir(dir.path()).unwrap() {
        own(&file.unwrap().path());
    }
    let all_theirs = |at: &Path| {
        let mut files = fs::read_dir(at).unwrap().map(|file| file.unwrap().metadata().unwrap());
        files.all(|meta| (meta.uid(), meta.gid()) == (65534, 65533))
    };
    files::stage(dir.path(), &[(ISSUING, b"x", Access::Public)]).unwrap();
    assert!(all_theirs(dir.path()) && all_theirs(&dir.path().join("staged")));
    rotate(&ca, true);
    assert!(all_theirs(dir.path()));
    // Theirs to put there, not to be followed.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("issuing.pem"), "kept").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("committed")).unwrap();
    assert!(settle(dir.path()).is_err() && elsewhere.path().join("issuing.pem").exists());
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
