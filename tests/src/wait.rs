//! Takes a condition and a deadline; gives what the condition found; refuses (with its name) once the deadline has passed.
//! Also finds ports, since a stand needs them before its programs run.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};
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

/// The ports of this process: each is a locked file, so that no other test process takes one while its program is away.
static PORTS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port free for TCP and UDP on loopback, this process's own until it ends. It is below the range that the kernel hands out.
pub fn free_port() -> Result<u16> {
    let user = rustix::process::getuid().as_raw();
    let dir = std::env::temp_dir().join(format!("postern-test-ports-{user}"));
    std::fs::create_dir_all(&dir)?;
    for _ in 0..200 {
        let port = rand::random_range(18000..32000);
        let file = File::create(dir.join(port.to_string()))?;
        if file.try_lock().is_err() {
            continue;
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            PORTS.lock().unwrap_or_else(PoisonError::into_inner).push(file);
            return Ok(port);
        }
    }
    bail!("no free port between 18000 and 32000")
}
