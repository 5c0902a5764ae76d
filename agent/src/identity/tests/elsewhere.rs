//! An identity in files that others write.

use super::*;

/// Writes the three files; the bundle holds the roots of `bundle`.
fn written(files: &Files, ca: &TestCa, id: &str, bundle: &[&TestCa]) {
    let request = Renewal::new().unwrap();
    let chain = proof::parsed(ca.day(request.csr(), id)).unwrap();
    let pem = |certificates: &[CertificateDer<'_>]| {
        certificates.iter().fold(String::new(), |text, der| {
            use base64::Engine;
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("{text}-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        })
    };
    let roots: Vec<_> = bundle.iter().map(|ca| ca.root()).collect();
    fs::write(&files.cert, pem(&chain)).unwrap();
    fs::write(&files.bundle, pem(&roots)).unwrap();
    file::write_atomic(&files.key, request.key().serialize_pem().as_bytes(), Access::Private).unwrap();
}

fn files(dir: &Path) -> Files {
    Files { cert: dir.join("cert.pem"), key: dir.join("key.pem"), bundle: dir.join("bundle.pem") }
}

#[test]
fn files_are_taken_and_taken_again_when_they_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, next) = (TestCa::new(), TestCa::new());
    let files = files(dir.path());
    written(&files, &ca, ID, &[&ca, &next]);
    let identity = AgentIdentity::elsewhere(&files).unwrap();
    assert_eq!((identity.name().as_str(), identity.instance().as_str()), ("dc1", "01jc8"));
    assert_eq!(identity.roots(), [ca.root(), next.root()]);
    assert_eq!(identity.tls().chain().len(), 2, "what is in the bundle is not shown");
    assert_eq!(identity.renew_in(SystemTime::now()), None);
    assert!(matches!(identity.renewal(), Err(IdentityError::Elsewhere)));
    identity.saw(12_345);
    assert_eq!(identity.floor(), 0, "such a number is not ours");

    let before = identity.tls().chain();
    written(&files, &next, ID, &[&next]);
    let changes = identity.changes();
    identity.read_again().unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(identity.roots(), [next.root()]);
    assert_ne!(identity.tls().chain(), before);
}

#[test]
fn what_is_not_whole_or_another_agents_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (TestCa::new(), TestCa::new());
    let files = files(dir.path());
    assert!(matches!(AgentIdentity::elsewhere(&files), Err(IdentityError::Io { .. })));
    written(&files, &ca, ID, &[&ca]);
    let identity = AgentIdentity::elsewhere(&files).unwrap();
    let before = identity.tls().chain();

    let refused = |why: &str| {
        let error = identity.read_again().unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(identity.tls().chain(), before, "{why}");
        assert_eq!(identity.roots(), [ca.root()], "{why}");
    };
    written(&files, &ca, "spiffe://example.com/agent/dc2/01jc8", &[&ca]);
    refused("dc2");
    written(&files, &ca, "spiffe://example.com/relay/relay", &[&ca]);
    refused("belongs to a relay");
    written(&files, &ca, ID, &[&other]);
    refused("cert.pem");
    written(&files, &ca, ID, &[&ca]);
    // The key is another's: the certificate is already changed, or not yet.
    file::write_atomic(&files.key, Renewal::new().unwrap().key().serialize_pem().as_bytes(), Access::Private)
        .unwrap();
    assert!(identity.read_again().is_err());
    written(&files, &ca, ID, &[&ca]);
    fs::write(&files.bundle, "").unwrap();
    refused("no certificate");
    written(&files, &ca, ID, &[&ca]);
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    refused("chmod 600");
}
