//! What judging may cost: takes a piece of work and says whether it is done in time, whatever else the machine is doing. For tests.

use std::time::{Duration, Instant};

/// What a refusal may take, beside a signature's own cost (security.md 4 and 7). Without optimisation everything takes about ten times
/// as long.
pub(crate) const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 10 } else { 1 });
/// Often enough that another program had the processor each time only if nothing could be measured at all.
const TRIES: usize = 20;

/// Whether `work` is done within `limit`. Once is enough: it does the same each time, and what others take from the processor is not its
/// cost.
pub(crate) fn is_within(limit: Duration, work: impl Fn()) -> bool {
    (0..TRIES).any(|_| taken(&work) <= limit)
}

/// What `work` takes when nothing disturbs it.
pub(crate) fn least(work: impl Fn()) -> Duration {
    (0..TRIES).map(|_| taken(&work)).min().unwrap_or_default()
}

fn taken(work: &impl Fn()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

#[test]
fn what_takes_too_long_is_told() {
    let busy = |time: Duration| {
        move || {
            let began = Instant::now();
            while began.elapsed() < time {}
        }
    };
    assert!(least(busy(Duration::from_millis(3))) >= Duration::from_millis(3));
    assert!(!is_within(Duration::from_millis(2), busy(Duration::from_millis(3))));
    assert!(is_within(Duration::from_millis(500), busy(Duration::from_millis(1))));
}
