//! Takes bytes that no HTTP library would send; gives what came back on that TLS connection, up to its end.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wait;

/// A TLS connection that negotiated HTTP/1.1 and has said nothing yet.
pub async fn connect(port: u16, roots: RootCertStore, name: &str) -> Result<TlsStream<TcpStream>> {
    let mut config = super::tls(roots)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(name.to_owned())?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
}

/// An answer taken apart as far as a test needs: `status` 0 means that the connection ended without one.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    pub status: u16,
    pub text: String,
}

/// Sends `bytes` and reads until the other side closes. Ask for `Connection: close`, or be refused: a connection that stays open
/// longer than [`wait::SOON`] is an error.
pub async fn exchange(port: u16, roots: RootCertStore, bytes: &[u8]) -> Result<RawAnswer> {
    let mut stream = connect(port, roots, "127.0.0.1").await?;
    stream.write_all(bytes).await?;
    let mut received = Vec::new();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
    // A refusal may end with a reset or without close_notify: what came before it counts.
    let _ = wait::within(&shown, wait::SOON, stream.read_to_end(&mut received)).await?;
    let text = String::from_utf8_lossy(&received).into_owned();
    let status = match text.split(' ').nth(1) {
        Some(code) if text.starts_with("HTTP/1.1 ") => code.parse().with_context(|| text.clone())?,
        _ => 0,
    };
    Ok(RawAnswer { status, text })
}
