//! Suspension, resumption and removal, by name and by instance; and what older databases hold.

use super::super::store::InstanceRecord;
use super::super::suspend::MAX_REASON;
use super::*;

/// Two replicas of `dc1`.
fn replicas(enrollment: &Enrollment, now: SystemTime) -> [InstanceId; 2] {
    [(); 2].map(|()| {
        let invite = enrollment.invite(&agent("dc1"), None, None, now).unwrap();
        enrollment.join(&request(&invite), now).unwrap().instance
    })
}

#[test]
fn one_replica_is_kept_out_without_the_other_and_through_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let (now, dc1) = (SystemTime::now(), agent("dc1"));
    let [first, second] = replicas(&enrollment, now);
    let who = Who::instance(&dc1, &first);
    let given = enrollment.suspend(&who, " stolen disk ", Some(1000), now).unwrap();
    assert_eq!((given.reason.as_str(), given.by), ("stolen disk", Some(1000)));
    drop(enrollment);

    let enrollment = Enrollment::open(settings(dir.path())).unwrap();
    let barred = enrollment.standing(&dc1, &first).unwrap_err();
    assert_eq!(barred, Barred::Suspended { who: who.clone(), reason: "stolen disk".into() });
    assert!(barred.to_string().contains(&format!("agent resume dc1/{first}")), "{barred}");
    assert!(enrollment.standing(&dc1, &second).is_ok());
    let renewed = renew(&enrollment, &first, &csr(|_| {}), now).unwrap_err();
    assert!(matches!(renewed, EnrollError::Barred(Barred::Suspended { .. })), "{renewed}");
    renew(&enrollment, &second, &csr(|_| {}), now).unwrap();
    let rows = enrollment.agents();
    let marked: Vec<_> = rows.iter().map(|row| (row.instance == first, row.suspended.clone())).collect();
    assert!(marked.contains(&(true, Some(given.clone()))) && marked.contains(&(false, None)), "{marked:?}");

    let all = [dc1.clone()];
    assert!(!enrollment.are_suspended(&all), "the other is let in");
    enrollment.suspend(&Who::instance(&dc1, &second), "too", None, now).unwrap();
    assert!(enrollment.are_suspended(&all));
    for other in ["dc2", "dc0", "dc", "dc11", "a"] {
        assert!(!enrollment.are_suspended(&[dc1.clone(), agent(other)]), "nobody put {other} out");
    }
    enrollment.resume(&Who::instance(&dc1, &second)).unwrap();

    let by_name = enrollment.resume(&dc1.clone().into()).unwrap_err();
    assert!(by_name.to_string().ends_with(&format!("these are: dc1/{first}")), "{by_name}");
    assert_eq!(enrollment.resume(&who).unwrap(), given);
    assert!(enrollment.standing(&dc1, &first).is_ok());
    assert!(matches!(enrollment.resume(&who), Err(EnrollError::NotSuspended(_))));
}

#[test]
fn a_suspended_name_keeps_out_whoever_joins_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let (now, dc1) = (SystemTime::now(), agent("dc1"));
    let open = enrollment.invite(&dc1, None, None, now).unwrap();
    let name = Who::from(dc1.clone());
    enrollment.suspend(&name, "moved", None, now).unwrap();
    let refused = enrollment.join(&request(&open), now).unwrap_err();
    assert_eq!(code(&refused), refusal::SUSPENDED);
    enrollment.resume(&name).unwrap();
    let instance = enrollment.join(&request(&open), now).unwrap().instance;
    enrollment.suspend(&name, "moved", None, now).unwrap();
    assert!(enrollment.standing(&dc1, &instance).is_err());

    for bad in ["", "  ", &"x".repeat(MAX_REASON + 1)] {
        assert!(matches!(enrollment.suspend(&name, bad, None, now), Err(EnrollError::Reason)), "{bad:?}");
    }
    for unknown in ["dc2", "dc1/other", "dc2/x"] {
        let unknown = enrollment.suspend(&unknown.parse().unwrap(), "r", None, now).unwrap_err();
        assert!(matches!(unknown, EnrollError::UnknownAgent(_)), "{unknown}");
    }
}

#[test]
fn one_replica_is_removed_without_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let (now, dc1) = (SystemTime::now(), agent("dc1"));
    let [first, second] = replicas(&enrollment, now);
    let open = enrollment.invite(&dc1, None, None, now).unwrap();
    let who = Who::instance(&dc1, &first);
    enrollment.suspend(&who, "gone", None, now).unwrap();
    assert_eq!(enrollment.remove(&who, now).unwrap(), 1);
    assert_eq!(enrollment.standing(&dc1, &first), Err(Barred::NotEnrolled(dc1.clone())));
    assert!(enrollment.standing(&dc1, &second).is_ok());
    assert_eq!(enrollment.suspensions(), [], "it needs none any more");
    enrollment.join(&request(&open), now).unwrap();
    assert!(matches!(enrollment.remove(&who, now), Err(EnrollError::UnknownAgent(_))));

    enrollment.suspend(&dc1.clone().into(), "all of them", None, now).unwrap();
    assert_eq!(enrollment.remove(&dc1.clone().into(), now).unwrap(), 2);
    let again = enrollment.invite(&dc1, None, None, now).unwrap();
    enrollment.join(&request(&again), now).expect("a new invite is a new beginning");
}

#[test]
fn when_an_instance_was_last_here_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let enrollment = enrollment(dir.path());
    let now = SystemTime::now();
    let [first, second] = replicas(&enrollment, now);
    enrollment.saw([&first, &InstanceId::random()], now + HOUR);
    enrollment.note_seen().unwrap();
    enrollment.note_seen().unwrap();
    drop(enrollment);
    let rows = Enrollment::open(settings(dir.path())).unwrap().agents();
    let seen = |instance: &InstanceId| rows.iter().find(|row| row.instance == *instance).unwrap().last_seen;
    assert_eq!((seen(&first), seen(&second)), (seconds(now + HOUR), seconds(now)));
}

#[test]
fn rows_of_older_databases_are_read() {
    let row = r#"{"name":"dc1","services":null,"enrolled":1,"latest":{"serial":"4a","not_after":9},"previous":null,"removed":null}"#;
    let record: InstanceRecord = serde_json::from_str(row).unwrap();
    assert_eq!((&record.latest.key, record.latest.epoch), (&None, 0));
    assert_eq!(record.latest.not_before, None);
    let shown = |serial: &str| Shown {
        serial: serial.into(),
        key: "k".into(),
        epoch: 0,
        issuer: None,
        not_before: 0,
        not_after: 0,
    };
    assert!(shown("4a").is(&record.latest) && !shown("4b").is(&record.latest));
}
