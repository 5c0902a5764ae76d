//! Takes the way to an upstream; gives a connection that carries raw bytes to it: straight, over TLS, or through Postern's TCP service
//! as the `postern` client opens it (an HTTP/1.1 upgrade to `postern-tcp`).

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use postern_tests::wait;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// More than any answer's head of ours.
const HEAD: usize = 16 * 1024;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(crate) type Connection = Box<dyn Io>;

/// The way there.
#[derive(Debug, Clone)]
pub(crate) enum Via {
    Plain(SocketAddr),
    Tls { address: SocketAddr, tls: Arc<ClientConfig> },
    Postern { address: SocketAddr, tls: Arc<ClientConfig>, service: String, token: String },
}

impl Via {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Plain(address) | Self::Tls { address, .. } | Self::Postern { address, .. } => *address,
        }
    }

    pub(crate) async fn dial(&self) -> Result<Connection> {
        wait::within("a connection", wait::SOON, self.connect()).await?
    }

    async fn connect(&self) -> Result<Connection> {
        match self {
            Self::Plain(address) => Ok(Box::new(tcp(*address).await?)),
            Self::Tls { address, tls } => Ok(Box::new(over_tls(*address, tls).await?)),
            Self::Postern { address, tls, service, token } => {
                let mut stream = over_tls(*address, tls).await?;
                let head = format!(
                    "GET /.postern/tcp/{service} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
                     Connection: Upgrade\r\nUpgrade: postern-tcp\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await?;
                stream.flush().await?;
                let answer = head_of(&mut stream).await?;
                ensure!(status(&answer)? == 101, "{service}: no upgrade: {answer}");
                Ok(Box::new(stream))
            }
        }
    }
}

async fn tcp(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn over_tls(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(address.ip().into());
    let connecting = TlsConnector::from(tls.clone()).connect(name, tcp(address).await?);
    connecting.await.with_context(|| address.to_string())
}

/// Reads a head and not one byte more; what follows it belongs to somebody else.
pub(crate) async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD, "an answer's head without end");
        head.push(stream.read_u8().await.context("no answer's head")?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The status of an answer's head.
pub(crate) fn status(head: &str) -> Result<u16> {
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|text| text.parse().ok()).with_context(|| format!("not an answer's head: {head}"))
}

/// The declared length of an answer's body.
pub(crate) fn length(head: &str) -> Result<u64> {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Ok(value.with_context(|| format!("no Content-Length: {head}"))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_status_and_length() {
        let head = "HTTP/1.1 200 OK\r\ncontent-LENGTH: 1024\r\n\r\n";
        assert_eq!((status(head).unwrap(), length(head).unwrap()), (200, 1024));
        assert!(status("SSH-2.0-x\r\n\r\n").is_err());
        assert!(length("HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
