//! HTTP/2 as an attacker speaks it, frame by frame (RFC 9113, 10.5): streams that are reset as soon as they are opened, and floods of
//! frames that cost their sender nothing. The relay's memory stays bounded, others are served meanwhile, and nothing is left behind.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::http::{Http, tls};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// How long each flood lasts, and over how many connections at once.
const TIME: Duration = Duration::from_millis(1500);
const CONNECTIONS: usize = 4;
/// Whence it comes: another address than the ordinary callers'.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
/// What all of it together may cost the relay.
const GROWTH: u64 = 64 << 20;
/// What an ordinary caller may have to wait on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Frames that are written in one go.
const BATCH: u32 = 100;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A string of HPACK (RFC 7541, 5.2), as it is.
fn string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match text.len() {
        short @ 0..127 => bytes.extend(u8::try_from(short)),
        long => {
            bytes.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                bytes.extend(u8::try_from(rest % 128 + 128));
                rest /= 128;
            }
            bytes.extend(u8::try_from(rest));
        }
    }
    bytes.extend(text.as_bytes());
    bytes
}

/// What a flood needs to know of the stand.
struct Facts {
    authority: String,
    token: Option<String>,
}

impl Facts {
    /// The fields of a request, by the static table (RFC 7541, A) and literals that nobody is to remember.
    fn fields(&self, method: u8, path: &str) -> Vec<u8> {
        let mut block = vec![method, 0x87, 0x04];
        block.extend(string(path));
        block.push(0x01);
        block.extend(string(&self.authority));
        if let Some(token) = &self.token {
            block.extend([0x0f, 0x08]);
            block.extend(string(&format!("Bearer {token}")));
        }
        block
    }

    fn get(&self, path: &str) -> Vec<u8> {
        self.fields(0x82, path)
    }

    fn post(&self, path: &str) -> Vec<u8> {
        self.fields(0x83, path)
    }
}

/// One kind of flood.
struct Flood {
    name: &'static str,
    /// Whether the attacker reads what comes back.
    listens: bool,
    /// Whether no connection may live through it.
    is_fatal: bool,
    /// What follows the preface.
    opening: fn(&Facts) -> Vec<u8>,
    /// The frames of a number, for ever.
    frames: fn(&Facts, u32) -> Vec<u8>,
}

fn nothing(_: &Facts) -> Vec<u8> {
    Vec::new()
}

/// A request that is taken back at once.
fn reset(facts: &Facts, number: u32) -> Vec<u8> {
    let stream = number * 2 + 1;
    let asked = frame(HEADERS, END_STREAM | END_HEADERS, stream, &facts.get("/echo/reset"));
    [asked, frame(RST_STREAM, 0, stream, &CANCEL)].concat()
}

const FLOODS: [Flood; 9] = [
    Flood { name: "resets", listens: true, is_fatal: false, opening: nothing, frames: reset },
    Flood { name: "resets, deaf", listens: false, is_fatal: false, opening: nothing, frames: reset },
    Flood {
        name: "resets by an error of the sender's",
        listens: true,
        is_fatal: true,
        opening: nothing,
        // A window that grows by nothing: the relay itself resets the stream.
        frames: |facts, number| {
            let stream = number * 2 + 1;
            let asked = frame(HEADERS, END_STREAM | END_HEADERS, stream, &facts.get("/echo/reset"));
            [asked, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
        },
    },
    Flood {
        name: "settings",
        listens: false,
        is_fatal: false,
        opening: nothing,
        // Each is to be acknowledged.
        frames: |_, number| {
            frame(SETTINGS, 0, 0, &[&[0, 4][..], &(65535 + number % 2).to_be_bytes()].concat())
        },
    },
    Flood {
        name: "pings",
        listens: false,
        is_fatal: false,
        opening: nothing,
        frames: |_, number| frame(PING, 0, 0, &u64::from(number).to_be_bytes()),
    },
    Flood {
        name: "a head without an end",
        listens: true,
        is_fatal: true,
        opening: |facts| frame(HEADERS, END_STREAM, 1, &facts.get("/echo/endless")),
        // A field of which nothing is to be remembered, again and again.
        frames: |_, _| {
            let field = [vec![0x00], string("x-more"), string(&"a".repeat(100))].concat();
            frame(CONTINUATION, 0, 1, &field)
        },
    },
    Flood {
        name: "empty data",
        listens: true,
        is_fatal: false,
        opening: |facts| frame(HEADERS, END_HEADERS, 1, &facts.post("/echo/empty")),
        frames: |_, _| frame(DATA, 0, 1, &[]),
    },
    Flood {
        name: "priorities",
        listens: true,
        is_fatal: false,
        opening: nothing,
        frames: |_, number| frame(PRIORITY, 0, (number % 1000) * 2 + 1, &[0, 0, 0, 0, 16]),
    },
    Flood {
        name: "windows",
        listens: true,
        is_fatal: false,
        opening: nothing,
        frames: |_, _| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
    },
];

/// What one attacker got out.
#[derive(Debug, Default)]
struct Sent {
    frames: u32,
    /// Connections that the relay ended.
    ended: u32,
}

/// One connection after the other, until the time is over.
async fn attack(
    flood: &Flood,
    facts: &Facts,
    stand: (u16, rustls::ClientConfig),
    until: Instant,
) -> Result<Sent> {
    let (port, config) = stand;
    let connector = TlsConnector::from(Arc::new(config));
    let mut sent = Sent::default();
    while Instant::now() < until {
        let socket = TcpSocket::new_v4()?;
        socket.bind((ATTACKER, 0).into())?;
        let tcp = socket.connect(([127, 0, 0, 1], port).into()).await?;
        let shaken = timeout_at(until, connector.connect(ServerName::try_from("127.0.0.1")?, tcp)).await;
        let Ok(Ok(stream)) = shaken else {
            sent.ended += u32::from(shaken.is_ok());
            continue;
        };
        let (mut read, mut write) = tokio::io::split(stream);
        let mut reading = JoinSet::new();
        if flood.listens {
            reading.spawn(async move {
                while matches!(read.read(&mut [0; 16384]).await, Ok(some) if some > 0) {}
            });
        }
        let mut next = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        next.extend(frame(SETTINGS, 0, 0, &[]));
        next.extend((flood.opening)(facts));
        let mut number = 0;
        while Instant::now() < until {
            match timeout_at(until, async {
                write.write_all(&next).await?;
                write.flush().await
            })
            .await
            {
                Err(_) => break,
                Ok(Err(_)) => {
                    sent.ended += 1;
                    break;
                }
                Ok(Ok(())) => {}
            }
            sent.frames += BATCH;
            next = (number..number + BATCH).flat_map(|number| (flood.frames)(facts, number)).collect();
            number += BATCH;
        }
    }
    Ok(sent)
}

/// An ordinary caller, who is always served; gives how often, and the slowest answer.
async fn ordinary(http: &Http, url: &str, token: &str, until: Instant) -> Result<(u32, Duration)> {
    let (mut calls, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < until {
        let asked = Instant::now();
        http.get(url, Some(token)).await?.expect_status(200)?;
        (calls, slowest) = (calls + 1, slowest.max(asked.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((calls, slowest))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_cost_little_and_nobody_else_waits() -> Result<()> {
    let mut stand = Stand::start_with(Extra::default()).await?;
    stand.issuer.access_ttl(Duration::from_mins(10)).await?;
    let token = stand.issuer.token("ada").await?;
    let (h1, h2) = (Http::h1(stand.pki.roots()?)?, Http::h2(stand.pki.roots()?)?);
    let url = stand.at("/echo/ordinary");
    for http in [&h1, &h2] {
        http.get(&url, Some(&token)).await?.expect_status(200)?;
    }
    let base = Stand::metrics_url(stand.relay()?).await?;
    let before = stand.relay()?.memory()?;
    let mut config = tls(stand.pki.roots()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let authority = format!("127.0.0.1:{}", stand.port);
    for (flood, token_of_its) in FLOODS.iter().map(|flood| (flood, Some(&token))).chain([(&FLOODS[0], None)])
    {
        let facts = Facts { authority: authority.clone(), token: token_of_its.cloned() };
        let until = Instant::now() + TIME;
        let attacks = (0..CONNECTIONS).map(|_| attack(flood, &facts, (stand.port, config.clone()), until));
        let (sent, one, other) = tokio::join!(
            futures_util::future::try_join_all(attacks),
            ordinary(&h1, &url, &token, until),
            ordinary(&h2, &url, &token, until),
        );
        let name = if token_of_its.is_some() { flood.name } else { "resets without a token" };
        let (one, other) = (one.context(name)?, other.context(name)?);
        let sent = sent.context(name)?;
        let (frames, ended) = sent.iter().fold((0, 0), |(f, e), s| (f + s.frames, e + s.ended));
        let grown = stand.relay()?.memory()?.peak.saturating_sub(before.now);
        say(&format!(
            "{name}: {frames} frames, {ended} connections ended; {} calls beside it, the slowest {:?}; at most {} MiB more",
            one.0 + other.0,
            one.1.max(other.1),
            grown >> 20
        ));
        ensure!(one.0 > 0 && other.0 > 0 && one.1.max(other.1) < PATIENCE, "{name}: {one:?} {other:?}");
        ensure!(grown < GROWTH, "{name}: the relay grew by {grown} bytes");
        ensure!(!flood.is_fatal || ended > 0, "{name}: no connection was ended");
    }

    say("nothing of it is left, not even words in the log");
    let log = stand.relay()?.log_text();
    ensure!(log.lines().count() < 30, "{} lines, the last: {:?}", log.lines().count(), log.lines().last());
    for gauge in ["postern_relay_requests_in_flight ", "postern_relay_connections "] {
        // What asks for the metrics is no caller; the ordinary ones keep a connection each.
        let few = if gauge.contains("connections") { 2 } else { 0 };
        wait::until(gauge, wait::SOON, async || {
            let text = stand.http.get(&format!("{base}/metrics"), None).await.ok()?.text();
            let left: i64 = text.lines().find_map(|line| line.strip_prefix(gauge)?.trim().parse().ok())?;
            (left <= few).then_some(())
        })
        .await?;
    }
    stand.passed();
    Ok(())
}
