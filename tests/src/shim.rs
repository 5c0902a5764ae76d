//! The long cable: takes an address to listen on, the address behind it and a delay; forwards UDP datagrams and TCP connections, each
//! byte so much later, in both directions (the kernel here has no netem). It runs on a thread of its own in the namespace it is given,
//! and can be told to cut and restore, and to change its own source ports as a NAT does.

mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::netns::Namespace;

/// What the forwarding tasks obey.
#[derive(Debug)]
struct Orders {
    target: SocketAddr,
    /// Each way.
    delay: Duration,
    is_open: watch::Sender<bool>,
    /// How often the source ports were changed.
    ports: watch::Sender<u32>,
}

/// The running shim; it stops when this is dropped.
#[derive(Debug)]
pub struct Shim {
    orders: Arc<Orders>,
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shim {
    /// Listens in `place` on `listen` for both protocols.
    pub fn start(place: &Namespace, listen: SocketAddr, target: SocketAddr, delay: Duration) -> Result<Self> {
        let (datagrams, listener) = place.within(|| {
            let tcp = std::net::TcpListener::bind(listen)?;
            let udp = std::net::UdpSocket::bind(tcp.local_addr()?)?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        let address = listener.local_addr()?;
        let orders = Arc::new(Orders {
            target,
            delay,
            is_open: watch::Sender::new(true),
            ports: watch::Sender::new(0),
        });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, end) = (orders.clone(), stop.clone());
        // A thread starts in the namespace of the one that started it.
        let thread = place.within(move || {
            std::thread::Builder::new()
                .name("shim".to_owned())
                .spawn(move || runtime.block_on(forward(datagrams, listener, theirs, end)))
                .context("a thread for the shim")
        })?;
        Ok(Self { orders, address, stop, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on datagrams are lost and connections stand still.
    pub fn cut(&self) {
        self.orders.is_open.send_replace(false);
    }

    pub fn restore(&self) {
        self.orders.is_open.send_replace(true);
    }

    /// All datagrams towards the target come from new ports, and answers to the old ones are lost: a NAT forgot its bindings.
    pub fn rebind(&self) {
        self.orders.ports.send_modify(|times| *times += 1);
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends with the cancellation; a panic there has been printed already.
            let _ = thread.join();
        }
    }
}

async fn forward(
    datagrams: std::net::UdpSocket,
    listener: std::net::TcpListener,
    orders: Arc<Orders>,
    stop: CancellationToken,
) {
    let (Ok(datagrams), Ok(listener)) = (UdpSocket::from_std(datagrams), TcpListener::from_std(listener))
    else {
        return;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = udp::forward(datagrams, &orders) => {}
        () = tcp::forward(listener, &orders) => {}
    }
}

#[cfg(test)]
mod tests;
