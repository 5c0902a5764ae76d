//! Notices that this machine or process slept, and tells all tunnels: none of their timers has run meanwhile, and the relay may have
//! given them up.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

/// How soon after waking it is noticed.
const LOOK: Duration = Duration::from_secs(1);
/// Less is a busy machine; a false alarm costs one heartbeat.
const SLEPT: Duration = Duration::from_millis(1500);

/// Counts in `wakes` each time that we slept. Runs for ever.
pub(crate) async fn watch(wakes: &watch::Sender<u64>) {
    let mut last = (Instant::now(), SystemTime::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = (Instant::now(), SystemTime::now());
        if slept(last, now) {
            tracing::info!("this process slept; looking at its tunnels");
            wakes.send_modify(|count| *count += 1);
        }
        last = now;
    }
}

/// A stopped process finds its timer late. A suspended machine's monotonic clock stood still, so only the wall clock tells; one that
/// was set forward looks the same, one that was set back means nothing.
fn slept(last: (Instant, SystemTime), now: (Instant, SystemTime)) -> bool {
    let monotonic = now.0 - last.0;
    let wall = now.1.duration_since(last.1).unwrap_or_default();
    monotonic.max(wall) > LOOK + SLEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_and_suspended_are_told_from_busy() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let at = |mono, real| (start + Duration::from_millis(mono), wall + Duration::from_millis(real));
        let begin = (start, wall);
        assert!(!slept(begin, at(1000, 1000)));
        assert!(!slept(begin, at(2400, 2400)), "busy");
        assert!(slept(begin, at(20_000, 20_000)), "stopped");
        assert!(slept(begin, at(1000, 600_000)), "suspended");
        assert!(!slept(begin, (start + LOOK, wall - Duration::from_hours(1))), "set back");
    }
}
