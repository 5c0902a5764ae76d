//! An upstream that counts. Every request carries an id of its own in its path; the ledger says how often each arrived, so that what was
//! lost or doubled on the way shows. It answers what can be checked: bytes that follow from the id, the digest of an upload, or the
//! same bytes back.
//!
//! `/get/ID`; `/put/ID` (digest); `/duplex/ID` (the body comes back while it is still being sent); `/stream/ID?bytes=N&step=S&pause=MS`
//! (the pattern); `/socket/ID` (WebSocket: every message comes back). [`Counting::tcp`] is a plain TCP service: every byte comes back.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::{Body, full, pattern_body};
use crate::pattern;
use crate::websocket;

/// How often each id arrived, and what is open now.
#[derive(Debug, Default)]
struct Ledger {
    arrived: Mutex<HashMap<String, u32>>,
    /// Requests, sockets and TCP connections that are being served.
    open: AtomicI64,
}

/// One of them, while it is served.
struct Open(Arc<Ledger>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The running upstream; it stops when this is dropped.
#[derive(Debug)]
pub struct Counting {
    http: SocketAddr,
    tcp: SocketAddr,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Counting {
    /// Its services, as these agents' relay has them: `count`, and `wire` for TCP. `body_stall` is long where a caller waits for an echo
    /// through a cut, and sends nothing meanwhile.
    pub fn in_relay_toml(agents: &[&str], body_stall: &str) -> String {
        format!(
            r#"
[services.count]
agent = {agents:?}
rules = [{{ allow = "*", to = "* /**" }}]

[services.wire]
agent = {agents:?}
kind = "tcp"
rules = [{{ allow = "*", to = "CONNECT" }}]

[limits]
body_stall = "{body_stall}"
"#
        )
    }

    /// The same as an agent has them.
    pub fn in_agent_toml(&self) -> String {
        let (url, tcp) = (self.url(), self.tcp());
        format!("[services.count]\nupstream = \"{url}\"\n[services.wire]\nupstream = \"{tcp}\"\n")
    }

    /// On ports of its own at `address`, in the network namespace of the calling thread.
    pub fn start(address: IpAddr) -> Result<Self> {
        let listen = || -> Result<_> {
            let listener = std::net::TcpListener::bind((address, 0))?;
            listener.set_nonblocking(true)?;
            let at = listener.local_addr()?;
            Ok((listener, at))
        };
        let ((web, http), (raw, tcp)) = (listen()?, listen()?);
        let (ledger, stop) = (Arc::new(Ledger::default()), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, end) = (ledger.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("counting".to_owned())
            .spawn(move || runtime.block_on(serve(web, raw, theirs, end)))
            .context("a thread for the counting upstream")?;
        Ok(Self { http, tcp, ledger, stop, thread: Some(thread) })
    }

    /// The upstream of an HTTP service.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The upstream of a TCP service.
    pub fn tcp(&self) -> String {
        format!("tcp://{}", self.tcp)
    }

    /// How often each id arrived.
    pub fn arrived(&self) -> HashMap<String, u32> {
        self.ledger.arrived.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests, sockets and connections being served now.
    pub fn open(&self) -> i64 {
        self.ledger.open.load(Ordering::SeqCst)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends with the cancellation; a panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// The answer to `/get/ID`: some hundred to some thousand bytes that follow from the id alone.
pub fn answer_to(id: &str) -> Bytes {
    let hash = digest(&SHA256, id.as_bytes());
    let hash = hash.as_ref();
    let length = 100 + u64::from(hash[0]) * 16;
    let mut text = id.as_bytes().to_vec();
    text.push(b'\n');
    text.extend_from_slice(&pattern::chunk(u64::from(hash[1]), length));
    text.into()
}

/// The answer to an upload: its length and SHA-256.
pub fn receipt(body: &[u8]) -> String {
    let hash = digest(&SHA256, body);
    let hex: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {}", body.len(), hex.concat())
}

async fn serve(
    web: std::net::TcpListener,
    raw: std::net::TcpListener,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
) {
    let (Ok(web), Ok(raw)) = (TcpListener::from_std(web), TcpListener::from_std(raw)) else { return };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = tasks.join_next() => {}
            accepted = web.accept() => if let Ok((stream, _)) = accepted {
                tasks.spawn(connection(stream, ledger.clone()));
            },
            accepted = raw.accept() => if let Ok((stream, _)) = accepted {
                tasks.spawn(echo(stream, ledger.clone()));
            },
        }
    }
}

async fn connection(stream: TcpStream, ledger: Arc<Ledger>) {
    let sockets = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
    let service = service_fn(|request| answer(request, ledger.clone(), sockets.clone()));
    // A broken connection is the other side's business; what it was doing has been counted.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_mins(2))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    while sockets.lock().await.join_next().await.is_some() {}
}

/// Upgraded connections outlive the request that made them.
type Sockets = Arc<tokio::sync::Mutex<JoinSet<()>>>;

async fn answer(
    mut request: Request<Incoming>,
    ledger: Arc<Ledger>,
    sockets: Sockets,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut parts = path.splitn(3, '/').skip(1);
    let (kind, id) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().to_owned());
    let open = ledger.open(&id);
    let answer = match kind {
        "get" => Response::new(full(answer_to(&id))),
        "put" => match request.into_body().collect().await {
            Ok(body) => Response::new(full(receipt(&body.to_bytes()))),
            Err(_) => status(StatusCode::BAD_REQUEST),
        },
        "duplex" => {
            let body = request.into_body().map_err(std::io::Error::other);
            return Ok(Response::new(held(body.boxed_unsync(), open)));
        }
        "stream" => {
            let query: HashMap<_, _> =
                url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                    .map(|(name, value)| (name.into_owned(), value.parse::<u64>().unwrap_or_default()))
                    .collect();
            let number = |name: &str| query.get(name).copied().unwrap_or_default();
            let body = pattern_body(number("bytes"), number("step"), Duration::from_millis(number("pause")));
            return Ok(Response::new(held(body, open)));
        }
        "socket" => match websocket::accept(&request) {
            None => status(StatusCode::UPGRADE_REQUIRED),
            Some(answer) => {
                let upgrade = hyper::upgrade::on(&mut request);
                sockets.lock().await.spawn(async move {
                    if let Ok(io) = upgrade.await {
                        // How it ended is the other side's to judge.
                        let _ = websocket::echo(TokioIo::new(io)).await;
                    }
                    drop(open);
                });
                answer
            }
        },
        _ => status(StatusCode::NOT_FOUND),
    };
    Ok(answer)
}

fn status(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(full(""));
    *answer.status_mut() = status;
    answer
}

/// A body that counts as open until it is dropped.
fn held(body: Body, open: Open) -> Body {
    body.map_frame(move |frame| {
        let _ = &open;
        frame
    })
    .boxed_unsync()
}

impl Ledger {
    /// Notes an arrival, and that it is being served until the guard is dropped.
    fn open(self: &Arc<Self>, id: &str) -> Open {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived.entry(id.to_owned()).or_default() += 1;
        self.open.fetch_add(1, Ordering::SeqCst);
        Open(self.clone())
    }
}

/// The TCP service: the first line is the id, and comes back like everything else.
async fn echo(mut stream: TcpStream, ledger: Arc<Ledger>) {
    let mut first = [0; 256];
    // It may come in pieces; looked at until the line is whole, and left where it is.
    let length = loop {
        match stream.peek(&mut first).await {
            Ok(length) => match first[..length].iter().position(|byte| *byte == b'\n') {
                Some(end) => break end,
                None if length == 0 || length == first.len() => return,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            },
            Err(_) => return,
        }
    };
    let open = ledger.open(&String::from_utf8_lossy(&first[..length]));
    let (mut read, mut write) = stream.split();
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        // The half-close comes back too; it fails only where the other side is gone.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
    }
    drop(open);
}
