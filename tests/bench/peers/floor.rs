//! The floor: Postern's road with nobody on it. A caller's TLS, hyper, a QUIC stream, hyper again and nginx, in two processes with a thread
//! for each core, of the same libraries and with the same allocator; no token, no policy, no limits, no audit. What Postern costs beyond
//! this is its own. It is the simplest such road, not the cheapest that can be thought of. Both halves hold bodies whole, give up at the
//! first error, and are fit for nothing else.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use postern_tests::process::Program;
use postern_tests::stand::say;
use postern_tests::wait;
use quinn::{Connection, Endpoint};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::Proof;
use super::backend::pair;
use super::quinn::{connector, listener};
use crate::site::Site;

/// More than any head and body that is asked for.
const LIMIT: usize = 1024 * 1024;

/// Both halves at work.
#[derive(Debug)]
pub(crate) struct Floor {
    pub(crate) outer: Program,
    pub(crate) inner: Program,
    port: u16,
}

/// What either half is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Told {
    #[command(flatten)]
    proof: Proof,
    /// Where callers come in; nginx, for the inner half.
    #[arg(long)]
    tcp: SocketAddr,
    /// Where the outer half waits, a port for each core.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<SocketAddr>,
}

impl Floor {
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let half = |name: &str, tcp: u16, udp: &str| {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(["peer", name, "--udp", udp, "--tcp", &format!("127.0.0.1:{tcp}"), "--ca"]);
            command.arg(site.pki.ca_file()).arg("--cert").arg(&site.facts.cert.cert);
            command.arg("--key").arg(&site.facts.cert.key);
            Program::start(name, command, &site.path(&format!("{name}.log")))
        };
        let ports = (0..site.cores).map(|_| Ok(format!("127.0.0.1:{}", wait::free_port()?)));
        let udp = ports.collect::<Result<Vec<_>>>()?.join(",");
        let port = wait::free_port()?;
        let mut outer = half("floor-outer", port, &udp)?;
        outer.wait_lines("listening", site.cores, wait::SOON).await?;
        let inner = half("floor-inner", site.facts.plain, &udp)?;
        let floor = Self { outer, inner, port };
        let url = floor.at("/1k");
        wait::until("the floor answers 200", wait::SOON, async || {
            site.http.get(&url, None).await.ok().filter(|answer| answer.status == 200).map(drop)
        })
        .await
        .with_context(|| format!("{}{}", floor.outer.tail(), floor.inner.tail()))?;
        Ok(floor)
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }
}

/// The half that callers see: runs until it is killed.
pub(crate) fn outer(told: &Told) -> Result<()> {
    each_core(told, async |told, udp| {
        let (chain, key) = pair(&told.proof.cert, &told.proof.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(told.tcp)?;
        let callers = socket.listen(1024)?;
        let tunnels = Endpoint::server(listener(&told.proof)?, udp)?;
        say("listening");
        let tunnel = tunnels.accept().await.context("the endpoint closed")?.await?;
        loop {
            let (stream, _) = callers.accept().await?;
            stream.set_nodelay(true)?;
            let (acceptor, tunnel) = (acceptor.clone(), tunnel.clone());
            tokio::task::spawn_local(async move {
                let carry = service_fn(|request| carried(&tunnel, request));
                let stream = TokioIo::new(acceptor.accept(stream).await?);
                Ok::<_, anyhow::Error>(
                    server::conn::http1::Builder::new().serve_connection(stream, carry).await?,
                )
            });
        }
    })
}

/// The half beside nginx: runs until it is killed.
pub(crate) fn inner(told: &Told) -> Result<()> {
    each_core(told, async |told, udp| {
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
        endpoint.set_default_client_config(connector(&told.proof)?);
        let tunnel = endpoint.connect(udp, "localhost")?.await?;
        let idle = Rc::new(RefCell::new(Vec::new()));
        loop {
            let (mut send, mut recv) = tunnel.accept_bi().await?;
            let (idle, nginx) = (idle.clone(), told.tcp);
            tokio::task::spawn_local(async move {
                let asked = recv.read_to_end(LIMIT).await?.into();
                let parked = idle.borrow_mut().pop();
                let mut upstream = match parked {
                    Some(upstream) => upstream,
                    None => connected(nginx).await?,
                };
                let (path, fields, body) = read(asked)?;
                let mut request = Request::new(Full::new(body));
                *request.uri_mut() = path.parse()?;
                *request.headers_mut() = fields;
                let (head, body) = upstream.send_request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                idle.borrow_mut().push(upstream);
                let message = written(head.status.as_str(), &head.headers, &body);
                send.write_all_chunks(&mut [message]).await?;
                Ok::<_, anyhow::Error>(send.finish()?)
            });
        }
    })
}

/// A thread with a runtime of its own for each of the ports.
fn each_core(
    told: &Told,
    work: impl AsyncFn(Told, SocketAddr) -> Result<()> + Copy + Send + 'static,
) -> Result<()> {
    let threads = told.udp.iter().map(|udp| {
        let (told, udp) = (told.clone(), *udp);
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(LocalSet::new().run_until(work(told, udp)))
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
}

async fn carried(tunnel: &Connection, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let message = written(head.uri.path(), &head.headers, &body);
    let (mut send, mut recv) = tunnel.open_bi().await?;
    send.write_all_chunks(&mut [message]).await?;
    send.finish()?;
    let (status, fields, body) = read(recv.read_to_end(LIMIT).await?.into())?;
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status.parse()?;
    *answer.headers_mut() = fields;
    Ok(answer)
}

async fn connected(nginx: SocketAddr) -> Result<client::conn::http1::SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(nginx).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// A first word, fields and body: each with its length before it, two bytes; the body to the end.
fn written(first: &str, fields: &HeaderMap, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(4096);
    let mut put = |bytes: &[u8]| {
        out.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        out.put_slice(bytes);
    };
    put(first.as_bytes());
    for (name, value) in fields {
        put(name.as_str().as_bytes());
        put(value.as_bytes());
    }
    put(b"");
    out.put_slice(body);
    out.freeze()
}

/// What [`written`] wrote.
fn read(mut message: Bytes) -> Result<(String, HeaderMap, Bytes)> {
    let mut next = || {
        ensure!(message.len() >= 2, "cut short");
        let length = usize::from(message.get_u16());
        ensure!(message.len() >= length, "cut short");
        Ok(message.split_to(length))
    };
    let first = String::from_utf8(next()?.into())?;
    let mut fields = HeaderMap::with_capacity(16);
    loop {
        let name = next()?;
        if name.is_empty() {
            break;
        }
        let name = HeaderName::from_lowercase(&name)?;
        let value = HeaderValue::from_maybe_shared(next()?)?;
        if name != header::TRANSFER_ENCODING {
            fields.append(name, value);
        }
    }
    Ok((first, fields, message))
}
