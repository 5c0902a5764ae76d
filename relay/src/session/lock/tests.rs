use super::*;

/// Of a relay with one issuer and one service.
fn settings(name: &str, iss: &str, service: &str, agent: &str) -> std::sync::Arc<Settings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    let text = format!(
        r#"
version = 1
url = "https://relay.example.com"
[listen]
https = "127.0.0.1:0"
quic = "127.0.0.1:0"
[tls]
mode = "files"
cert = "relay.crt"
key = "relay.key"
[state]
dir = "state"
[agents]
trust_domain = "example.com"
[[issuers]]
name = "{name}"
issuer = "https://{iss}.example.com"
audience = ["https://relay.example.com"]
[services.{service}]
agent = "{agent}"
rules = [{{ allow = "*", to = "* /**" }}]
"#
    );
    std::fs::write(&path, text).unwrap();
    crate::config::load(&path).unwrap().settings
}

#[test]
fn ids_read_as_they_are_shown() {
    for id in [0, 1, u32::MAX, 0x0a0b_0c0d].map(LockId) {
        assert_eq!(id.to_string().parse::<LockId>().unwrap(), id);
        assert_eq!(serde_json::from_value::<LockId>(serde_json::json!(id)).unwrap(), id);
    }
    for bad in ["", "1", "+000000a", "0000000g", "000000001"] {
        assert!(matches!(bad.parse::<LockId>(), Err(LockError::Id(_))), "{bad}");
    }
}

#[test]
fn a_lock_fits_where_its_name_means_what_it_meant() {
    let corp = || "corp".parse().unwrap();
    let name = "ada".to_owned();
    let on_issuer = [
        LockOn::Issuer(corp()),
        LockOn::User { issuer: corp(), name: name.clone() },
        LockOn::Client { issuer: corp(), name },
    ];
    let others = [
        (LockOn::Agent("dc1".parse().unwrap()), settings("corp", "login", "wiki", "dc2")),
        (LockOn::Service("wiki".parse().unwrap()), settings("corp", "login", "docs", "dc1")),
    ];
    let old = settings("corp", "login", "wiki", "dc1");
    let lock = |on: &LockOn| {
        let (reason, id) = (String::new(), LockId(1));
        Lock { id, on: on.clone(), reason, made: 0, expires: None, by: 0 }
    };
    for on in on_issuer {
        assert!(lock(&on).fits(&old, Some(&old)).is_ok());
        let renamed = settings("company", "login", "wiki", "dc1");
        let told = lock(&on).fits(&renamed, None).unwrap_err().to_string();
        assert!(told.contains("lock rm 00000001") && told.contains("keep the name"), "{told}");
        let another = settings("corp", "other", "wiki", "dc1");
        assert!(matches!(lock(&on).fits(&another, Some(&old)), Err(LockError::OtherIssuer { .. })));
    }
    for (on, new) in others {
        assert!(lock(&on).fits(&old, Some(&old)).is_ok());
        assert!(matches!(lock(&on).fits(&new, Some(&old)), Err(LockError::Void { .. })));
    }
    assert!(lock(&LockOn::All).fits(&settings("x", "y", "z", "a"), Some(&old)).is_ok());
}

#[test]
fn the_table_holds_what_is_in_force() {
    let lock = |id, on, expires| {
        let (reason, made, by) = (String::new(), 0, 0);
        Lock { id: LockId(id), on, reason, made, expires, by }
    };
    let service = |name: &str| LockOn::Service(name.parse().unwrap());
    let all = [
        lock(1, service("wiki"), None),
        lock(2, service("billing"), Some(10)),
        lock(3, LockOn::Agent("dc1".parse().unwrap()), Some(20)),
        lock(4, LockOn::Token("00112233445566ff".to_owned()), Some(30)),
    ];
    let at = |now| {
        let locks = Locks::new(all.iter(), now);
        let token = "00112233445566FF".parse().unwrap();
        let wiki = locks.service(&"wiki".parse().unwrap());
        let billing = locks.service(&"billing".parse().unwrap());
        let found = [wiki, billing, locks.agent(&"dc1".parse().unwrap()), locks.token(token)];
        (found.map(|id| id.map_or(0, |id| id.0)), locks.next_end, locks.is_empty())
    };
    assert_eq!(at(9), ([1, 2, 3, 4], Some(10), false));
    assert_eq!(at(10), ([1, 0, 3, 4], Some(20), false));
    assert_eq!(at(30), ([1, 0, 0, 0], None, false));
    assert!(Locks::new(all[1..].iter(), 30).is_empty());
    let everything = [lock(5, LockOn::All, None)];
    let locks = Locks::new(everything.iter(), 0);
    assert_eq!(locks.service(&"wiki".parse().unwrap()), Some(LockId(5)));
    assert!(!locks.is_empty());
}

#[test]
fn a_misspelt_issuer_locks_nobody_in_silence() {
    let settings = settings("dev", "login", "wiki", "dc1");
    let on = |text: &str| Wanted::User(text.to_owned()).resolve(&settings).map(|on| on.to_string());
    for (text, user) in
        [("ada", "ada"), ("dev/ada", "ada"), ("dev/dev2/ada", "dev2/ada"), ("https://a/b", "https://a/b")]
    {
        assert_eq!(on(text).unwrap(), format!("user dev/{user}"), "{text}");
    }
    let refused = on("dev2/ada").unwrap_err().to_string();
    assert!(refused.contains("the issuer here is dev") && refused.contains("dev/dev2/ada"), "{refused}");
}
