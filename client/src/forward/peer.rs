//! Takes an accepted connection; says whether it comes from a process of the same user. Fails closed: a socket whose owner cannot be
//! established is another's.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// The user this process acts as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether the other end of a loopback connection belongs to this user, by the kernel's table of sockets. Without such a table (not
/// Linux) nothing is refused.
pub(crate) async fn is_own(peer: SocketAddr, local: SocketAddr) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let look = tokio::task::spawn_blocking(move || owner(peer, local, |path| std::fs::read_to_string(path)));
    match look.await {
        Ok(Ok(Some(uid))) => uid == own_uid(),
        Ok(Ok(None) | Err(_)) | Err(_) => false,
    }
}

/// Who owns the socket at `peer` that is connected to `local`. A program may reach 127.0.0.1 through an IPv6 socket too.
fn owner(
    peer: SocketAddr,
    local: SocketAddr,
    read: impl Fn(&str) -> io::Result<String>,
) -> io::Result<Option<u32>> {
    let mut ways = vec![(peer.ip(), local.ip())];
    if let (IpAddr::V4(peer), IpAddr::V4(local)) = (peer.ip(), local.ip()) {
        ways.push((peer.to_ipv6_mapped().into(), local.to_ipv6_mapped().into()));
    }
    for (peer_ip, local_ip) in ways {
        let table = if peer_ip.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        let (from, to) = (entry(peer_ip, peer.port()), entry(local_ip, local.port()));
        match read(table) {
            Ok(text) => {
                if let Some(uid) = find(&text, &from, &to) {
                    return Ok(Some(uid));
                }
            }
            // A kernel without IPv6 has no such table.
            Err(e) if e.kind() == io::ErrorKind::NotFound && peer_ip.is_ipv6() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// An address as the table writes it: 32-bit words in the machine's byte order.
fn entry(ip: IpAddr, port: u16) -> String {
    let word = |bytes: &[u8; 4]| u32::from_ne_bytes(*bytes);
    match ip {
        IpAddr::V4(v4) => format!("{:08X}:{port:04X}", word(&v4.octets())),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let (words, _) = octets.as_chunks::<4>();
            words
                .iter()
                .rev()
                .fold(format!(":{port:04X}"), |text, bytes| format!("{:08X}{text}", word(bytes)))
        }
    }
}

/// The uid of the socket `from` that is connected to `to`. A socket that nobody holds any more has inode 0 and shows root's uid: it is
/// nobody's.
fn find(table: &str, from: &str, to: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let here = fields.next()? == from && fields.next()? == to;
        // state, queues, timer, retransmits
        let uid = fields.nth(4)?.parse().ok()?;
        let inode = fields.nth(1)?;
        (here && inode != "0").then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 22222 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:C351 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 4 30 10 -1
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:C352 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1002        0 33333 1 0000000000000000 20 4 30 10 -1
   1: 00000000000000000000000001000000:C353 00000000000000000000000001000000:1F90 01 00000000:00000000 00:00000000 00000000  1003        0 44444 1 0000000000000000 20 4 30 10 -1
";

    fn owner_of(peer: &str, local: &str) -> Option<u32> {
        let read = |path: &str| Ok(if path.ends_with('6') { TCP6 } else { TCP }.to_owned());
        owner(peer.parse().unwrap(), local.parse().unwrap(), read).unwrap()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_table_names_the_owner() {
        assert_eq!(owner_of("127.0.0.1:50000", "127.0.0.1:8080"), Some(1001));
        assert_eq!(owner_of("127.0.0.1:50002", "127.0.0.1:8080"), Some(1002), "through an IPv6 socket");
        assert_eq!(owner_of("[::1]:50003", "[::1]:8080"), Some(1003));
        assert_eq!(owner_of("127.0.0.1:50001", "127.0.0.1:8080"), None, "an orphan is nobody's");
        assert_eq!(owner_of("127.0.0.1:50000", "127.0.0.1:8081"), None, "connected elsewhere");
        assert_eq!(owner_of("127.0.0.1:50009", "127.0.0.1:8080"), None);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_an_error() {
        let denied = |_: &str| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(owner("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap(), denied).is_err());
    }

    #[tokio::test]
    async fn ones_own_connection_is_known_to_the_kernel() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(loopback).await else { continue };
            let local = listener.local_addr().unwrap();
            let client = tokio::net::TcpStream::connect(local).await.unwrap();
            let (_server, peer) = listener.accept().await.unwrap();
            assert!(is_own(peer, local).await);
            drop(client);
            let stranger = SocketAddr::new(peer.ip(), peer.port() ^ 1);
            assert!(!is_own(stranger, local).await, "no such socket: refused");
        }
    }
}
