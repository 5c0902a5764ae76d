//! The PROXY protocol, version 2, which a balancer speaks before TLS: takes a connection from a balancer, gives the address of the caller
//! behind it; refuses whatever does not begin with one whole header that names an address. It is read to its last byte and no further.

use std::io;
use std::net::SocketAddr;

use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX, ParseError, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Signature, version and command, family, length.
const START: usize = 16;
/// Addresses and what a balancer adds, which may be a client certificate; more is no header.
const REST: usize = 4 * 1024;

/// Why a connection from a balancer is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("it does not begin with a PROXY header, version 2: {0}")]
    Malformed(#[from] ParseError),
    #[error("its PROXY header declares {0} bytes, more than {REST}")]
    TooLong(usize),
    #[error("its PROXY header names no TCP address")]
    NoAddress,
    #[error("it ended within its PROXY header: {0}")]
    Ended(#[from] io::Error),
}

/// Reads the header; `None` where the balancer speaks for itself (LOCAL: its own probes). Bounded in bytes, and by its caller in time.
pub async fn caller(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut header = vec![0; START];
    stream.read_exact(&mut header).await?;
    if !header.starts_with(PROTOCOL_PREFIX) {
        return Err(ParseError::Prefix.into());
    }
    let rest = usize::from(u16::from_be_bytes([header[START - 2], header[START - 1]]));
    if rest > REST {
        return Err(ProxyError::TooLong(rest));
    }
    header.resize(START + rest, 0);
    stream.read_exact(&mut header[START..]).await?;
    let header = Header::try_from(header.as_slice())?;
    match (header.command, header.protocol, header.addresses) {
        (Command::Local, ..) => Ok(None),
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(of)) => {
            Ok(Some((of.source_address, of.source_port).into()))
        }
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(of)) => {
            Ok(Some((of.source_address, of.source_port).into()))
        }
        (Command::Proxy, ..) => Err(ProxyError::NoAddress),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, usize) {
        let mut stream = bytes;
        let mut reading = Box::pin(caller(&mut stream));
        let waker = std::task::Waker::noop();
        let std::task::Poll::Ready(read) = reading.as_mut().poll(&mut std::task::Context::from_waker(waker))
        else {
            panic!("a slice never waits")
        };
        drop(reading);
        (read, stream.len())
    }

    /// `command`, `family`, and a payload that is followed by the first bytes of TLS.
    fn header(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [PROTOCOL_PREFIX, &[command, family], &length, payload, b"\x16\x03\x01"].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 1, 0xbb];

    #[test]
    fn the_callers_address_is_read_and_nothing_behind_it() {
        let (found, left) = read(&header(0x21, 0x11, &V4));
        assert_eq!((found.unwrap(), left), (Some("192.0.2.7:12345".parse().unwrap()), 3));
        let with_more = [&V4[..], &[4, 0, 1, 42]].concat();
        let (found, left) = read(&header(0x21, 0x11, &with_more));
        assert_eq!((found.unwrap(), left), (Some("192.0.2.7:12345".parse().unwrap()), 3));
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        v6[15] = 9;
        let (found, _) = read(&header(0x21, 0x21, &v6));
        assert_eq!(found.unwrap(), Some("[2001:db8::9]:0".parse().unwrap()));
        let (found, left) = read(&header(0x20, 0x00, &[]));
        assert_eq!((found.unwrap(), left), (None, 3), "LOCAL");
    }

    #[test]
    fn what_names_no_caller_is_refused() {
        for (why, bytes) in [
            ("TLS at once", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh".to_vec()),
            ("version 1", b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n".to_vec()),
            ("another version", header(0x31, 0x11, &V4)),
            ("another command", header(0x22, 0x11, &V4)),
            ("unspecified", header(0x21, 0x00, &[])),
            ("a unix socket", header(0x21, 0x31, &[1; 216])),
            ("UDP", header(0x21, 0x12, &V4)),
            ("addresses cut short", header(0x21, 0x11, &V4[..11])),
            ("cut short", header(0x21, 0x11, &V4)[..20].to_vec()),
            ("too long", header(0x21, 0x11, &[0; REST + 1])),
        ] {
            assert!(read(&bytes).0.is_err(), "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_are_read_beyond_the_bound(
            prefix in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..6000),
        ) {
            let bytes = if prefix { [PROTOCOL_PREFIX, &bytes].concat() } else { bytes };
            let (_, left) = read(&bytes);
            prop_assert!(bytes.len() - left <= START + REST);
        }
    }
}
