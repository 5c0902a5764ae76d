//! Backups of made-up relays and their ways back: what comes in again, what never does, and what is refused.

mod refused;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use postern_base::id::{AgentName, InstanceId};
use postern_wire::join::JoinRequest;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::enroll::{CaSource, NewRootKey, Who, root_key, sign};
use crate::session::LockOn;

fn settings(dir: &Path) -> EnrollSettings {
    EnrollSettings {
        state: dir.to_owned(),
        trust_domain: "example.com".parse().unwrap(),
        ca: CaSource::Ours,
        cert_ttl: Duration::from_hours(24),
        invite_ttl: Duration::from_mins(15),
        recover: Duration::from_hours(7 * 24),
    }
}

fn opened(dir: &Path) -> Enrollment {
    Enrollment::init(&settings(dir), SystemTime::now()).unwrap();
    Enrollment::open(settings(dir)).unwrap()
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn joined(enrollment: &Enrollment, name: &str) -> InstanceId {
    let now = SystemTime::now();
    let invite = enrollment.invite(&agent(name), None, None, now).unwrap();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let instance = InstanceId::random();
    let request = JoinRequest {
        secret: invite.secret.to_vec(),
        csr: csr.der().to_vec(),
        instance: instance.to_string(),
    };
    enrollment.join(&request, now).unwrap();
    instance
}

fn is_in(enrollment: &Enrollment, name: &str, instance: &InstanceId) -> bool {
    enrollment.standing(&agent(name), instance).is_ok()
}

fn taken(dir: &Path, enrollment: &Enrollment) -> Archive {
    let bytes = gather(&settings(dir), enrollment, "https://relay.example.com", SystemTime::now()).unwrap();
    Archive::read(&bytes.write().unwrap()).unwrap()
}

fn into_directory(
    archive: &Archive,
    settings: &EnrollSettings,
    now: SystemTime,
) -> Result<(Restored, Option<ChainKey>), BackupError> {
    let mut restore = Restore::begin(archive, settings)?;
    let key = restore.log()?;
    Ok((restore.finish(now)?, key))
}

/// A new issuing CA, or a new root with one.
fn rotate(relay: &Enrollment, new_root: bool) {
    let now = SystemTime::now();
    let dir = relay.settings().state.join("ca");
    let prepared = relay.prepare_rotation(new_root).unwrap();
    let (path, key) = root_key(&prepared, &dir, None).unwrap();
    let next = new_root.then(|| NewRootKey::make(&dir).unwrap());
    let domain = "example.com".parse().unwrap();
    let signed = sign(&prepared, &domain, (&key, &path), next.as_ref().map(NewRootKey::key), now).unwrap();
    relay.rotate(&signed, now).unwrap();
    if let Some(next) = next {
        next.keep().unwrap();
    }
}

#[test]
fn a_running_relay_gets_back_what_it_forgot_and_lets_nobody_in_who_was_put_out() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let relay = opened(dir.path());
    let [early, kept, late] = ["early", "kept", "late"].map(|name| joined(&relay, name));
    let suspended = joined(&relay, "suspended");
    relay.remove(&Who::from(agent("early")), now).unwrap();
    relay.suspend(&Who::from(agent("suspended")), "lost", Some(0), now).unwrap();
    let lock = relay.lock(LockOn::All, None, "an incident", 0, now).unwrap();
    let open = relay.invite(&agent("new"), None, None, now).unwrap();
    let archive = taken(dir.path(), &relay);

    // After the backup: one more is removed, one enrolled, one resumed, the lock and the invite are gone.
    relay.remove(&Who::from(agent("late")), now).unwrap();
    let newer = joined(&relay, "newer");
    relay.resume(&Who::from(agent("suspended"))).unwrap();
    relay.unlock(lock.id).unwrap();
    relay.remove(&Who::from(agent("new")), now).unwrap();
    let restored = into_running(&archive, &settings(dir.path()), &relay, now).unwrap();
    for (name, instance, is_let_in) in [
        ("early", &early, false),
        ("late", &late, false),
        ("suspended", &suspended, false),
        ("kept", &kept, true),
        ("newer", &newer, true),
    ] {
        assert_eq!(is_in(&relay, name, instance), is_let_in, "{name}");
    }
    assert_eq!(relay.locks(now), [lock]);
    assert_eq!(restored.merged.suspended, ["suspended"]);
    assert_eq!((restored.merged.instances, restored.merged.removed.len()), (0, 0));
    assert!(!restored.afresh && restored.files.is_empty() && restored.older_authority.is_none());
    let again = JoinRequest {
        secret: open.secret.to_vec(),
        csr: CertificateParams::default()
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec(),
        instance: InstanceId::random().to_string(),
    };
    assert!(relay.join(&again, now).is_err(), "a voided invite came back");
    // All of it is on the disk.
    drop(relay);
    let relay = Enrollment::open(settings(dir.path())).unwrap();
    assert!(!is_in(&relay, "late", &late) && is_in(&relay, "kept", &kept));
}

#[test]
fn a_database_copied_back_by_hand_is_put_right_by_a_later_backup() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let relay = opened(dir.path());
    let gone = joined(&relay, "gone");
    let yesterday = relay.copy().unwrap();
    relay.remove(&Who::from(agent("gone")), now).unwrap();
    let archive = taken(dir.path(), &relay);
    drop(relay);
    fs::write(dir.path().join(DATABASE), yesterday).unwrap();
    let relay = Enrollment::open(settings(dir.path())).unwrap();
    assert!(is_in(&relay, "gone", &gone));
    let restored = into_running(&archive, &settings(dir.path()), &relay, now).unwrap();
    assert!(!is_in(&relay, "gone", &gone));
    assert_eq!(restored.merged.removed, [format!("gone/{gone}")]);
}

#[test]
fn a_new_machine_gets_everything_but_the_roots_key_and_a_chain_of_its_own() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let relay = opened(old.path());
    fs::create_dir(old.path().join("tls")).unwrap();
    fs::write(old.path().join("tls/key.pem"), "key").unwrap();
    let instance = joined(&relay, "dc1");
    let archive = taken(old.path(), &relay);
    let names: Vec<_> = archive.files().keys().cloned().collect();
    assert!(names.iter().all(|name| !name.contains("root.key") && !name.contains("audit.key")), "{names:?}");

    let state = new.path().join("state");
    let (restored, key) = into_directory(&archive, &settings(&state), now).unwrap();
    assert!(restored.afresh && key.is_some());
    assert_eq!(restored.merged.instances, 1);
    for (name, mode) in [("ca/issuing.key", 0o600), ("tls/key.pem", 0o600), (DATABASE, 0o600), (ROOT, 0o644)]
    {
        let found = fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    let relay = Enrollment::open(settings(&state)).unwrap();
    assert!(is_in(&relay, "dc1", &instance));
    assert_eq!(fs::read(state.join(ISSUING)).unwrap(), fs::read(old.path().join(ISSUING)).unwrap());
    drop(relay);
    // Done again it changes nothing.
    let (again, key) = into_directory(&archive, &settings(&state), now).unwrap();
    assert!(!again.afresh && again.files.is_empty() && key.is_none());
    assert_eq!(again.merged, Merged::default());
    let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_root_that_is_believed_no_more_in_a_backup_is_not_believed_after_it() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = SystemTime::now();
    let relay = opened(old.path());
    rotate(&relay, true);
    let during = taken(old.path(), &relay);
    relay.finish_rotation(true, now).unwrap();
    let after = taken(old.path(), &relay);
    let state = settings(new.path());
    into_directory(&during, &state, now).unwrap();
    let running = Enrollment::open(state.clone()).unwrap();
    assert_eq!(running.trusted().len(), 2);
    let refused = into_running(&after, &state, &running, now).unwrap_err();
    assert!(matches!(refused, BackupError::NewerAuthority { .. }), "{refused}");
    drop(running);
    into_directory(&after, &state, now).unwrap();
    assert_eq!(Enrollment::open(state.clone()).unwrap().trusted(), relay.trusted());
    assert!(!new.path().join(OVERLAP).exists());
    // And the earlier one does not bring it back.
    let (again, _) = into_directory(&during, &state, now).unwrap();
    assert_eq!(again.older_authority, Some(relay.epoch()));
    assert_eq!(Enrollment::open(state).unwrap().trusted(), relay.trusted());
}

#[test]
fn a_restore_that_a_crash_cuts_leaves_one_authority_or_the_other() {
    let old = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let relay = opened(old.path());
    rotate(&relay, true);
    let during = taken(old.path(), &relay);
    relay.finish_rotation(true, now).unwrap();
    // Of this root the overlap before knows nothing.
    rotate(&relay, true);
    relay.finish_rotation(true, now).unwrap();
    let after = taken(old.path(), &relay);
    for (aside, moved) in
        [("staged", 0), ("committed", 0), ("committed", 1), ("committed", 2), ("committed", 4)]
    {
        let new = tempfile::tempdir().unwrap();
        let state = settings(new.path());
        into_directory(&during, &state, now).unwrap();
        let before = Enrollment::open(state.clone()).unwrap().trusted();
        // As the exchange of the files leaves it when it is cut there.
        let aside_dir = new.path().join("ca").join(aside);
        fs::create_dir(&aside_dir).unwrap();
        let nothing = Zeroizing::new(Vec::new());
        let names = [ROOT, ISSUING, "ca/issuing.key", OVERLAP, SEED];
        for (turn, name) in names.into_iter().enumerate() {
            let bytes = after.files().get(name).unwrap_or(&nothing);
            let file = name.strip_prefix("ca/").unwrap();
            let place = new.path().join(name);
            if turn >= moved {
                file::write_atomic(&aside_dir.join(file), bytes, Access::Private).unwrap();
            } else if bytes.is_empty() {
                fs::remove_file(place).unwrap();
            } else {
                file::write_atomic(&place, bytes, Access::Private).unwrap();
            }
        }
        let found = Enrollment::open(state.clone()).unwrap().trusted();
        let expected = if aside == "staged" { before } else { relay.trusted() };
        assert_eq!(found, expected, "{aside}, {moved} moved");
        into_directory(&after, &state, now).unwrap();
        assert_eq!(Enrollment::open(state).unwrap().trusted(), relay.trusted(), "{aside}, {moved} moved");
    }
}
