//! Sessions in files and in a made-up keyring.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{session, settings};

/// The profile of [`one`].
fn own() -> ProfileName {
    ProfileName::of(&one().relay)
}

fn one() -> Session {
    session("https://relay.example.com:8443".parse().unwrap(), "https://id.example.com", 60)
}

fn vault(dir: &Path, keep: Keep, keyring: Keyring) -> Vault {
    Vault::over(&Settings { keep, ..settings(dir) }, keyring)
}

fn working() -> (Keyring, Arc<Mutex<BTreeMap<String, String>>>) {
    let map = Arc::new(Mutex::new(BTreeMap::new()));
    (Keyring::Fake(Some(map.clone())), map)
}

#[test]
fn a_file_is_private_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state");
    let vault = vault(&dir, Keep::File, Keyring::Fake(None));
    let session = one();
    assert!(vault.load(&own()).unwrap().is_none());
    let Place::File(path) = vault.save(&own(), &session).unwrap() else { panic!() };
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let back = vault.load(&own()).unwrap().unwrap();
    assert_eq!(back.refresh_token.unwrap().0.expose(), "refresh-0");
    assert_eq!(vault.profiles().unwrap(), [own()]);
    assert_eq!(vault.relay_of(&own()).unwrap(), Some(session.relay.clone()));
    vault.set_current(&own()).unwrap();
    assert_eq!(vault.current(), Some(own()));
    vault.unset_current().unwrap();
    assert_eq!(vault.current(), None);
    vault.forget(&own()).unwrap();
    vault.forget(&own()).unwrap();
    assert!(vault.load(&own()).unwrap().is_none() && !path.exists());
}

#[test]
fn what_others_could_read_or_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path(), Keep::File, Keyring::Fake(None));
    let Place::File(path) = vault.save(&own(), &one()).unwrap() else { panic!() };
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let loose = vault.load(&own()).unwrap_err();
    assert!(matches!(loose, VaultError::Loose(_)), "{loose}");
    assert_eq!(Failure::from(loose).fix.unwrap(), format!("run: chmod 600 {}", path.display()));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&path, "{\"session\":{}}").unwrap();
    assert!(matches!(vault.load(&own()), Err(VaultError::Unreadable(_))));
}

#[test]
fn with_a_keyring_no_token_is_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let (keyring, map) = working();
    let vault = vault(dir.path(), Keep::Best, keyring);
    assert_eq!(vault.save(&own(), &one()).unwrap(), Place::Keyring);
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("refresh-0") && !text.contains("access-0"), "{text}");
    }
    assert!(vault.load(&own()).unwrap().is_some());
    assert_eq!(vault.profiles().unwrap().len(), 1);
    let name = map.lock().unwrap().keys().next().unwrap().clone();
    assert!(name.contains("relay.example.com:8443") && name.contains(&dir.path().display().to_string()));
    vault.forget(&own()).unwrap();
    assert!(map.lock().unwrap().is_empty());
}

#[test]
fn without_a_keyring_it_is_a_file_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        vault(dir.path(), Keep::Best, Keyring::Fake(None)).save(&own(), &one()),
        Ok(Place::File(_))
    ));
    assert!(matches!(
        vault(dir.path(), Keep::Os, Keyring::Fake(None)).save(&own(), &one()),
        Err(VaultError::Keyring(_))
    ));
    let nowhere = vault(dir.path(), Keep::Nowhere, Keyring::Fake(None));
    assert!(matches!(nowhere.save(&own(), &one()), Err(VaultError::Nowhere)));
    assert!(nowhere.load(&own()).unwrap().is_none(), "a session of another mode is not used");
}

#[test]
fn a_session_that_moves_to_a_file_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (keyring, map) = working();
    vault(dir.path(), Keep::Best, keyring.clone()).save(&own(), &one()).unwrap();
    vault(dir.path(), Keep::File, keyring).save(&own(), &one()).unwrap();
    assert!(map.lock().unwrap().is_empty());
}
