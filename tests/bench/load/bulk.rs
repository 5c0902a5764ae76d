//! Takes the way to an upstream that speaks HTTP/1.1; gives how fast one large body goes down or up on one connection, in MiB/s.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::{self, Connection, Via};

pub(crate) const MIB: u64 = 1024 * 1024;
/// What is read or written at once.
pub(crate) const PIECE: usize = 64 * 1024;
/// Slower than this is not worth waiting for: 1 GiB in two minutes.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Down,
    Up,
}

/// Sends or fetches `bytes`; `path` is where the backend is behind `via`, such as `/bulk`.
pub(crate) async fn run(via: &Via, path: &str, token: Option<&str>, way: Way, bytes: u64) -> Result<f64> {
    let mut connection = via.dial().await?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let host = via.address();
    let start = Instant::now();
    let transfer = async {
        match way {
            Way::Down => {
                let head = format!("GET {path}/bytes/{bytes} HTTP/1.1\r\nHost: {host}\r\n{token}\r\n");
                download(&mut connection, &head, bytes).await
            }
            Way::Up => {
                let head = format!(
                    "POST {path}/sink HTTP/1.1\r\nHost: {host}\r\n{token}Content-Length: {bytes}\r\n\r\n"
                );
                upload(&mut connection, &head, bytes).await
            }
        }
    };
    wait::within("a large body", PATIENCE, transfer).await??;
    Ok(mib_per_second(bytes, start.elapsed()))
}

pub(crate) fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far from 2^53 bytes")]
    let mib = bytes as f64 / MIB as f64;
    mib / time.as_secs_f64()
}

async fn download(connection: &mut Connection, head: &str, bytes: u64) -> Result<()> {
    connection.write_all(head.as_bytes()).await?;
    connection.flush().await?;
    let answer = dial::head_of(connection).await?;
    ensure!(dial::status(&answer)? == 200, "{answer}");
    ensure!(dial::length(&answer)? == bytes, "{answer}");
    let mut buffer = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        match connection.read(&mut buffer).await? {
            0 => bail!("the body ended {left} bytes early"),
            read => left = left.saturating_sub(read as u64),
        }
    }
    Ok(())
}

async fn upload(connection: &mut Connection, head: &str, bytes: u64) -> Result<()> {
    connection.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; PIECE];
    let mut left = bytes;
    while left > 0 {
        let size = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        connection.write_all(&piece[..size]).await?;
        left -= size as u64;
    }
    connection.flush().await?;
    let answer = dial::head_of(connection).await?;
    ensure!(dial::status(&answer)? == 200, "{answer}");
    let mut body = vec![0; usize::try_from(dial::length(&answer)?)?];
    connection.read_exact(&mut body).await?;
    let counted = String::from_utf8_lossy(&body).into_owned();
    ensure!(counted == bytes.to_string(), "{bytes} bytes were sent and {counted} received");
    Ok(())
}
