//! quinn by itself, as a process of its own and a caller of it: mutual TLS, MTU 1452 with GSO, and nothing above it. What it carries is
//! the most that a tunnel over quinn can. Each stream begins with what is wanted: an echo, N bytes, or the count of what was sent.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use postern_tests::process::Program;
use postern_tests::stand::say;
use postern_tests::wait;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::task::JoinSet;

use super::Proof;
use super::backend::pair;
use crate::load::bulk::{PIECE, Way, mib_per_second};
use crate::load::{CONNECTIONS, Load, quantile};
use crate::site::{BODY, Site};

const ALPN: &[u8] = b"bench";
const MTU: u16 = 1452;
/// What waits for its turn must not be taken for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const ECHO: u8 = b'e';
const DOWN: u8 = b'd';
const UP: u8 = b'u';
/// 1 GiB in two minutes, as for the others.
const PATIENCE: Duration = Duration::from_mins(2);

/// The running server and how to reach it.
#[derive(Debug)]
pub(crate) struct Quinn {
    _server: Program,
    address: SocketAddr,
    client: quinn::ClientConfig,
}

impl Quinn {
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["peer", "quinn", "--ca"]).arg(site.pki.ca_file());
        command.arg("--cert").arg(&site.facts.cert.cert).arg("--key").arg(&site.facts.cert.key);
        let mut server = Program::start("quinn", command, &site.path("quinn.log"))?;
        let address = server.wait_value("udp=").await?.parse()?;
        let files = site.pki.server("quinn-client", &[])?;
        let client = connector(&Proof { ca: site.pki.ca_file(), cert: files.cert, key: files.key })?;
        Ok(Self { _server: server, address, client })
    }

    /// `bytes` one way, on one stream; MiB/s.
    pub(crate) async fn bulk(&self, way: Way, bytes: u64) -> Result<f64> {
        self.with_connection(PATIENCE, move |connection| async move {
            let start = Instant::now();
            match way {
                Way::Down => down(&connection, bytes).await?,
                Way::Up => up(&connection, bytes).await?,
            }
            Ok(mib_per_second(bytes, start.elapsed()))
        })
        .await
    }

    /// 1 KiB there and back, each time on a fresh stream; as many at once as other targets have connections.
    pub(crate) async fn exchange(&self, seconds: u32) -> Result<Load> {
        let span = Duration::from_secs(seconds.into());
        let mut times: Vec<u32> = self
            .with_connection(span + wait::SOON, move |connection| async move {
                let all = try_join_all((0..CONNECTIONS).map(|_| echoes(&connection, span))).await?;
                Ok(all.into_iter().flatten().collect())
            })
            .await?;
        let requests = times.len() as u64;
        #[expect(clippy::cast_precision_loss, reason = "far from 2^53 requests")]
        let per_second = requests as f64 / span.as_secs_f64();
        let (p50_us, p99_us) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        Ok(Load { requests, per_second, p50_us, p99_us, ..Load::default() })
    }

    /// Runs `work` with a connection of its own on a thread of its own.
    async fn with_connection<T, F>(
        &self,
        limit: Duration,
        work: impl FnOnce(Connection) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let (client, address) = (self.client.clone(), self.address);
        let running = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
                let connecting = endpoint.connect_with(client, address, "localhost")?;
                let connection = wait::within("a QUIC handshake", wait::SOON, connecting).await??;
                let done = wait::within("raw quinn", limit, work(connection)).await?;
                endpoint.close(0u32.into(), b"");
                wait::within("a QUIC goodbye", wait::SOON, endpoint.wait_idle()).await?;
                done
            })
        });
        running.await?
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU);
    config.mtu_discovery_config(Some(discovery)).enable_segmentation_offload(true);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

async fn open(connection: &Connection, kind: u8, bytes: u64) -> Result<(SendStream, RecvStream)> {
    let (mut send, recv) = connection.open_bi().await?;
    let mut head = vec![kind];
    head.extend(bytes.to_be_bytes());
    send.write_all(&head).await?;
    Ok((send, recv))
}

async fn down(connection: &Connection, bytes: u64) -> Result<()> {
    let (mut send, mut recv) = open(connection, DOWN, bytes).await?;
    send.finish()?;
    let received = drain(&mut recv).await?;
    ensure!(received == bytes, "{received} of {bytes} bytes came");
    Ok(())
}

async fn up(connection: &Connection, bytes: u64) -> Result<()> {
    let (mut send, mut recv) = open(connection, UP, bytes).await?;
    fill(&mut send, bytes).await?;
    let mut counted = [0; 8];
    recv.read_exact(&mut counted).await?;
    ensure!(u64::from_be_bytes(counted) == bytes, "not all of {bytes} bytes arrived");
    Ok(())
}

async fn echoes(connection: &Connection, span: Duration) -> Result<Vec<u32>> {
    let message = vec![b'x'; BODY];
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    while start.elapsed() < span {
        let begun = Instant::now();
        let (mut send, mut recv) = open(connection, ECHO, 0).await?;
        send.write_all(&message).await?;
        send.finish()?;
        let answer = recv.read_to_end(BODY).await?;
        ensure!(answer.len() == BODY, "{} bytes came back", answer.len());
        times.push(u32::try_from(begun.elapsed().as_micros())?);
    }
    Ok(times)
}

async fn fill(send: &mut SendStream, bytes: u64) -> Result<()> {
    let piece = vec![b'x'; PIECE];
    let mut left = bytes;
    while left > 0 {
        let size = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        send.write_all(&piece[..size]).await?;
        left -= size as u64;
    }
    Ok(send.finish()?)
}

async fn drain(recv: &mut RecvStream) -> Result<u64> {
    let mut received = 0;
    while let Some(chunk) = recv.read_chunk(PIECE, true).await? {
        received += chunk.bytes.len() as u64;
    }
    Ok(received)
}

fn roots(ca: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    Ok(roots)
}

/// One end of mutual TLS over QUIC.
pub(super) fn connector(proof: &Proof) -> Result<quinn::ClientConfig> {
    let (chain, key) = pair(&proof.cert, &proof.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&proof.ca)?)
        .with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    Ok(config)
}

/// The other.
pub(super) fn listener(proof: &Proof) -> Result<quinn::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots(&proof.ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let (chain, key) = pair(&proof.cert, &proof.key)?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    Ok(config)
}

/// The server itself: serves until it is killed.
pub(crate) async fn serve(proof: &Proof) -> Result<()> {
    let endpoint = Endpoint::server(listener(proof)?, ([127, 0, 0, 1], 0).into())?;
    say(&format!("udp={}", endpoint.local_addr()?));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let incoming = incoming.context("the endpoint closed")?;
                connections.spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    let mut streams = JoinSet::new();
                    while let Ok((send, recv)) = connection.accept_bi().await {
                        streams.spawn(answer(send, recv));
                        while streams.try_join_next().is_some() {}
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Any error ends the stream, and the caller says so.
async fn answer(mut send: SendStream, mut recv: RecvStream) -> Result<()> {
    let mut head = [0; 9];
    recv.read_exact(&mut head).await?;
    let [kind, count @ ..] = head;
    match kind {
        ECHO => {
            let message = recv.read_to_end(BODY).await?;
            send.write_all(&message).await?;
            send.finish()?;
        }
        DOWN => fill(&mut send, u64::from_be_bytes(count)).await?,
        UP => {
            let received = drain(&mut recv).await?;
            send.write_all(&received.to_be_bytes()).await?;
            send.finish()?;
        }
        _ => bail!("unknown stream"),
    }
    Ok(())
}
