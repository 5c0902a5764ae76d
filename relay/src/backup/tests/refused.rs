//! Backups that change nothing: of others, damaged, or put back where a link waits.

use super::*;

#[test]
fn backups_of_others_and_damaged_ones_change_nothing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let (first, second) = (opened(one.path()), opened(two.path()));
    let archive = taken(one.path(), &first);
    let other = into_running(&archive, &settings(two.path()), &second, now).unwrap_err();
    assert!(matches!(other, BackupError::OtherAuthority { .. }), "{other}");
    let elsewhere = EnrollSettings { trust_domain: "example.net".parse().unwrap(), ..settings(one.path()) };
    let other = into_running(&archive, &elsewhere, &first, now).unwrap_err();
    assert!(matches!(other, BackupError::OtherDomain { .. }), "{other}");

    let bytes = archive.write().unwrap();
    for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        assert!(Archive::read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Archive::read(b"not a backup").is_err());
    let mut files = Files::new();
    files.insert(DATABASE.to_owned(), Zeroizing::new(b"not a database".to_vec()));
    let bad = Archive::new("https://relay.example.com", "example.com", files, now);
    let failed = into_running(&bad, &settings(one.path()), &first, now).unwrap_err();
    assert!(matches!(failed, BackupError::Enrollment(_)), "{failed}");
    let mut files = Files::new();
    files.insert("ca/root.pem".to_owned(), Zeroizing::new(Vec::new()));
    let without = Archive::new("u", "example.com", files, now).write().unwrap();
    assert!(Archive::read(&without).unwrap_err().to_string().contains(DATABASE));
}

#[test]
fn a_strangers_backup_is_refused_whatever_its_epoch() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let (low, high) = (opened(one.path()), opened(two.path()));
    rotate(&high, false);
    let agents = [joined(&low, "dc1"), joined(&high, "dc1")];
    let archives = [taken(one.path(), &low), taken(two.path(), &high)];
    let mut here = [(one.path(), Some(low)), (two.path(), Some(high))];
    for (theirs, ours) in [(1, 0), (0, 1)] {
        let (dir, relay) = &mut here[ours];
        let before = read_files(dir).unwrap();
        let running = relay.take().unwrap();
        let refused = into_running(&archives[theirs], &settings(dir), &running, now).unwrap_err();
        assert!(matches!(refused, BackupError::OtherAuthority { .. }), "{refused}");
        assert!(!is_in(&running, "dc1", &agents[theirs]) && is_in(&running, "dc1", &agents[ours]));
        drop(running);
        let refused = into_directory(&archives[theirs], &settings(dir), now).unwrap_err();
        assert!(matches!(refused, BackupError::OtherAuthority { .. }), "{refused}");
        assert!(read_files(dir).unwrap() == before, "files were changed");
    }
}

#[test]
fn a_link_of_the_relays_user_is_no_way_to_a_file_of_roots() {
    let (old, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let archive = taken(old.path(), &opened(old.path()));
    let target = root.path().join("target");
    fs::write(&target, "kept").unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let mine = || {
        let new = tempfile::tempdir().unwrap();
        if is_root {
            std::os::unix::fs::chown(new.path(), Some(65534), Some(65533)).unwrap();
        }
        new
    };
    for name in ["ca", "assertion", "tls", DATABASE, "audit.key"] {
        for is_hard in [false, true] {
            let new = mine();
            let place = new.path().join(name);
            if is_hard {
                fs::hard_link(&target, &place).unwrap();
            } else {
                let to = if name.contains('.') { target.as_path() } else { root.path() };
                std::os::unix::fs::symlink(to, &place).unwrap();
            }
            let error = into_directory(&archive, &settings(new.path()), now).unwrap_err();
            assert!(matches!(&error, BackupError::Link(path) if *path == place), "{name}: {error}");
            assert_eq!(fs::read_dir(new.path()).unwrap().count(), 1, "{name}");
        }
    }
    assert_eq!(fs::metadata(&target).unwrap().uid(), fs::metadata(root.path()).unwrap().uid());
    assert_eq!(
        (fs::read_dir(root.path()).unwrap().count(), fs::read(&target).unwrap()),
        (1, b"kept".to_vec())
    );
    if !is_root {
        return;
    }
    // Without any, all that root puts back is the user's.
    let new = mine();
    into_directory(&archive, &settings(new.path()), now).unwrap();
    for dir in [new.path().to_owned(), new.path().join("ca")] {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().uid(), 65534, "{}", entry.path().display());
        }
    }
}

#[test]
fn only_what_belongs_is_taken_from_a_backup() {
    for good in
        [DATABASE, "audit.pseudonyms", "ca/root.pem", "ca/issuing.key", "assertion/17.pem", "tls/key.pem"]
    {
        assert!(archive::belongs(good), "{good}");
    }
    for bad in [
        "audit.key",
        "admin.sock",
        "ca/root.key",
        "ca/root.key.next",
        "ca/../x.pem",
        "../x",
        "/etc/passwd",
        "ca/a/b.pem",
        "ca/.x.pem",
        "other/x.pem",
        "",
        "ca/",
    ] {
        assert!(!archive::belongs(bad), "{bad}");
    }
}
