//! A thief with the issuing key who renews in an instance's name, and an agent whose relay was put back: which of them is found out. And
//! how often anybody may renew.

use super::super::taken::TWO_KEYS;
use super::recovery::{Dc1, csr_of, forge, rotate};
use super::*;

const LATER: Duration = Duration::from_mins(2);

struct Stand {
    dir: tempfile::TempDir,
    enrollment: Enrollment,
    dc1: Dc1,
    now: SystemTime,
}

impl Stand {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let enrollment = enrollment(dir.path());
        let dc1 = Dc1::join(&enrollment);
        Self { enrollment, dc1, dir, now: SystemTime::now() }
    }

    /// A tunnel.
    fn admit(&self, one: &Dc1, now: SystemTime) -> Result<Grounds, Barred> {
        let shown = Shown::of(&one.chain).unwrap();
        self.enrollment.admit(&agent("dc1"), &one.instance, shown, now).map(|(_, grounds)| grounds)
    }

    /// The next certificate over a tunnel, and whether it was granted on what is not on record.
    fn renew(&self, grounds: &Grounds, now: SystemTime) -> Result<(Dc1, bool), EnrollError> {
        let (key, instance) = (KeyPair::generate().unwrap(), self.dc1.instance.clone());
        let renewed = self.enrollment.renew((&agent("dc1"), &instance), grounds, &csr_of(&key), now)?;
        Ok((Dc1 { instance, key, chain: renewed.chain }, renewed.is_unrecorded))
    }

    fn rotate(&self) {
        rotate(&self.enrollment, self.dir.path(), self.now);
    }

    fn thief(&self) -> (Dc1, Grounds) {
        let forged = forge(self.dir.path(), &self.dc1, self.now);
        let tunnel = self.admit(&forged, self.now).unwrap();
        (forged, tunnel)
    }
}

fn is_two(outcome: &Result<Grounds, Barred>) -> bool {
    matches!(outcome, Err(Barred::Two(_)))
}

#[test]
fn an_agent_that_comes_back_is_not_let_in_beside_who_took_its_place() {
    for (renewals, rotates) in [(1, false), (1, true), (2, false), (2, true)] {
        let stand = Stand::new();
        let (_, tunnel) = stand.thief();
        let (mut newest, unrecorded) = stand.renew(&tunnel, stand.now).unwrap();
        assert!(unrecorded, "that is told");
        for _ in 1..renewals {
            let (next, unrecorded) = stand.renew(&tunnel, stand.now).unwrap();
            assert!(!unrecorded, "once");
            newest = next;
        }
        if rotates {
            stand.rotate();
        }
        assert!(!is_two(&stand.admit(&stand.dc1, stand.now)), "it may have dialled before that");
        let later = stand.now + LATER;
        assert!(stand.admit(&newest, later).is_ok(), "nobody else was seen yet");
        let found = stand.admit(&stand.dc1, later);
        assert!(is_two(&found), "{renewals} {rotates}: {found:?}");

        let who = stand.enrollment.suspend_for_two(&agent("dc1"), &stand.dc1.instance, later).unwrap();
        assert_eq!(who, stand.dc1.who());
        assert_eq!(stand.enrollment.suspensions()[0].suspension.reason, TWO_KEYS);
        for one in [&newest, &stand.dc1] {
            assert!(matches!(stand.admit(one, later), Err(Barred::Suspended { .. })));
        }
        assert!(stand.renew(&tunnel, later).is_err());
        // Whoever resumes it has looked into it.
        stand.enrollment.resume(&who).unwrap();
        assert!(stand.admit(&newest, later).is_ok() && !is_two(&stand.admit(&stand.dc1, later)));
    }
}

#[test]
fn an_agent_that_was_there_all_the_time_is_found_beside_a_thief_by_the_rotation() {
    for agent_renews_before in [false, true] {
        let stand = Stand::new();
        let own = stand.admit(&stand.dc1, stand.now).unwrap();
        let (_, tunnel) = stand.thief();
        let (taken, _) = stand.renew(&tunnel, stand.now).unwrap();
        if agent_renews_before {
            stand.renew(&own, stand.now).unwrap();
        }
        stand.rotate();
        let again = stand.admit(&taken, stand.now).unwrap();
        let found = stand.renew(&own, stand.now).err().unwrap();
        assert!(matches!(found, EnrollError::Barred(Barred::Two(_))), "{found}");
        if agent_renews_before {
            let found = stand.renew(&again, stand.now).err().unwrap();
            assert!(matches!(found, EnrollError::Barred(Barred::Two(_))), "whoever comes first: {found}");
        }
    }
}

#[test]
fn an_agent_that_renewed_beside_a_thief_is_found_when_it_comes_back() {
    for rotates in [false, true] {
        let stand = Stand::new();
        let own = stand.admit(&stand.dc1, stand.now).unwrap();
        let (_, tunnel) = stand.thief();
        let (taken, _) = stand.renew(&tunnel, stand.now).unwrap();
        let (own, _) = stand.renew(&own, stand.now).unwrap();
        let (second, _) = stand.renew(&tunnel, stand.now).unwrap();
        let later = stand.now + LATER;
        assert!(stand.admit(&own, later).is_ok(), "while it is on record it is let in");
        let (newest, _) = stand.renew(&tunnel, stand.now).unwrap();
        if rotates {
            stand.rotate();
            let tunnel = stand.admit(&newest, later).unwrap();
            stand.renew(&tunnel, stand.now).unwrap();
        }
        let found = stand.admit(&own, later);
        assert!(is_two(&found), "{rotates}: {found:?}");
        for theirs in [&taken, &second] {
            assert!(!is_two(&stand.admit(theirs, later)), "what was the thief's never counts as the agent's");
        }
        assert_eq!(own.back(&stand.enrollment, later).unwrap_err(), refusal::OLD_KEY);
    }
}

#[test]
fn a_thief_who_takes_it_again_and_again_is_found_all_the_same() {
    let stand = Stand::new();
    let own = stand.admit(&stand.dc1, stand.now).unwrap();
    let take = |at: SystemTime| {
        // As if each came long after the one before.
        *lock(&stand.enrollment.paces) = Paces::default();
        let forged = forge(stand.dir.path(), &stand.dc1, at);
        let tunnel = stand.admit(&forged, at).unwrap();
        assert!(stand.renew(&tunnel, at).unwrap().1);
        tunnel
    };
    let mut at = stand.now;
    for n in 0..20 {
        take(at);
        at += Duration::from_secs(50);
        assert_eq!(is_two(&stand.admit(&stand.dc1, at)), n > 0, "{n}");
    }
    // Nor does he fill what is remembered with his own keys.
    let (second, _) = stand.renew(&own, at).unwrap();
    take(at + LATER);
    assert!(is_two(&stand.admit(&second, at + 2 * LATER)));
    assert!(is_two(&stand.admit(&stand.dc1, at + 2 * LATER)));
}

#[test]
fn an_agent_whose_relay_was_put_back_and_then_met_a_thief_comes_back_too() {
    let stand = Stand::new();
    // To the relay an agent after a restore looks no different.
    let (_, tunnel) = stand.thief();
    let (agents, _) = stand.renew(&tunnel, stand.now).unwrap();
    let mut at = stand.now + HOUR;
    for _ in 0..12 {
        *lock(&stand.enrollment.paces) = Paces::default();
        let forged = forge(stand.dir.path(), &stand.dc1, at);
        let thief = stand.admit(&forged, at).unwrap();
        for _ in 0..3 {
            stand.renew(&thief, at).unwrap();
        }
        at += LATER;
    }
    assert!(is_two(&stand.admit(&agents, at)));
}

#[test]
fn a_recovery_finds_it_too() {
    let stand = Stand::new();
    let (_, tunnel) = stand.thief();
    for _ in 0..2 {
        stand.renew(&tunnel, stand.now).unwrap();
    }
    stand.rotate();
    let refused = stand.dc1.back(&stand.enrollment, stand.now + LATER).unwrap_err();
    assert_eq!((refused, stand.enrollment.suspensions().len()), (refusal::OLD_KEY, 1));
}

#[test]
fn an_agent_whose_relay_was_put_back_is_one_and_stays_in() {
    let mut stand = Stand::new();
    let database = settings(stand.dir.path()).database();
    let reopen = |stand: Stand, put_back: Option<Vec<u8>>| {
        drop(stand.enrollment);
        if let Some(rows) = put_back {
            std::fs::write(&database, rows).unwrap();
        }
        Stand { enrollment: Enrollment::open(settings(stand.dir.path())).unwrap(), ..stand }
    };
    stand = reopen(stand, None);
    let backup = std::fs::read(&database).unwrap();
    let own = stand.admit(&stand.dc1, stand.now).unwrap();
    // Certificates begin on whole seconds.
    let (now, later) = (stand.now + HOUR, stand.now + 2 * HOUR);
    let (second, _) = stand.renew(&own, now).unwrap();
    stand = reopen(stand, Some(backup));

    let both = [(); 2].map(|()| stand.admit(&second, now).unwrap());
    let (third, unrecorded) = stand.renew(&both[0], now).unwrap();
    assert!(unrecorded, "the relay cannot know");
    let (fourth, unrecorded) = stand.renew(&both[1], now).unwrap();
    assert!(!unrecorded, "its other tunnel is its own");
    let newest = stand.admit(&fourth, later).unwrap();
    assert!(stand.admit(&third, later).is_ok(), "an answer may be lost");
    stand.rotate();
    for tunnel in [&newest, &both[0]] {
        let holds = stand.enrollment.holds(tunnel);
        let renewed = stand.renew(tunnel, later);
        assert_eq!(renewed.is_ok(), holds, "{renewed:?}", renewed = renewed.err());
    }
    assert_eq!(stand.enrollment.suspensions(), []);
}

#[test]
fn who_asks_in_a_loop_is_given_a_few() {
    let stand = Stand::new();
    let own = stand.admit(&stand.dc1, stand.now).unwrap();
    let (mut newest, mut given) = (None, 0);
    for _ in 0..50 {
        match stand.renew(&own, stand.now) {
            Ok((renewed, _)) => (newest, given) = (Some(renewed), given + 1),
            Err(EnrollError::TooOften(wait)) => {
                assert!(!wait.is_zero() && wait <= Duration::from_secs(10));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(given, 6);
    let refused = newest.unwrap().back(&stand.enrollment, stand.now).unwrap_err();
    assert_eq!(refused, refusal::TOO_MANY, "nor by way of recoveries");
    assert_eq!(stand.enrollment.suspensions(), []);
}
