//! One act of each kind, from its beginning to a checked end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Kind, Outcome, Record, Target, next_id};
use crate::counting::{answer_to, receipt};
use crate::http::{Body, Http, empty, full, request};
use crate::websocket::{self, Kind as Message};
use crate::{pattern, wait};

/// No act may take longer: the relay answers 504 after 30 s by itself. Shorter than the patience of [`Http`], so that silence shows
/// here and nowhere else.
pub(super) const LIMIT: Duration = Duration::from_secs(34);
const UPLOAD: u64 = 256 * 1024;
const EXCHANGES: u64 = 6;
const PIECE: u64 = 3000;

/// Why an act did not end well.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("refused with {0}")]
    Refused(u16),
    #[error("{0:#}")]
    Broken(anyhow::Error),
    #[error("{0}")]
    Wrong(String),
}

type Done = Result<(), Failure>;

/// Does it once and says what became of it.
pub(super) async fn perform(kind: Kind, http: &Http, target: &Target) -> Record {
    let (id, start) = (next_id(kind), Instant::now());
    let act = async {
        match kind {
            Kind::Get => get(http, target, &id).await,
            Kind::Upload => upload(http, target, &id).await,
            Kind::Duplex => duplex(http, target, &id).await,
            Kind::Socket => socket(http, target, &id).await,
            Kind::Tcp => tcp(http, target, &id).await,
        }
    };
    let outcome = match tokio::time::timeout(LIMIT, act).await {
        Ok(Ok(())) => Outcome::Right,
        Ok(Err(Failure::Refused(status))) => Outcome::Refused(status),
        Ok(Err(Failure::Broken(error))) => Outcome::Broken(format!("{error:#}")),
        Ok(Err(Failure::Wrong(what))) => Outcome::Wrong(what),
        Err(_) => Outcome::Wrong(format!("neither answer nor error within {LIMIT:?}")),
    };
    Record { id, kind, start, end: Instant::now(), outcome }
}

/// Sends a request; any status but the expected one is a failure, and one that must explain itself.
async fn send(
    http: &Http,
    request: http::Request<Body>,
    expected: StatusCode,
) -> Result<Response<Incoming>, Failure> {
    let answer = http.stream(request).await.map_err(Failure::Broken)?;
    let status = answer.status();
    if status == expected {
        return Ok(answer);
    }
    let is_problem =
        answer.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/problem+json");
    let body = answer.into_body().collect().await.map_err(|e| Failure::Broken(e.into()))?.to_bytes();
    match status.as_u16() {
        reported @ 502..=504 if is_problem => Err(Failure::Refused(reported)),
        other => Err(Failure::Wrong(format!("{other}: {}", String::from_utf8_lossy(&body)))),
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    answer
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|e| Failure::Broken(e.into()))
}

fn same(what: &str, got: &[u8], expected: &[u8]) -> Done {
    if got == expected {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&got[..got.len().min(200)]).into_owned();
    Err(Failure::Wrong(format!("{what}: {} bytes instead of {}: {shown:?}", got.len(), expected.len())))
}

fn asked(method: &str, target: &Target, path: &str, body: Body) -> Result<http::Request<Body>, Failure> {
    let request = request(method, &target.at(path), Some(&target.token)).body(body);
    request.map_err(|e| Failure::Wrong(e.to_string()))
}

async fn get(http: &Http, target: &Target, id: &str) -> Done {
    let request = asked("GET", target, &format!("/get/{id}"), empty())?;
    let answer = send(http, request, StatusCode::OK).await?;
    same("the answer", &whole(answer).await?, &answer_to(id))
}

async fn upload(http: &Http, target: &Target, id: &str) -> Done {
    let (offset, length) = (rand::random_range(0..1000), rand::random_range(0..UPLOAD));
    let mut body = Vec::new();
    while (body.len() as u64) < length {
        let sent = body.len() as u64;
        body.extend_from_slice(&pattern::chunk(offset + sent, length - sent));
    }
    let expected = receipt(&body);
    let request = asked("POST", target, &format!("/put/{id}"), full(body))?;
    let answer = send(http, request, StatusCode::OK).await?;
    same("the receipt", &whole(answer).await?, expected.as_bytes())
}

async fn duplex(http: &Http, target: &Target, id: &str) -> Done {
    let (pieces, taken) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(taken, async |mut taken| {
        taken.recv().await.map(|piece| (Ok(Frame::data(piece)), taken))
    });
    let request = asked("POST", target, &format!("/duplex/{id}"), StreamBody::new(frames).boxed_unsync())?;
    // The answer may wait for the first piece.
    let mut sent = Vec::from(pattern::chunk(0, PIECE));
    // Fails only where the request failed, which is what counts.
    let _ = pieces.send(sent.clone().into()).await;
    let mut answer = send(http, request, StatusCode::OK).await?.into_body();
    let mut got = Vec::new();
    for round in 1..=EXCHANGES {
        while got.len() < sent.len() {
            let frame = answer.frame().await;
            let Some(frame) = frame else {
                return Err(Failure::Wrong(format!(
                    "a whole answer of {} bytes of {}",
                    got.len(),
                    sent.len()
                )));
            };
            let frame = frame.map_err(|e| Failure::Broken(e.into()))?;
            got.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
        same("what came back", &got, &sent)?;
        if round < EXCHANGES {
            let piece = pattern::chunk(sent.len() as u64, PIECE);
            sent.extend_from_slice(&piece);
            let _ = pieces.send(piece).await;
        }
    }
    drop(pieces);
    let rest = answer.collect().await.map_err(|e| Failure::Broken(e.into()))?.to_bytes();
    same("what came after the end", &rest, &[])
}

pub(super) type Io = TokioIo<Upgraded>;

async fn upgraded(answer: Response<Incoming>) -> Result<Io, Failure> {
    let io = hyper::upgrade::on(answer).await.map_err(|e| Failure::Broken(e.into()))?;
    Ok(TokioIo::new(io))
}

/// Opens a WebSocket to the counting upstream.
async fn open_socket(http: &Http, target: &Target, id: &str) -> Result<Io, Failure> {
    let key = websocket::key();
    let mut request = asked("GET", target, &format!("/socket/{id}"), empty())?;
    let fields = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_KEY, &key),
    ];
    for (name, value) in fields {
        let value = value.parse().map_err(|_| Failure::Wrong(format!("no field value: {value}")))?;
        request.headers_mut().insert(name, value);
    }
    let answer = send(http, request, StatusCode::SWITCHING_PROTOCOLS).await?;
    if !websocket::is_accepted(answer.headers(), &key) {
        return Err(Failure::Wrong(format!("not our key's Sec-WebSocket-Accept: {:?}", answer.headers())));
    }
    upgraded(answer).await
}

/// Opens a connection to the TCP service and says the id.
async fn open_tcp(http: &Http, target: &Target, id: &str) -> Result<Io, Failure> {
    let url = format!("{}/.postern/tcp/{}", target.relay, target.tcp);
    let request = request("GET", &url, Some(&target.token))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "postern-tcp")
        .body(empty())
        .map_err(|e| Failure::Wrong(e.to_string()))?;
    let answer = send(http, request, StatusCode::SWITCHING_PROTOCOLS).await?;
    let mut io = upgraded(answer).await?;
    let line = format!("{id}\n");
    exchange(&mut io, line.as_bytes()).await?;
    Ok(io)
}

/// Writes, and reads as much: it must be the same.
async fn exchange(io: &mut Io, bytes: &[u8]) -> Done {
    let broken = |e: std::io::Error| Failure::Broken(e.into());
    io.write_all(bytes).await.map_err(broken)?;
    io.flush().await.map_err(broken)?;
    let mut back = vec![0; bytes.len()];
    let mut got = 0;
    while got < back.len() {
        match io.read(&mut back[got..]).await.map_err(broken)? {
            0 => return Err(Failure::Wrong(format!("a proper end after {got} bytes of {}", bytes.len()))),
            length => got += length,
        }
    }
    same("what came back", &back, bytes)
}

async fn socket(http: &Http, target: &Target, id: &str) -> Done {
    let mut io = open_socket(http, target, id).await?;
    for round in 0..EXCHANGES {
        let (kind, payload) = match round % 3 {
            0 => (Message::Text, format!("{id} {round}").into_bytes()),
            1 => (Message::Binary, pattern::chunk(round, PIECE * round).to_vec()),
            _ => (Message::Ping, id.as_bytes().to_vec()),
        };
        say(&mut io, kind, &payload).await?;
    }
    say(&mut io, Message::Close, &1000u16.to_be_bytes()).await
}

/// Sends one message and takes the one that belongs to it.
async fn say(io: &mut Io, kind: Message, payload: &[u8]) -> Done {
    websocket::write(io, kind, payload, true).await.map_err(Failure::Broken)?;
    let (back, echoed) = websocket::read(io, false).await.map_err(Failure::Broken)?;
    let expected = if kind == Message::Ping { Message::Pong } else { kind };
    if back != expected {
        return Err(Failure::Wrong(format!("{back:?} {echoed:?} in answer to {kind:?}")));
    }
    same("the message", &echoed, payload)
}

async fn tcp(http: &Http, target: &Target, id: &str) -> Done {
    let mut io = open_tcp(http, target, id).await?;
    for round in 0..EXCHANGES {
        exchange(&mut io, &pattern::chunk(round, PIECE * (round + 1))).await?;
    }
    io.shutdown().await.map_err(|e| Failure::Broken(e.into()))?;
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.map_err(|e| Failure::Broken(e.into()))?;
    same("what came after the end", &rest, &[])
}

/// A stream that lives, one message at a time.
pub(super) enum Talk {
    Socket(Io),
    Tcp(Io),
}

impl Talk {
    pub(super) async fn open(kind: Kind, http: &Http, target: &Target) -> Result<Self> {
        let id = next_id(kind);
        let opened = async {
            match kind {
                Kind::Socket => open_socket(http, target, &id).await.map(Self::Socket),
                Kind::Tcp => open_tcp(http, target, &id).await.map(Self::Tcp),
                Kind::Get | Kind::Upload | Kind::Duplex => {
                    Err(Failure::Wrong(format!("{kind:?} is no conversation")))
                }
            }
        };
        wait::within("a stream is opened", LIMIT, opened).await?.context(id)
    }

    /// There and back once.
    pub(super) async fn exchange(&mut self, payload: &[u8]) -> Result<()> {
        let done = match self {
            Self::Socket(io) => say(io, Message::Binary, payload).await,
            Self::Tcp(io) => exchange(io, payload).await,
        };
        Ok(done?)
    }
}
