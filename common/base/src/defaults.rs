//! Constants that more than one program relies on, each with its reason.

use std::time::Duration;

/// An issuer that takes longer than this is down for our purposes (security.md 8).
pub const HTTP_CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Discovery documents and key sets are kilobytes; more is an attack or a mistake (security.md 8).
pub const HTTP_CLIENT_BODY: usize = 1024 * 1024;
/// Full jitter below this before the first reconnection: a restarted relay is back within a second.
pub const RECONNECT_BASE: Duration = Duration::from_millis(250);
/// Nobody waits longer than this for an agent to come back once the network is.
pub const RECONNECT_CAP: Duration = Duration::from_secs(30);
/// A tunnel that lived this long was healthy: the next failure starts the back-off anew.
pub const RECONNECT_HEALTHY: Duration = Duration::from_mins(1);
/// How long a drain may take before what still runs is cut (config.md `limits.drain`, `tunnel.drain`).
pub const DRAIN: Duration = Duration::from_secs(20);
/// Bearer tokens longer than this are refused before any work (security.md 2).
pub const TOKEN_BYTES: usize = 8 * 1024;
