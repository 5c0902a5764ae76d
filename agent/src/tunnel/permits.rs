//! How many streams a relay may open on a tunnel at once: few while there is little to do, for a permitted stream costs memory at both
//! ends; doubled before the last quarter is used up, so that no request waits for a permit; and back after a quiet time.

use std::sync::atomic::{AtomicU32, Ordering};

use postern_wire::link::Link;
use postern_wire::link::quic::STREAMS;

/// 115 KiB per tunnel (see [`STREAMS`]); an agent keeps several tunnels, and a relay takes the next one where this is not enough.
const MOST: u32 = 1024;
/// Beats during which an eighth of the permits would have been enough.
const QUIET: u32 = 6;

/// One tunnel's permits. The counters are read and written without order: a raise that comes twice or a little late does no harm.
#[derive(Debug)]
pub(super) struct Permits {
    permitted: AtomicU32,
    quiet: AtomicU32,
}

impl Permits {
    pub(super) fn new() -> Self {
        Self { permitted: AtomicU32::new(STREAMS), quiet: AtomicU32::new(0) }
    }

    /// One more stream was opened; `running` of them run.
    pub(super) fn opened(&self, running: usize, link: &Link) {
        if let Some(permitted) = self.raised(running) {
            tracing::debug!(permitted, running, "more streams permitted");
            link.permit(permitted);
        }
    }

    /// Called at each beat.
    pub(super) fn beat(&self, running: usize, link: &Link) {
        if let Some(permitted) = self.lowered(running) {
            tracing::debug!(permitted, "fewer streams permitted");
            link.permit(permitted);
        }
    }

    fn raised(&self, running: usize) -> Option<u32> {
        let permitted = self.permitted.load(Ordering::Relaxed);
        if running <= permitted as usize / 4 * 3 || permitted >= MOST {
            return None;
        }
        let more = (permitted * 2).min(MOST);
        self.quiet.store(0, Ordering::Relaxed);
        self.permitted.store(more, Ordering::Relaxed);
        Some(more)
    }

    fn lowered(&self, running: usize) -> Option<u32> {
        let permitted = self.permitted.load(Ordering::Relaxed);
        if permitted <= STREAMS || running > permitted as usize / 8 {
            self.quiet.store(0, Ordering::Relaxed);
            return None;
        }
        if self.quiet.fetch_add(1, Ordering::Relaxed) + 1 < QUIET {
            return None;
        }
        self.quiet.store(0, Ordering::Relaxed);
        let fewer = (permitted / 2).max(STREAMS);
        self.permitted.store(fewer, Ordering::Relaxed);
        Some(fewer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_raised_before_they_run_out_and_taken_back_when_quiet() {
        let permits = Permits::new();
        assert_eq!(permits.raised(75), None);
        assert_eq!(permits.raised(76), Some(200));
        assert_eq!(permits.raised(76), None);
        let raises: Vec<_> = (0..1024).filter_map(|running| permits.raised(running)).collect();
        assert_eq!(raises, [400, 800, 1024]);
        assert_eq!(permits.raised(1024), None);
        let mut lows: Vec<_> = (0..100).filter_map(|_| permits.lowered(10)).collect();
        assert_eq!(lows, [512, 256, 128, 100]);
        // A busy beat starts the count anew.
        assert_eq!(permits.raised(90), Some(200));
        lows = (0..100).filter_map(|beat| permits.lowered(if beat % QUIET == 5 { 100 } else { 1 })).collect();
        assert!(lows.is_empty(), "{lows:?}");
    }
}
