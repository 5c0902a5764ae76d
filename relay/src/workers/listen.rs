//! Sockets, before anything is served on them. Takes addresses, or what the service manager holds for us; gives each worker its TCP
//! listeners, and the one UDP socket; refuses addresses that are taken.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

/// Connections waiting for the kernel's accept queue to be read: a thousand agents and a burst of callers, back at once.
pub const BACKLOG: i32 = 4096;
/// A caller or agent that vanished without a word is noticed after two minutes, whatever is or is not sent: on a connection that was
/// upgraded there is no other clock.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);
/// Room for the first packets of a thousand agents that come back at once, while the workers shake hands. The kernel gives what it allows.
const UDP_BUFFER: usize = 8 * 1024 * 1024;

/// One worker's TCP listeners.
#[derive(Debug)]
pub struct Listeners {
    pub sockets: Vec<TcpListener>,
    /// They outlive this process: what waits in them is the next one's.
    pub are_shared: bool,
}

/// One listener per worker on the same port: the kernel spreads connections over them.
pub fn tcp(address: SocketAddr, workers: usize) -> std::io::Result<Vec<Listeners>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        prepare(&listener)?;
        // Port 0 is chosen once; the others share it.
        address = listener.local_addr()?;
        listeners.push(Listeners { sockets: vec![listener], are_shared: false });
    }
    Ok(listeners)
}

/// What outlives this process is shared: every worker has each of the sockets, and who comes first takes the connection.
pub fn shared(inherited: &[TcpListener], workers: usize) -> std::io::Result<Vec<Listeners>> {
    for listener in inherited {
        prepare(listener)?;
    }
    let of_one = |_| {
        let sockets = inherited.iter().map(TcpListener::try_clone).collect::<std::io::Result<_>>()?;
        Ok(Listeners { sockets, are_shared: true })
    };
    (0..workers).map(of_one).collect()
}

/// Connections that are accepted inherit these options.
fn prepare(listener: &TcpListener) -> std::io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_nonblocking(true)?;
    // Small answers leave at once; the kernel would otherwise wait for more.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)
}

pub fn udp(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let options = SockRef::from(&socket);
    options.set_recv_buffer_size(UDP_BUFFER)?;
    options.set_send_buffer_size(UDP_BUFFER)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_sends_at_once_and_is_kept_alive() {
        let any = "127.0.0.1:0".parse().unwrap();
        for listeners in [tcp(any, 2).unwrap(), shared(&[TcpListener::bind(any).unwrap()], 2).unwrap()] {
            let address = listeners[0].sockets[0].local_addr().unwrap();
            assert_eq!(listeners[1].sockets[0].local_addr().unwrap(), address);
            let _caller = std::net::TcpStream::connect(address).unwrap();
            let start = std::time::Instant::now();
            let accepted = loop {
                let sockets = listeners.iter().flat_map(|of_one| &of_one.sockets);
                let found = sockets.into_iter().find_map(|listener| listener.accept().ok());
                match found {
                    Some((stream, _)) => break stream,
                    None => assert!(start.elapsed() < Duration::from_secs(5)),
                }
            };
            let socket = SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_mins(1));
        }
    }
}
