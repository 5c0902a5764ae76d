//! `[limits]`: takes what the file says, gives every limit of the relay with security.md's number where the file says nothing; refuses
//! values under which nothing could be served.

use std::time::Duration;

use postern_base::config::Problem;
use postern_base::value::Span;

use crate::config::file::LimitsFile;

/// The relay's limits; the numbers of security.md where the file says nothing.
#[derive(Debug, Clone)]
pub struct Limits {
    pub workers: usize,
    pub connections: usize,
    pub per_address: usize,
    pub requests: usize,
    pub handshake: Duration,
    pub first_byte_in: Duration,
    pub head: Duration,
    pub body_stall: Duration,
    pub keepalive: Duration,
    pub headers: usize,
    pub fields: usize,
    /// Failed authentications a second from one address.
    pub failed_auth: u32,
    /// An answer that began in its token's time may go on for this long after it.
    pub lease_grace: Duration,
    pub drain: Duration,
}

impl Limits {
    pub(super) fn new(file: &LimitsFile) -> Result<Self, Problem> {
        let or = |span: Option<Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let failed_auth = match file.failed_auth.as_deref() {
            None => 20,
            Some(text) => text
                .strip_suffix("/s per address")
                .and_then(|number| number.trim().parse().ok())
                .filter(|number| *number > 0)
                .ok_or_else(|| Problem::new("failed_auth", "write it like \"20/s per address\""))?,
        };
        let limits = Self {
            workers: file.workers.filter(|n| *n > 0).unwrap_or(cores),
            connections: file.connections.unwrap_or(20_000),
            per_address: file.per_address.unwrap_or(2048),
            requests: file.requests.unwrap_or(10_000),
            handshake: or(file.handshake, 5),
            first_byte_in: or(file.first_byte_in, 10),
            head: or(file.head, 10),
            body_stall: or(file.body_stall, 15),
            keepalive: or(file.keepalive, 60),
            headers: file.headers.map_or(Ok(32 * 1024), |size| usize::try_from(size.0)).unwrap_or(usize::MAX),
            fields: file.fields.unwrap_or(100),
            failed_auth,
            lease_grace: or(file.lease_grace, 60 * 60),
            drain: or(file.drain, 20),
        };
        let at_least_one = [
            ("connections", limits.connections),
            ("per_address", limits.per_address),
            ("requests", limits.requests),
        ];
        if let Some((key, _)) = at_least_one.into_iter().find(|(_, n)| *n == 0) {
            return Err(Problem::new(key, "must be at least 1"));
        }
        if !(8 * 1024..=96 * 1024).contains(&limits.headers) {
            return Err(Problem::new("headers", "must lie between \"8KiB\" and \"96KiB\""));
        }
        if !(10..=1000).contains(&limits.fields) {
            return Err(Problem::new("fields", "must lie between 10 and 1000"));
        }
        if limits.workers > 256 {
            return Err(Problem::new("workers", "must be at most 256"));
        }
        Ok(limits)
    }
}
