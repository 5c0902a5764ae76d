//! What stands between agent and relay: a port of its own that passes TCP on, and UDP only while it is told to, as the networks do that
//! block UDP without a word.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Result;
use postern_tests::wait;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// A running gate.
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    passes_udp: Arc<AtomicBool>,
    /// How often all flows known so far were forgotten.
    forgotten: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Gate {
    /// In front of the relay at `port`; closed for UDP.
    pub(super) async fn start(port: u16) -> Result<Self> {
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let address = SocketAddr::from(([127, 0, 0, 1], wait::free_port()?));
        let listener = TcpListener::bind(address).await?;
        let socket = UdpSocket::bind(address).await?;
        let passes_udp = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(connections(listener, target));
        let forgotten = Arc::new(AtomicU32::new(0));
        tasks.spawn(datagrams(socket, target, passes_udp.clone(), forgotten.clone()));
        Ok(Self { address, passes_udp, forgotten, _tasks: tasks })
    }

    /// Nothing goes through any more for those who sent datagrams so far, as when a firewall lost its table; new ports are let through.
    pub(super) fn forget_flows(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pass_udp(&self, passes: bool) {
        self.passes_udp.store(passes, Ordering::Relaxed);
    }
}

async fn connections(listener: TcpListener, target: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut front, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut back) = TcpStream::connect(target).await {
                // Either side may break off; then the other sees its end.
                let _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
            }
        });
    }
}

async fn datagrams(front: UdpSocket, target: SocketAddr, passes: Arc<AtomicBool>, forgotten: Arc<AtomicU32>) {
    let front = Arc::new(front);
    // Each with the time at which it began, as forgetting counts time.
    let mut flows: HashMap<SocketAddr, (u32, Arc<UdpSocket>)> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((length, from)) = front.recv_from(&mut buffer).await {
        let now = forgotten.load(Ordering::Relaxed);
        if !passes.load(Ordering::Relaxed) {
            continue;
        }
        if let Entry::Vacant(flow) = flows.entry(from) {
            let Ok(back) = UdpSocket::bind("127.0.0.1:0").await else { continue };
            let back = Arc::new(back);
            let (front, receiving) = (front.clone(), back.clone());
            let (passes, forgotten) = (passes.clone(), forgotten.clone());
            answers.spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok((length, _)) = receiving.recv_from(&mut buffer).await {
                    if passes.load(Ordering::Relaxed) && forgotten.load(Ordering::Relaxed) == now {
                        // A lost datagram is what UDP is like.
                        let _ = front.send_to(&buffer[..length], from).await;
                    }
                }
            });
            flow.insert((now, back));
        }
        if let Some((_, back)) = flows.get(&from).filter(|(began, _)| *began == now) {
            let _ = back.send_to(&buffer[..length], target).await;
        }
    }
}
