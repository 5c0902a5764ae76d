//! Whatever the service speaks works through the tunnel as it does without: each feature, by caller's protocol and link, between
//! servers and callers written by others. One table ([`table::ROWS`]) drives these tests and is written down as `docs/fidelity.md`.
//!
//! A test is an area of the table in one column; it starts its stand once, goes through its rows, and names every cell that fails.

mod bulk;
mod document;
mod grpc;
mod live;
mod messages;
mod place;
mod table;
mod websocket;

use std::time::Instant;

use anyhow::{Result, bail};
use postern_tests::stand::say;

use place::{Late, Place};
use table::{Cell, ROWS};

/// Rows that share their upstreams, and the tests' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    Messages,
    Live,
    WebSocket,
    Grpc,
    Bulk,
}

/// What the caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// What the tunnel runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Quic,
    Tcp,
}

impl Area {
    fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Live => "live",
            Self::WebSocket => "websocket",
            Self::Grpc => "grpc",
            Self::Bulk => "bulk",
        }
    }
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }

    /// As the callers' jobs and these tests' names have it.
    fn short(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
        }
    }
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        }
    }

    /// As agent.toml and the relay's metrics have it.
    fn transport(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// How often a row is tried that was late.
const TRIES: u32 = 3;

/// Proves every cell of an area in one column. What was late is tried again: a fault of ours is late
/// every time, a busy machine is not.
async fn prove(area: Area, protocol: Protocol, link: Link) -> Result<()> {
    let mut place = Place::start(area, link).await?;
    let mut wrong = Vec::new();
    for row in ROWS.iter().filter(|row| row.area == area) {
        let cell = format!("{}, {} over {}", row.feature, protocol.name(), link.name());
        if let Cell::Senseless(_) = row.cell(protocol) {
            continue;
        }
        let start = Instant::now();
        let mut proved = (row.prove)(&mut place, protocol).await;
        for _ in 1..TRIES {
            let Some(late) = proved.as_ref().err().and_then(|error| error.downcast_ref::<Late>()) else {
                break;
            };
            say(&format!("once more, for {late}: {cell}"));
            proved = (row.prove)(&mut place, protocol).await;
        }
        match proved {
            Ok(()) => say(&format!("ok in {:.1?}: {cell}", start.elapsed())),
            Err(error) => {
                say(&format!("WRONG: {cell}: {error:?}"));
                wrong.push(format!("{cell}: {error:#}"));
            }
        }
    }
    place.only_over(link)?;
    if !wrong.is_empty() {
        bail!("{} cells:\n{}", wrong.len(), wrong.join("\n\n"));
    }
    place.stand.passed();
    Ok(())
}

/// One test for each area and column, with the names that the table gives.
macro_rules! column {
    ($($area:ident: $kind:ident { $($test:ident: $protocol:ident, $link:ident;)* })*) => {$(
        mod $area {
            use super::{Area, Link, Protocol, prove};
            $(
                #[tokio::test]
                async fn $test() -> anyhow::Result<()> {
                    prove(Area::$kind, Protocol::$protocol, Link::$link).await
                }
            )*
        }
    )*};
}

/// The tests; [`table::Row::test`] says their names in the document.
mod cells {
    use super::{Area, Link, Protocol, prove};

    column! {
        messages: Messages { h1_quic: Http1, Quic; h2_quic: Http2, Quic; h1_tcp: Http1, Tcp; h2_tcp: Http2, Tcp; }
        live: Live { h1_quic: Http1, Quic; h2_quic: Http2, Quic; h1_tcp: Http1, Tcp; h2_tcp: Http2, Tcp; }
        websocket: WebSocket { h1_quic: Http1, Quic; h2_quic: Http2, Quic; h1_tcp: Http1, Tcp; h2_tcp: Http2, Tcp; }
        grpc: Grpc { h2_quic: Http2, Quic; h2_tcp: Http2, Tcp; }
        bulk: Bulk { h1_quic: Http1, Quic; h2_quic: Http2, Quic; h1_tcp: Http1, Tcp; h2_tcp: Http2, Tcp; }
    }
}
