//! Connections: each is taken and made anew towards the target; bytes and ends go on later by the delay, and stand still while the path
//! is cut. A connection that breaks on one side breaks on the other.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Orders;

const CHUNK: usize = 64 * 1024;
/// Chunks under way in one direction, like the buffers of a long path.
const UNDER_WAY: usize = 128;

pub(super) async fn forward(listener: TcpListener, orders: &Arc<Orders>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, orders.clone()));
                }
            }
        }
    }
}

async fn connection(front: TcpStream, orders: Arc<Orders>) {
    opened(&orders).await;
    let Ok(back) = TcpStream::connect(orders.target).await else { return };
    if front.set_nodelay(true).is_err() || back.set_nodelay(true).is_err() {
        return;
    }
    let (front_read, front_write) = front.into_split();
    let (back_read, back_write) = back.into_split();
    // The first that breaks takes the other with it: both sockets are dropped.
    let _ = tokio::try_join!(
        direction(front_read, back_write, &orders),
        direction(back_read, front_write, &orders)
    );
}

async fn direction(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    orders: &Orders,
) -> Result<(), std::io::Error> {
    let (queue, mut late) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from.read(&mut buffer).await?;
            // An empty chunk is the end, and as late as any other.
            let chunk = (Instant::now() + orders.delay, buffer[..length].to_vec());
            if queue.send(chunk).await.is_err() || length == 0 {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = late.recv().await {
            sleep_until(at).await;
            opened(orders).await;
            if chunk.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&chunk).await?;
        }
        Ok(())
    };
    tokio::try_join!(reading, writing).map(drop)
}

/// Waits while the path is cut.
async fn opened(orders: &Orders) {
    // The sender lives as long as the orders.
    let _ = orders.is_open.subscribe().wait_for(|is_open| *is_open).await;
}
