//! Connections to upstreams: takes one address of the file, gives a byte stream (TCP, TLS over it, or a unix socket) within one limit for
//! name, connection and TLS together. What went wrong is logged here with the address, and told without it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{CallError, UpstreamError, resolve, tls};
use crate::settings::Service;
use crate::settings::service::{Address, Protocol};

/// An upstream whose machine is gone is noticed within 30 + 3 x 10 s of silence.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// What every kind of connection is.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub type Stream = Box<dyn Io>;

/// How one service's addresses are reached.
pub(crate) struct Connector {
    tls: Option<(TlsConnector, Option<ServerName<'static>>)>,
    is_h2: bool,
    limit: Duration,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Connector {
    pub(crate) fn new(service: &Service) -> Result<Self, UpstreamError> {
        let tls = service.tls.as_ref().map(|tls| {
            let config = tls::config(service, tls)?;
            Ok((TlsConnector::from(config), tls.server_name.clone()))
        });
        Ok(Self {
            tls: tls.transpose()?,
            is_h2: service.protocol == Protocol::Http2,
            limit: service.limit.connect,
        })
    }

    pub(crate) async fn connect(&self, address: &Address) -> Result<Stream, CallError> {
        let connected = tokio::time::timeout(self.limit, self.try_connect(address)).await;
        connected.unwrap_or_else(|_| Err(CallError::Connect(format!("not within {:?}", self.limit))))
    }

    async fn try_connect(&self, address: &Address) -> Result<Stream, CallError> {
        let (host, port) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| connect_error(&e))?;
                return Ok(Box::new(stream));
            }
            Address::Port { host, port } => (host, *port),
        };
        let stream = self.tcp(host, port).await.map_err(|e| connect_error(&e))?;
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(stream)) };
        let name = match name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.clone()).map_err(|_| {
                CallError::Tls("its host is no name for a certificate: set tls.server_name".into())
            })?,
        };
        let stream = connector.connect(name, stream).await.map_err(|e| tls_error(&e))?;
        if self.is_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let why = "it does not speak HTTP/2: write https:// for its upstream";
            return Err(CallError::Tls(why.to_owned()));
        }
        Ok(Box::new(stream))
    }

    /// Every address of a name in turn; each may take its share of what is left of the limit.
    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let until = Instant::now() + self.limit;
        let addresses = resolve::resolve(host, port).await?;
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            let share = until.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return prepared(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("not within {share:?}")),
            }
        }
        Err(last)
    }
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN).with_retries(KEEPALIVE_TRIES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

fn connect_error(error: &io::Error) -> CallError {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        CallError::Refused
    } else {
        CallError::Connect(error.to_string())
    }
}

fn tls_error(error: &io::Error) -> CallError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => CallError::Tls(tls::shown(error)),
        None => CallError::Tls(error.to_string()),
    }
}

/// Whether an address takes connections at all; TLS is not tried.
pub(crate) async fn probe(address: &Address, limit: Duration) -> Result<(), String> {
    let reach = async {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
            Address::Port { host, port } => {
                let addresses: Vec<SocketAddr> = resolve::resolve(host, *port).await?;
                TcpStream::connect(&addresses[..]).await.map(drop)
            }
        }
    };
    match tokio::time::timeout(limit, reach).await {
        Ok(reached) => reached.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no connection within {limit:?}")),
    }
}
