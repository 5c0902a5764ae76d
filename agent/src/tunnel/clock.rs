//! How far this machine's clock is off, by the relay's word: tolerated up to five minutes, and said from half a minute on.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use postern_base::sync::lock;
use postern_wire::tls::SKEW;

/// A clock that is off by this much is worth a word.
const NOTICED: Duration = Duration::from_secs(30);
/// Up to this much certificates are judged as if the clock were right; from there on tokens and certificates are refused for it.
pub(crate) const TOLERATED: Duration = SKEW;

/// What relays said of it last.
#[derive(Debug, Default)]
pub struct Clock(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Milliseconds that ours is ahead.
    offset: Option<i64>,
    /// What was said of it last.
    said: Off,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Off {
    #[default]
    Little,
    /// Worth a word.
    Noticed,
    /// Certificates and tokens are refused for it.
    TooFar,
}

/// `offset`: by how many milliseconds it is.
pub(crate) fn off(offset: i64) -> Off {
    match Duration::from_millis(offset.unsigned_abs()) {
        off if off < NOTICED => Off::Little,
        off if off < TOLERATED => Off::Noticed,
        _ => Off::TooFar,
    }
}

impl Clock {
    /// A relay said at `now` that it was `unix_ms`, about half a `round_trip` ago.
    pub(super) fn heard(&self, unix_ms: u64, round_trip: Option<Duration>, now: SystemTime) {
        let ours = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let theirs = Duration::from_millis(unix_ms).saturating_add(round_trip.unwrap_or_default() / 2);
        let behind = i64::try_from(theirs.saturating_sub(ours).as_millis()).unwrap_or(i64::MAX);
        let offset = i64::try_from(ours.saturating_sub(theirs).as_millis()).unwrap_or(i64::MAX) - behind;
        let before = {
            let mut known = self.lock();
            known.offset = Some(offset);
            std::mem::replace(&mut known.said, off(offset))
        };
        let by = format!(
            "{} s {} the relay's",
            offset.unsigned_abs() / 1000,
            if offset > 0 { "ahead of" } else { "behind" }
        );
        match (before, off(offset)) {
            (before, now) if before == now => {}
            (_, Off::Little) => tracing::info!("this machine's clock is right again"),
            (_, Off::Noticed) => {
                tracing::warn!(
                    "this machine's clock is {by}: let it keep time (NTP, chrony or systemd-timesyncd)"
                );
            }
            (_, Off::TooFar) => {
                tracing::error!(
                    "this machine's clock is {by}: set it (NTP, chrony or systemd-timesyncd); from five minutes on certificates and tokens are refused for it"
                );
            }
        }
    }

    /// Milliseconds that ours is ahead.
    pub(super) fn offset(&self) -> Option<i64> {
        self.lock().offset
    }

    /// The relay made a certificate just now, so that its clock shows a time of that one's life: where ours does not, it is corrected until
    /// the relay says what time it is.
    pub(crate) fn lies_within(&self, start: SystemTime, end: SystemTime, now: SystemTime) {
        let corrected = self.now(now);
        if corrected < start || corrected > end {
            let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
            let ahead = now.duration_since(start).map_or_else(|e| -millis(e.duration()), millis);
            self.lock().offset = Some(ahead);
        }
    }

    /// After sleep, or a clock that was set, what was heard before is worth nothing.
    pub(crate) fn forget(&self) {
        self.lock().offset = None;
    }

    /// `now` as the relay's clock shows it, where that is known; never further from ours than is tolerated.
    pub(super) fn now(&self, now: SystemTime) -> SystemTime {
        let Some(offset) = self.offset() else { return now };
        let by = Duration::from_millis(offset.unsigned_abs()).min(TOLERATED);
        let corrected = if offset > 0 { now.checked_sub(by) } else { now.checked_add(by) };
        corrected.unwrap_or(now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_ours_less_theirs_and_corrects_up_to_five_minutes() {
        let clock = Clock::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!((clock.offset(), clock.now(at(9))), (None, at(9)));
        clock.heard(1_000_000, None, at(1_100));
        assert_eq!((clock.offset(), clock.now(at(1_200))), (Some(100_000), at(1_100)));
        clock.heard(1_100_000, Some(Duration::from_secs(2)), at(1_000));
        assert_eq!((clock.offset(), clock.now(at(1_000))), (Some(-101_000), at(1_101)));
        clock.heard(0, None, at(86_400));
        assert_eq!(clock.now(at(86_400)), at(86_400 - 300), "no relay moves it further");
        clock.heard(u64::MAX, None, SystemTime::UNIX_EPOCH);
        assert_eq!(clock.now(at(0)), at(300));
        clock.forget();
        assert_eq!(clock.offset(), None);
        clock.lies_within(at(1_000), at(1_060), at(1_030));
        assert_eq!(clock.offset(), None, "the clock may be right");
        clock.lies_within(at(1_000), at(1_060), at(1_240));
        assert_eq!(clock.now(at(1_240)), at(1_000));
        clock.lies_within(at(1_000), at(1_060), at(1_250));
        assert_eq!(clock.now(at(1_250)), at(1_010), "it goes on from there");
        clock.lies_within(at(1_000), at(1_060), at(800));
        assert_eq!(clock.now(at(800)), at(1_000));
    }

    #[test]
    fn a_clock_is_noticed_from_half_a_minute_and_loud_from_five() {
        let of = |seconds: i64| off(seconds * 1000);
        assert_eq!((of(29), of(-29)), (Off::Little, Off::Little));
        assert_eq!((of(30), of(-299)), (Off::Noticed, Off::Noticed));
        assert_eq!((of(300), of(-300), off(i64::MIN)), (Off::TooFar, Off::TooFar, Off::TooFar));
    }
}
