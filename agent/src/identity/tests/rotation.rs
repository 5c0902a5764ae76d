//! Authorities that are replaced while an agent lives: it goes on to the next, and never back.

use super::*;

fn renewed(identity: &AgentIdentity, ca: &TestCa) -> Result<(), IdentityError> {
    let renewal = identity.renewal().unwrap();
    let chain = ca.day(renewal.csr(), ID);
    identity.accept(renewal, chain)
}

#[test]
fn an_authority_that_was_replaced_signs_no_more_renewals() {
    let dir = tempfile::tempdir().unwrap();
    let mut ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    assert_eq!(identity.floor(), 0);
    ca.rotate(3);
    renewed(&identity, &ca).unwrap();
    assert_eq!(identity.floor(), 3);
    // Whoever stole the old key signs as the old authority did; the root signed an epoch for it, and that one is past.
    ca.rotate(2);
    let error = renewed(&identity, &ca).unwrap_err().to_string();
    assert!(error.contains("epoch 2"), "{error}");
    assert_eq!(tls::epoch(&identity.tls().chain()), 3);
    ca.rotate(3);
    renewed(&identity, &ca).unwrap();
}

#[test]
fn what_a_relay_showed_is_remembered_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    identity.saw(5);
    identity.saw(4);
    assert_eq!(identity.floor(), 5);
    let loaded = AgentIdentity::load(dir.path()).unwrap();
    assert_eq!(loaded.floor(), 5);
    assert!(renewed(&loaded, &ca).is_err());
}

#[test]
fn a_new_root_is_followed_in_a_renewal_and_the_old_one_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut ca = TestCa::new();
    let identity = stored(dir.path(), &ca);
    let (old, mut before) = (ca.root(), identity.changes());
    ca.replace_root(1);
    assert!(identity.renewal().is_ok());
    renewed(&identity, &ca).unwrap();
    assert!(before.has_changed().unwrap());
    before.mark_unchanged();
    assert_eq!(identity.roots(), [ca.root()]);
    assert_eq!(identity.tls().chain().len(), 2, "leaf and issuing CA: no root and no cross certificate");
    let loaded = AgentIdentity::load(dir.path()).unwrap();
    assert_eq!((loaded.roots(), loaded.floor()), (vec![ca.root()], 1));
    // The next renewal goes on under the new one; one that nobody vouches for is refused.
    renewed(&loaded, &ca).unwrap();
    let mut other = TestCa::new();
    other.replace_root(2);
    assert!(renewed(&loaded, &other).is_err());
    assert_ne!(loaded.roots(), [old]);
}
