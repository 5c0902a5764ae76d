//! Which refusals have lines of their own: takes whom the relay refused before it knew who that was, and agents that are out and go on asking; says
//! whether each is written whole, and counts the rest, for one line that tells how many. So a flood fills no disk. Whoever proved a token is never
//! asked about here.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use postern_base::network::network;
use postern_base::sync::lock;

use crate::public::admission::bucket::Buckets;

/// Over which [`EACH`] and [`ALL`] come back.
const SPAN: Duration = Duration::from_mins(1);
/// Refusals of one address that are written whole: so many at once, then ten a second. Nobody's mistakes are as many; an attack is seen well by
/// its first ones.
const EACH: u32 = 600;
/// The same of all addresses together: however many there are, the log grows no faster than this lets it, and a line for each that is counted.
const ALL: u32 = 6000;
/// How long refusals are counted for one line.
const TELL: Duration = Duration::from_secs(10);
/// Refusals of one address for one and the same reason, as of an agent that is suspended, that are written whole in an hour.
const ALIKE: u32 = 10;
const HOUR: Duration = Duration::from_hours(1);
/// Addresses, and reasons of theirs, that are counted apart at one time. Of the rest there is one count.
const COUNTED: usize = 1024;

/// What was not written whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// An IPv6 one stands for its /64; none where too many were counted to tell them apart.
    pub(super) address: Option<IpAddr>,
    /// Why, where all were alike.
    pub(super) alike: Option<String>,
    pub(super) refused: BTreeMap<&'static str, u64>,
    pub(super) within: Duration,
}

#[derive(Debug)]
pub(super) struct Thin {
    each: Buckets,
    all: Buckets,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    addresses: HashMap<Option<IpAddr>, Count>,
    alike: HashMap<(IpAddr, String), Alike>,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Alike {
    since: Instant,
    event: &'static str,
    whole: u32,
    more: u64,
}

impl Thin {
    pub(super) fn new() -> Self {
        Self { each: Buckets::new(SPAN), all: Buckets::new(SPAN), counts: Mutex::default() }
    }

    /// Whether one more refusal of an address is written whole; else it is counted.
    pub(super) fn take_or_count(&self, address: IpAddr, what: &'static str, now: Instant) -> bool {
        let is_whole = self.take_line(address, now);
        if !is_whole {
            self.count(address, what, now);
        }
        is_whole
    }

    /// Whether one more refusal of an address is written whole; if not, it is to be [counted](Self::count).
    pub(super) fn take_line(&self, address: IpAddr, now: Instant) -> bool {
        self.each.take(address, EACH, now) && self.all.take(Ipv6Addr::UNSPECIFIED.into(), ALL, now)
    }

    /// One that was not.
    pub(super) fn count(&self, address: IpAddr, what: &'static str, now: Instant) {
        let mut counts = lock(&self.counts);
        let key = Some(network(address));
        let is_known = counts.addresses.len() < COUNTED || counts.addresses.contains_key(&key);
        let count = counts.addresses.entry(key.filter(|_| is_known));
        let count = count.or_insert_with(|| Count { since: now, refused: BTreeMap::new() });
        *count.refused.entry(what).or_default() += 1;
    }

    /// Whether this refusal of an address, for this reason, is written whole; else it is counted.
    pub(super) fn take_news(&self, address: IpAddr, event: &'static str, reason: &str, now: Instant) -> bool {
        let mut counts = lock(&self.counts);
        let key = (network(address), reason.to_owned());
        if counts.alike.len() >= COUNTED && !counts.alike.contains_key(&key) {
            drop(counts);
            return self.take_or_count(address, event, now);
        }
        let alike = counts.alike.entry(key).or_insert(Alike { since: now, event, whole: 0, more: 0 });
        if alike.whole < ALIKE {
            alike.whole += 1;
            return true;
        }
        alike.more += 1;
        false
    }

    /// What is to be told by now; at the end, all of it.
    pub(super) fn due(&self, now: Instant, is_end: bool) -> Vec<Counted> {
        let mut counts = lock(&self.counts);
        let mut told = Vec::new();
        let since = |since: Instant| now.saturating_duration_since(since);
        counts.addresses.retain(|address, count| {
            let within = since(count.since);
            let is_due = is_end || within >= TELL;
            if is_due {
                let refused = std::mem::take(&mut count.refused);
                told.push(Counted { address: *address, alike: None, refused, within });
            }
            !is_due
        });
        counts.alike.retain(|(address, reason), alike| {
            let within = since(alike.since);
            if !is_end && within < HOUR {
                return true;
            }
            if alike.more > 0 {
                let refused = BTreeMap::from([(alike.event, alike.more)]);
                told.push(Counted { address: Some(*address), alike: Some(reason.clone()), refused, within });
            }
            // Who goes on is counted on; who gave up begins anew.
            let goes_on = alike.more > 0;
            (alike.since, alike.more) = (now, 0);
            goes_on
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    /// How many of these are written whole, and how many are counted.
    fn flood(thin: &Thin, from: impl Iterator<Item = IpAddr>, now: Instant) -> (u64, u64) {
        let (mut whole, mut all) = (0, 0);
        for address in from {
            all += 1;
            if thin.take_or_count(address, "no-token", now) {
                whole += 1;
            }
        }
        (whole, all - whole)
    }

    fn sum(told: &[Counted]) -> u64 {
        told.iter().flat_map(|one| one.refused.values()).sum()
    }

    #[test]
    fn the_first_are_whole_the_rest_is_counted_and_none_is_missing() {
        let (thin, start) = (Thin::new(), Instant::now());
        let (whole, counted) = flood(&thin, std::iter::repeat_n(address(1), 5000), start);
        assert_eq!((whole, counted), (600, 4400));
        assert_eq!(flood(&thin, std::iter::once(address(2)), start), (1, 0), "others are whole");
        assert_eq!(thin.due(start, false), [], "not yet");
        thin.count(address(1), "invalid-token", start);
        let told = thin.due(start + TELL, false);
        let refused = BTreeMap::from([("no-token", 4400), ("invalid-token", 1)]);
        assert_eq!(told, [Counted { address: Some(address(1)), alike: None, refused, within: TELL }]);
        assert_eq!(thin.due(start + 2 * TELL, true), [], "told once");
        let later = start + Duration::from_secs(1);
        assert_eq!(flood(&thin, std::iter::repeat_n(address(1), 50), later), (10, 40), "ten a second");
        assert_eq!(sum(&thin.due(later, true)), 40, "the end tells all");
    }

    #[test]
    fn many_addresses_fill_neither_the_log_nor_the_memory() {
        let (thin, start) = (Thin::new(), Instant::now());
        let (whole, counted) = flood(&thin, (0..20_000).map(address), start);
        assert_eq!((whole, counted), (6000, 14_000));
        let told = thin.due(start + TELL, false);
        assert!(told.len() == COUNTED + 1 && sum(&told) == counted, "{}", told.len());
        assert_eq!(told.iter().filter(|one| one.address.is_none()).count(), 1);
    }

    #[test]
    fn who_is_out_and_goes_on_asking_is_told_once_an_hour() {
        let (thin, start) = (Thin::new(), Instant::now());
        let asks = |reason: &str, from: u64, to: u64| {
            let times = (from..to).map(|n| start + Duration::from_secs(15 * n));
            times.filter(|now| thin.take_news(address(1), "tunnel-refused", reason, *now)).count()
        };
        assert_eq!(asks("suspended", 0, 240), 10);
        assert_eq!(asks("removed", 239, 240), 1, "another reason is news");
        assert!(thin.take_news(address(2), "tunnel-refused", "suspended", start), "so is another address");
        let told = thin.due(start + HOUR, false);
        let refused = BTreeMap::from([("tunnel-refused", 230)]);
        let alike = Some("suspended".to_owned());
        assert_eq!(told, [Counted { address: Some(address(1)), alike, refused, within: HOUR }]);
        assert_eq!(asks("suspended", 240, 480), 0, "the next hour is one line");
        assert_eq!(sum(&thin.due(start + 2 * HOUR, false)), 240);
        assert_eq!(thin.due(start + 3 * HOUR, false), []);
        assert_eq!(asks("suspended", 720, 740), 10, "who was quiet for an hour begins anew");
    }

    #[test]
    fn reasons_without_end_fill_no_memory() {
        let (thin, now) = (Thin::new(), Instant::now());
        let news =
            (0..5000).filter(|n| thin.take_news(address(1), "tunnel-refused", &n.to_string(), now)).count();
        assert_eq!(news, COUNTED + usize::try_from(EACH).unwrap());
        assert_eq!(sum(&thin.due(now, true)), 5000 - u64::try_from(news).unwrap());
    }
}
