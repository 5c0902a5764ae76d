//! Names, files and whom a command means.

use proptest::prelude::*;

use super::*;
use crate::session::vault::Keyring;
use crate::testing::{session, settings};

fn name(text: &str) -> ProfileName {
    text.parse().unwrap()
}

#[test]
fn names_are_fit_for_files_and_terminals() {
    for good in
        ["work", "relay.example.com", "relay.example.com:8443", "127.0.0.1:1", "[::1]:8443", "a_b-c.d"]
    {
        assert_eq!(name(good).as_str(), good);
    }
    for bad in
        ["", "Work", "a/b", "../x", ".x", "-x", "a+1", "a b", "relay.example.com:443", &"a".repeat(261)]
    {
        assert!(bad.parse::<ProfileName>().is_err(), "{bad}");
    }
}

#[test]
fn a_relays_own_profile_has_the_files_it_always_had() {
    for (relay, stem) in [
        ("relay.example.com", "relay.example.com+443"),
        ("https://relay.example.com:8443", "relay.example.com+8443"),
        ("[::1]:8443", "[::1]+8443"),
        ("[::1]", "[::1]+443"),
    ] {
        let relay: RelayUrl = relay.parse().unwrap();
        assert_eq!(ProfileName::of(&relay).stem(), stem);
        assert_eq!(stem, format!("{}+{}", relay.host(), relay.port()));
        assert_eq!(ProfileName::of_stem(stem), Some(ProfileName::of(&relay)));
    }
    for other in ["current", "x+y", "+443", "a+b+443"] {
        assert_eq!(ProfileName::of_stem(other), None, "{other}");
    }
}

proptest! {
    #[test]
    fn no_two_profiles_share_a_file(text in "[a-z0-9.:_\\[\\]-]{1,12}(:[0-9]{1,5})?") {
        if let Ok(name) = text.parse::<ProfileName>() {
            prop_assert_eq!(ProfileName::of_stem(&name.stem()), Some(name));
        }
    }
}

#[test]
fn the_account_is_the_one_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
    let (here, there): (RelayUrl, RelayUrl) =
        ("relay.example.com".parse().unwrap(), "other.example.com:8443".parse().unwrap());
    let (work, home) = (name("work"), name("home"));
    assert!(matches!(vault.account(None, None), Err(ProfileError::Nobody)));
    assert!(matches!(vault.account(Some(&work), None), Err(ProfileError::Missing(_))));
    assert_eq!(vault.account(None, Some(&here)).unwrap(), Account::of(here.clone()));

    let keep = |profile: &ProfileName, relay: &RelayUrl| {
        vault.save(profile, &session(relay.clone(), "https://id.example.com", 60)).unwrap();
    };
    keep(&work, &here);
    let found = vault.account(None, Some(&here)).unwrap();
    assert_eq!(found.profile, work, "the only one there");
    assert_eq!(found.login(), "postern login relay.example.com --profile work");
    assert_eq!(found.to_string(), "relay.example.com as work");
    keep(&home, &here);
    let several = vault.account(None, Some(&here)).unwrap_err();
    assert_eq!(several.to_string(), "there are several profiles for relay.example.com: home, work");
    vault.set_current(&home).unwrap();
    assert_eq!(vault.account(None, Some(&here)).unwrap().profile, home);
    assert_eq!(vault.account(None, None).unwrap(), Account { profile: home, relay: here.clone() });
    keep(&ProfileName::of(&there), &there);
    assert_eq!(vault.account(None, Some(&there)).unwrap(), Account::of(there.clone()));
    assert_eq!(vault.account(Some(&work), None).unwrap().relay, here);
    assert!(matches!(vault.account(Some(&work), Some(&there)), Err(ProfileError::Elsewhere { .. })));

    vault.set_current(&ProfileName::of(&there)).unwrap();
    vault.forget(&ProfileName::of(&there)).unwrap();
    assert_eq!(vault.account(None, None).unwrap(), Account::of(there), "logged out of it");
}
