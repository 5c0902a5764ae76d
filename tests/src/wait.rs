//! Takes a condition and a deadline; gives what the condition found; refuses (with its name) once the deadline has passed.
//! Also finds ports, since a stand needs them before its programs run.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything on loopback may take that is neither large nor slow by design. Generous: CI machines are busy.
pub const SOON: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(10);

/// Asks `probe` until it gives something, at most `limit` long.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits for a future, at most `limit` long.
pub async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done),
        Err(_) => bail!("took longer than {limit:?}: {what}"),
    }
}

/// A port free for TCP and UDP on loopback, below the range that the kernel hands out, so that it stays free while a program that
/// is to come back on it is away.
pub fn free_port() -> Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(18000..32000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 18000 and 32000")
}
