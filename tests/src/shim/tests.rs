//! The path itself, before anything of Postern's is on it: its delay, its loss, its cuts.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::Shim;
use crate::netns::network::{Family, Network, Weather};

const DELAY: Duration = Duration::from_millis(50);
const SHORT: Duration = Duration::from_millis(500);

/// Echoes datagrams and connections where the relay would be, which is where this thread is; says from which ports datagrams came.
async fn echo(tasks: &mut JoinSet<()>, at: IpAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((at, 0)).await?;
    let address = listener.local_addr()?;
    let socket = UdpSocket::bind(address).await?;
    tasks.spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&from.port().to_be_bytes(), from).await;
        }
    });
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    Ok(address)
}

/// A socket on the agent's side.
fn far_udp(network: &Network, to: SocketAddr) -> Result<UdpSocket> {
    let socket = network.far.within(|| {
        let socket = std::net::UdpSocket::bind((network.agent(), 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    Ok(UdpSocket::from_std(socket)?)
}

fn far_tcp(network: &Network, to: SocketAddr) -> Result<TcpStream> {
    let stream = network.far.within(|| {
        let stream = std::net::TcpStream::connect_timeout(&to, SHORT)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })?;
    Ok(TcpStream::from_std(stream)?)
}

/// How long a datagram took there and back, and the port it came from; none where it was lost.
async fn ping(socket: &UdpSocket) -> Option<(Duration, u16)> {
    let start = Instant::now();
    let mut answer = [0; 2];
    socket.send(b"ping").await.ok()?;
    tokio::time::timeout(SHORT, socket.recv(&mut answer)).await.ok()?.ok()?;
    Some((start.elapsed(), u16::from_be_bytes(answer)))
}

#[tokio::test]
async fn the_shim_delays_cuts_restores_and_rebinds() -> Result<()> {
    let network = Network::create(Family::V4).await?;
    network.near.enter()?;
    let mut tasks = JoinSet::new();
    let target = echo(&mut tasks, network.relay()).await?;
    let shim = Shim::start(&network.middle, (network.router(), 0).into(), target, DELAY)?;

    let direct = far_udp(&network, target)?;
    let (took, _) = ping(&direct).await.expect("the direct path loses nothing");
    assert!(took < DELAY, "{took:?} without the shim");
    let delayed = far_udp(&network, shim.address())?;
    let (took, port) = ping(&delayed).await.expect("the shim loses nothing");
    assert!(took >= DELAY * 2 && took < DELAY * 6, "{took:?}");

    let mut stream = far_tcp(&network, shim.address())?;
    let start = Instant::now();
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    let took = start.elapsed();
    assert!(&answer == b"hello" && took >= DELAY * 2 && took < DELAY * 6, "{took:?}");

    shim.cut();
    assert!(ping(&delayed).await.is_none(), "a datagram came through the cut");
    stream.write_all(b"later").await?;
    assert!(tokio::time::timeout(SHORT, stream.read_exact(&mut answer)).await.is_err());
    shim.restore();
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"later");
    assert_eq!(ping(&delayed).await.map(|(_, port)| port), Some(port));

    shim.rebind();
    let moved = ping(&delayed).await.map(|(_, port)| port);
    assert!(moved.is_some() && moved != Some(port), "{moved:?} after {port}");
    stream.shutdown().await?;
    assert_eq!(stream.read(&mut answer).await?, 0, "the end came through");
    Ok(())
}

#[tokio::test]
async fn the_network_loses_cuts_and_blocks_as_told() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let network = Network::create(family).await?;
        network.near.enter()?;
        let mut tasks = JoinSet::new();
        let target = echo(&mut tasks, network.relay()).await?;
        let socket = far_udp(&network, target)?;
        ensure!(ping(&socket).await.is_some(), "{family:?}");

        network.weather(Weather { loss: 10, ..Weather::default() }).await?;
        let sent: u16 = 1000;
        let mut came = 0;
        for batch in 0..sent / 50 {
            for _ in 0..50 {
                socket.send(&batch.to_be_bytes()).await?;
            }
            let mut answer = [0; 2];
            while let Ok(Ok(_)) =
                tokio::time::timeout(Duration::from_millis(50), socket.recv(&mut answer)).await
            {
                came += 1;
            }
        }
        // Each may be lost on its way there or back: 810 return, give or take 12; these bounds are six times that away.
        ensure!((740..880).contains(&came), "{family:?}: {came} of {sent} came back");

        network.weather(Weather { cut: true, ..Weather::default() }).await?;
        ensure!(ping(&socket).await.is_none(), "{family:?}: through the cut");
        ensure!(far_tcp(&network, target).is_err(), "{family:?}: connected through the cut");
        network.weather(Weather { no_udp: true, ..Weather::default() }).await?;
        ensure!(ping(&socket).await.is_none(), "{family:?}: UDP though it is dropped");
        far_tcp(&network, target)?;
        network.weather(Weather::default()).await?;
        ensure!(ping(&socket).await.is_some(), "{family:?}: not restored");
    }
    Ok(())
}

#[tokio::test]
async fn addresses_move() -> Result<()> {
    let network = Network::create(Family::V4).await?;
    network.near.enter()?;
    let mut tasks = JoinSet::new();
    let target = echo(&mut tasks, network.relay()).await?;
    let socket = far_udp(&network, target)?;
    ensure!(ping(&socket).await.is_some(), "no path");
    network.move_agent(9).await?;
    // Bound to the address that is gone.
    ensure!(ping(&socket).await.is_none(), "from an address that is gone");
    let moved = network.far.within(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    moved.set_nonblocking(true)?;
    let moved = UdpSocket::from_std(moved)?;
    moved.connect(target).await?;
    ensure!(ping(&moved).await.is_some(), "not from the new address");
    Ok(())
}
