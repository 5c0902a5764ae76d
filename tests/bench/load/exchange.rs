//! Takes the way to an upstream that speaks HTTP/1.1; gives how fast one small request after the other is answered over connections that
//! carry raw bytes. One thread per core, each with its share of the connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;

use super::dial::{self, Connection, Via};
use super::{CONNECTIONS, Load, quantile};

/// What is asked again and again.
const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nHost: bench\r\n\r\n";
/// An answer that takes longer ends the run with an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for `seconds` over [`CONNECTIONS`] connections. Any error ends the run.
pub(crate) async fn run(via: &Via, threads: usize, seconds: u32) -> Result<Load> {
    // All connections stand before the clock starts: what a handshake costs is not the question here.
    let ready = Arc::new(Barrier::new(CONNECTIONS));
    let span = Duration::from_secs(seconds.into());
    let mut running = Vec::new();
    for index in 0..threads {
        let connections = CONNECTIONS / threads + usize::from(index < CONNECTIONS % threads);
        let (via, ready) = (via.clone(), ready.clone());
        running.push(tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(try_join_all((0..connections).map(|_| ask(&via, &ready, span))))
        }));
    }
    let limit = span + PATIENCE + wait::SOON;
    let mut times = Vec::new();
    for thread in wait::within("an exchange of small messages", limit, try_join_all(running)).await?? {
        times.extend(thread?.into_iter().flatten());
    }
    let requests = times.len() as u64;
    #[expect(clippy::cast_precision_loss, reason = "far from 2^53 requests")]
    let per_second = requests as f64 / span.as_secs_f64();
    Ok(Load {
        requests,
        per_second,
        p50_us: quantile(&mut times, 0.5),
        p99_us: quantile(&mut times, 0.99),
        ..Load::default()
    })
}

/// One connection's exchanges: how long each took, in microseconds.
async fn ask(via: &Via, ready: &Barrier, span: Duration) -> Result<Vec<u32>> {
    let dialled = async {
        let mut connection = via.dial().await?;
        let size = first(&mut connection).await?;
        anyhow::Ok((connection, size))
    };
    let dialled = dialled.await;
    // Also where it failed, or the others would wait for it for ever.
    ready.wait().await;
    let (mut connection, size) = dialled?;
    let mut answer = vec![0; size];
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    while start.elapsed() < span {
        let sent = Instant::now();
        let exchange = async {
            connection.write_all(REQUEST).await?;
            connection.flush().await?;
            connection.read_exact(&mut answer).await
        };
        wait::within("an answer", PATIENCE, exchange).await??;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "not the answer that was asked for");
        times.push(u32::try_from(sent.elapsed().as_micros())?);
    }
    Ok(times)
}

/// The first exchange tells how long each answer is: all are alike.
async fn first(connection: &mut Connection) -> Result<usize> {
    connection.write_all(REQUEST).await?;
    connection.flush().await?;
    let head = dial::head_of(connection).await?;
    ensure!(dial::status(&head)? == 200, "{head}");
    let mut body = vec![0; usize::try_from(dial::length(&head)?)?];
    connection.read_exact(&mut body).await.context("the first answer")?;
    Ok(head.len() + body.len())
}
