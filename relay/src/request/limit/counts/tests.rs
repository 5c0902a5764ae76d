//! Rates and quotas under a clock that the test moves.

use super::*;

struct Stand {
    counts: Counts,
    now: Instant,
}

type Asked<'a> = (LimitKind, &'a str, &'a str);

impl Stand {
    fn new() -> Self {
        let now = Instant::now();
        Self { counts: Counts::new(now), now }
    }

    fn ask(&self, limits: &[Asked<'_>], mode: Mode) -> Result<Standings, CountsFull> {
        let limits = limits.iter().map(|(kind, rate, whose)| (*kind, rate.parse().unwrap(), whose));
        self.counts.ask(limits, self.now, mode)
    }

    /// What is left of each, or how long to wait.
    fn take(&self, limits: &[Asked<'_>]) -> Result<Vec<u32>, Duration> {
        let standings = self.ask(limits, Mode::Take).unwrap();
        match standings.iter().filter_map(|standing| standing.wait).max() {
            Some(wait) => Err(wait),
            None => Ok(standings.iter().map(|standing| standing.left).collect()),
        }
    }

    fn look(&self, limits: &[Asked<'_>]) -> Vec<u32> {
        self.ask(limits, Mode::Look).unwrap().iter().map(|standing| standing.left).collect()
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }
}

#[test]
fn a_rate_comes_back_little_by_little() {
    let mut stand = Stand::new();
    let ada = [(LimitKind::Rate, "4/s per user", "ada")];
    assert_eq!(stand.look(&ada), [4]);
    for left in (0..4).rev() {
        assert_eq!(stand.take(&ada), Ok(vec![left]));
    }
    assert_eq!(stand.take(&ada), Err(Duration::from_millis(250)));
    assert_eq!(stand.look(&ada), [0]);
    assert_eq!(stand.take(&[(LimitKind::Rate, "4/s per user", "bob")]), Ok(vec![3]));
    stand.pass(249);
    assert_eq!(stand.take(&ada), Err(Duration::from_millis(1)));
    stand.pass(1);
    assert_eq!(stand.take(&ada), Ok(vec![0]));
    stand.pass(100_000);
    assert_eq!((stand.look(&ada), stand.take(&ada)), (vec![4], Ok(vec![3])));
    // In the long run no more than the rate, whatever the pace.
    let (mut taken, steps) = (0, 1000);
    for _ in 0..steps {
        stand.pass(10);
        taken += u32::from(stand.take(&ada).is_ok());
    }
    assert!((40..=44).contains(&taken), "{taken} in 10 s at 4/s");
}

#[test]
fn a_quota_comes_back_whole_a_window_after_its_first_use() {
    let mut stand = Stand::new();
    let ada = [(LimitKind::Quota, "3/m per user", "ada")];
    stand.pass(10_000);
    assert_eq!(stand.take(&ada), Ok(vec![2]));
    stand.pass(59_000);
    assert_eq!((stand.take(&ada), stand.take(&ada)), (Ok(vec![1]), Ok(vec![0])));
    assert_eq!(stand.take(&ada), Err(Duration::from_secs(1)));
    let standing = stand.ask(&ada, Mode::Look).unwrap()[0];
    assert_eq!((standing.left, standing.reset), (0, Duration::from_secs(1)));
    stand.pass(1000);
    assert_eq!(stand.look(&ada), [3]);
    assert_eq!(stand.take(&ada), Ok(vec![2]));
}

#[test]
fn of_two_limits_nothing_is_taken_where_one_has_no_room() {
    let mut stand = Stand::new();
    let quota = (LimitKind::Quota, "3/day per client", "cli");
    let rate = (LimitKind::Rate, "2/s per user", "ada");
    let both = [rate, quota];
    assert_eq!((stand.take(&both), stand.take(&both)), (Ok(vec![1, 2]), Ok(vec![0, 1])));
    assert_eq!(stand.take(&both), Err(Duration::from_millis(500)));
    assert_eq!(stand.look(&[quota]), [1]);
    stand.pass(1000);
    assert_eq!(stand.take(&both), Ok(vec![1, 0]));
    // Now it is the quota that has none: the rate stays as it is, whichever is asked first.
    assert!(stand.take(&both).is_err() && stand.take(&[quota, rate]).is_err());
    assert_eq!(stand.look(&[rate]), [1]);
}

#[test]
fn a_full_store_forgets_nobody_who_still_counts() {
    let mut stand = Stand::new();
    let of = |n: u32, stand: &Stand| {
        let name = n.to_string();
        stand.ask(&[(LimitKind::Quota, "1/m per user", &name)], Mode::Take).map(|all| all[0].wait.is_none())
    };
    let most = u32::try_from(SHARDS * PER_SHARD * 2).unwrap();
    let (mut known, mut full) = (Vec::new(), 0);
    for n in 0..most {
        match of(n, &stand) {
            Ok(room) => {
                assert!(room);
                known.push(n);
            }
            Err(CountsFull) => full += 1,
        }
    }
    assert!(full > 0 && known.len() <= SHARDS * PER_SHARD);
    assert!(known.iter().all(|n| of(*n, &stand) == Ok(false)), "nobody has a second one");
    stand.pass(60_000);
    assert!((0..1000).all(|n| of(n, &stand) == Ok(true)), "what is over makes room");
}

#[test]
fn any_number_a_rule_may_say_is_counted() {
    for text in ["4294967295/s per ip", "1/day per ip", "4294967295/day per service"] {
        for kind in [LimitKind::Rate, LimitKind::Quota] {
            let stand = Stand::new();
            assert!(stand.take(&[(kind, text, "x")]).is_ok(), "{text}");
        }
    }
}

#[test]
fn whoever_has_many_addresses_shuts_nobody_out() {
    let stand = Stand::new();
    let of = |per: &str, whose: &str| {
        let rate = format!("1/day per {per}");
        let asked = stand.ask(&[(LimitKind::Quota, &rate, whose)], Mode::Take);
        asked.map(|all| all[0].wait.is_none())
    };
    assert_eq!(of("user", "ada"), Ok(true));
    let most = SHARDS * PER_SHARD * 5 / 4;
    for n in 0..most {
        assert_eq!(of("ip", &n.to_string()), Ok(true), "{n}");
    }
    // The latest are remembered, and no user is forgotten for them.
    assert_eq!((of("ip", &(most - 1).to_string()), of("user", "ada")), (Ok(false), Ok(false)));
    assert_eq!(of("user", "bob"), Ok(true));
}

#[test]
fn an_address_that_goes_on_asking_is_not_forgotten() {
    let stand = Stand::new();
    let spent = [(LimitKind::Quota, "1/day per ip", "spent")];
    assert_eq!(stand.take(&spent), Ok(vec![0]));
    // Three generations of each shard, of which some begin while it is among the old ones.
    for n in 0..SHARDS * ADDRESSES * 3 {
        stand.take(&[(LimitKind::Quota, "1/day per ip", &n.to_string())]).unwrap();
        if n % SHARDS == 0 {
            assert!(stand.take(&spent).is_err() && stand.take(&spent).is_err(), "{n}");
        }
    }
}
