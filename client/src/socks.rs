//! SOCKS5 (RFC 1928), the server's side. Takes the beginning of a local program's connection; gives the place that it asks for, and the
//! answers that there are. Refuses all but CONNECT without authentication, each with its own code. Nothing is resolved here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// What a program is told (RFC 1928, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    CommandNotSupported = 7,
    AddressNotSupported = 8,
}

/// Where a program wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    Name(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) destination: Destination,
    pub(crate) port: u16,
}

/// Why a program asked for nothing that could be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocksError {
    #[error("a program did not speak SOCKS5: give it this proxy as socks5h://")]
    Foreign,
    #[error("a program would not go without a password: this proxy has none")]
    Authentication,
    #[error("a program asked for SOCKS command {0}: only CONNECT is done here")]
    Command(u8),
    #[error("a program named a host in a way that is not known here")]
    Address,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads what is asked for, and not a byte more. What cannot be is refused before this returns.
pub(crate) async fn asked<S>(stream: &mut S) -> Result<Asked, SocksError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A web page can have a browser send an HTTP request here; it gets no further than its first letter.
    if stream.read_u8().await? != VERSION {
        return Err(SocksError::Foreign);
    }
    let mut methods = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(SocksError::Authentication);
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let [version, command, _, kind] = request;
    if version != VERSION {
        return Err(SocksError::Foreign);
    }
    let destination = match kind {
        IPV4 => Some(Destination::Address(Ipv4Addr::from(stream.read_u32().await?).into())),
        IPV6 => Some(Destination::Address(Ipv6Addr::from(stream.read_u128().await?).into())),
        DOMAIN => {
            let mut name = vec![0; stream.read_u8().await?.into()];
            stream.read_exact(&mut name).await?;
            name_of(name)
        }
        _ => None,
    };
    let Some(destination) = destination else {
        answer(stream, Reply::AddressNotSupported).await?;
        return Err(SocksError::Address);
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        answer(stream, Reply::CommandNotSupported).await?;
        return Err(SocksError::Command(command));
    }
    Ok(Asked { destination, port })
}

/// A name as programs write it, without the dot that may end it. An address that is written as a name is one.
fn name_of(name: Vec<u8>) -> Option<Destination> {
    let name = String::from_utf8(name).ok()?.to_ascii_lowercase();
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Some(Destination::Address(address));
    }
    let name = name.strip_suffix('.').unwrap_or(&name);
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    is_name(name).then(|| Destination::Name(name.to_owned()))
}

/// Answers, with the unspecified address as that from which one goes on: there is none.
pub(crate) async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, reply: Reply) -> io::Result<()> {
    stream.write_all(&[VERSION, reply as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes of these bytes, and what was answered.
    fn said(bytes: &[u8]) -> (Result<Asked, SocksError>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let asked = asked(&mut ours).await;
            drop(ours);
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).await.unwrap();
            (asked, answer)
        })
    }

    fn connect(command: u8, kind: u8, rest: &[u8]) -> (Result<Asked, SocksError>, Vec<u8>) {
        said(&[&[5, 1, 0, 5, command, 0, kind], rest].concat())
    }

    fn destination(kind: u8, rest: &[u8]) -> Destination {
        connect(1, kind, rest).0.unwrap().destination
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        let (asked, answer) = connect(1, 3, b"\x07Billing\x00\x50");
        assert_eq!(asked.unwrap(), Asked { destination: Destination::Name("billing".into()), port: 80 });
        assert_eq!(answer, [5, 0], "the request is answered by whoever goes there");
        assert_eq!(destination(3, b"\x08billing.\x00\x50"), Destination::Name("billing".into()));
        for (kind, rest, address) in [
            (1, &b"\x7f\x00\x00\x01\x00\x50"[..], "127.0.0.1"),
            (4, b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50", "::1"),
            (3, b"\x0910.1.2.30\x00\x50", "10.1.2.30"),
            (3, b"\x05[::1]\x00\x50", "::1"),
        ] {
            assert_eq!(destination(kind, rest), Destination::Address(address.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_not_done_is_refused_with_its_code() {
        let (error, answer) = connect(3, 3, b"\x01x\x00\x50");
        assert!(matches!(error, Err(SocksError::Command(3))));
        assert_eq!(answer[..4], [5, 0, 5, 7]);
        for (kind, rest) in [
            (2, &b"\x01x\x00\x50"[..]),
            (3, b"\x00\x00\x50"),
            (3, b"\x03a/b\x00\x50"),
            (3, b"\x02\xc3\x28\x00\x50"),
        ] {
            let (error, answer) = connect(1, kind, rest);
            assert!(matches!(error, Err(SocksError::Address)), "{rest:?}");
            assert_eq!(answer[..4], [5, 0, 5, 8]);
        }
        let (error, answer) = said(&[5, 2, 1, 2]);
        assert!(matches!(error, Err(SocksError::Authentication)));
        assert_eq!(answer, [5, 0xff]);
        for foreign in [&b"GET / HTTP/1.1\r\n"[..], b"\x04\x01", b"\x16\x03\x01"] {
            let (error, answer) = said(foreign);
            assert!(matches!(error, Err(SocksError::Foreign)) && answer.is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_pass_as_a_name_that_is_none(bytes: Vec<u8>) {
            if let (Ok(Asked { destination: Destination::Name(name), .. }), _) = said(&[&[5, 1, 0, 5, 1, 0, 3], &bytes[..]].concat()) {
                prop_assert!(name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'), "{name}");
            }
        }
    }
}
