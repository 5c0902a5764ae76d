//! What rotations leave on the disk: whole authorities whenever a crash comes, a new root's key where the old one is kept, and files that
//! the relay's user can read.

use std::os::unix::fs::MetadataExt;

use postern_base::file::Access;

use super::*;

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
