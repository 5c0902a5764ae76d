//! The wall clock as tokens, certificates and records count it: whole seconds since the epoch.

use std::time::SystemTime;

/// Zero before the epoch: then everything that ends has ended long since, or has not begun.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
