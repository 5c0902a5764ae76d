//! Datagrams: a flow per source address, each with a socket of its own towards the target. What is late enough is sent on; what comes
//! while the path is cut, or when too many are under way, is lost.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Orders;

/// Datagrams under way in one direction of a flow: 50 ms at 1 Gbit/s.
const UNDER_WAY: usize = 4096;
const LARGEST: usize = 65_536;

type Late = VecDeque<(Instant, Vec<u8>)>;

pub(super) async fn forward(front: UdpSocket, orders: &Arc<Orders>) {
    let front = Arc::new(front);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        // A datagram that could not be delivered is reported here once; nothing follows from it.
        let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
        let queue = flows.entry(from).or_insert_with(|| {
            let (queue, received) = mpsc::channel(UNDER_WAY);
            tasks.spawn(flow(front.clone(), from, received, orders.clone()));
            queue
        });
        // Full: lost, as on any router.
        let _ = queue.try_send(buffer[..length].to_vec());
    }
}

async fn flow(
    front: Arc<UdpSocket>,
    from: SocketAddr,
    mut received: mpsc::Receiver<Vec<u8>>,
    orders: Arc<Orders>,
) {
    let Some(mut back) = towards(orders.target).await else { return };
    let (mut up, mut down) = (Late::new(), Late::new());
    let mut ports = orders.ports.subscribe();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            datagram = received.recv() => match datagram {
                Some(datagram) => push(&mut up, &orders, datagram),
                None => return,
            },
            length = back.recv(&mut buffer) => if let Ok(length) = length {
                push(&mut down, &orders, buffer[..length].to_vec());
            },
            // Both may fail where the other side is not there: the datagram is lost.
            Some(datagram) = due(&mut up) => drop(back.send(&datagram).await),
            Some(datagram) = due(&mut down) => drop(front.send_to(&datagram, from).await),
            Ok(()) = ports.changed() => if let Some(next) = towards(orders.target).await {
                back = next;
            },
        }
    }
}

fn push(queue: &mut Late, orders: &Orders, datagram: Vec<u8>) {
    if *orders.is_open.borrow() && queue.len() < UNDER_WAY {
        queue.push_back((Instant::now() + orders.delay, datagram));
    }
}

/// The next datagram, when its time has come; nothing where there is none. Dropped before its end it has taken nothing.
async fn due(queue: &mut Late) -> Option<Vec<u8>> {
    let (at, _) = queue.front()?;
    sleep_until(*at).await;
    queue.pop_front().map(|(_, datagram)| datagram)
}

async fn towards(target: SocketAddr) -> Option<UdpSocket> {
    let any: SocketAddr =
        if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket)
}
