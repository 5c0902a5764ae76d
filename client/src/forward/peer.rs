//! Takes an accepted connection; says whether it comes from a process of the same user. Fails closed: a socket whose owner cannot be
//! established is another's.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::sync::Mutex;

/// The user this process acts as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Own,
    Other,
    /// Nobody's: it was closed meanwhile, or the kernel's table cannot be read.
    Unknown,
}

/// Looks owners up. The kernel's table is read as a whole, so connections that come together are looked up together.
#[derive(Default)]
pub(crate) struct Peers {
    last: Mutex<Option<Table>>,
}

/// What the kernel said.
struct Table {
    begun: Instant,
    owners: io::Result<Owners>,
}

impl Peers {
    /// Whose the other end of a loopback connection is, by the kernel's table of sockets. Without such a table (not Linux) nothing is
    /// refused.
    pub(crate) async fn whose(&self, peer: SocketAddr, local: SocketAddr) -> Whose {
        if !cfg!(target_os = "linux") {
            return Whose::Own;
        }
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        // Only a table that was begun after the connection stood knows it.
        if last.as_ref().is_none_or(|table| table.begun < asked) {
            let begun = Instant::now();
            let read = tokio::task::spawn_blocking(|| Owners::read(|path| std::fs::read_to_string(path)));
            let owners = read.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            *last = Some(Table { begun, owners });
        }
        let owner = last.as_ref().and_then(|table| table.owners.as_ref().ok()?.of(peer, local));
        owner.map_or(Whose::Unknown, |uid| if uid == own_uid() { Whose::Own } else { Whose::Other })
    }
}

/// The user of each connected socket, by its own address and the other end's as the kernel writes them.
struct Owners(HashMap<String, u32>);

impl Owners {
    fn read(read: impl Fn(&str) -> io::Result<String>) -> io::Result<Self> {
        let mut owners = HashMap::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            match read(table) {
                Ok(text) => owners.extend(text.lines().skip(1).filter_map(entry)),
                // A kernel without IPv6 has no such table.
                Err(e) if e.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Self(owners))
    }

    /// Who owns the socket at `peer` that is connected to `local`. A program may reach 127.0.0.1 through an IPv6 socket too.
    fn of(&self, peer: SocketAddr, local: SocketAddr) -> Option<u32> {
        let owner = |peer_ip, local_ip| {
            let from = written(peer_ip, peer.port());
            self.0.get(&format!("{from} {}", written(local_ip, local.port()))).copied()
        };
        owner(peer.ip(), local.ip()).or_else(|| match (peer.ip(), local.ip()) {
            (IpAddr::V4(peer), IpAddr::V4(local)) => {
                owner(peer.to_ipv6_mapped().into(), local.to_ipv6_mapped().into())
            }
            _ => None,
        })
    }
}

/// One line of a table: both addresses and the user. A socket that nobody holds any more has inode 0 and shows root's uid: it is nobody's.
fn entry(line: &str) -> Option<(String, u32)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let addresses = format!("{} {}", fields.next()?, fields.next()?);
    // state, queues, timer, retransmits
    let uid = fields.nth(4)?.parse().ok()?;
    let inode = fields.nth(1)?;
    (inode != "0").then_some((addresses, uid))
}

/// An address as the table writes it: 32-bit words in the machine's byte order.
fn written(ip: IpAddr, port: u16) -> String {
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
        Owners::read(read).unwrap().of(peer.parse().unwrap(), local.parse().unwrap())
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
        assert!(Owners::read(denied).is_err());
        let no_ipv6 = |path: &str| match path {
            "/proc/net/tcp" => Ok(TCP.to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        assert!(Owners::read(no_ipv6).is_ok());
    }

    #[tokio::test]
    async fn ones_own_connection_is_known_to_the_kernel() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(loopback).await else { continue };
            let local = listener.local_addr().unwrap();
            let client = tokio::net::TcpStream::connect(local).await.unwrap();
            let (_server, peer) = listener.accept().await.unwrap();
            let peers = Peers::default();
            assert_eq!(peers.whose(peer, local).await, Whose::Own);
            let stranger = SocketAddr::new(peer.ip(), peer.port() ^ 1);
            assert_eq!(peers.whose(stranger, local).await, Whose::Unknown, "no such socket");
            let second = tokio::net::TcpStream::connect(local).await.unwrap();
            let (_server, peer) = listener.accept().await.unwrap();
            assert_eq!(peers.whose(peer, local).await, Whose::Own, "a table from before it is not enough");
            drop((client, second));
        }
    }
}
