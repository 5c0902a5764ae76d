//! The table: every feature, what is shown of it, between whom, and what shows it. The tests run it, the document shows it.

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use super::place::Place;
use super::{Area, Link, Protocol, bulk, grpc, live, messages, websocket};

/// What stands in a column.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell {
    Proved,
    /// What is missing; the rest is proved.
    InPart(&'static str),
    /// Why there is nothing to prove.
    Senseless(&'static str),
}

/// One feature.
pub(super) struct Row {
    pub(super) feature: &'static str,
    /// What the tests hold it to.
    pub(super) shown: &'static str,
    /// Whose software is at the caller's and at the upstream's end.
    pub(super) between: &'static str,
    pub(super) area: Area,
    /// For callers on HTTP/1.1 and on HTTP/2.
    pub(super) cells: [Cell; 2],
    pub(super) prove: for<'a> fn(&'a mut Place, Protocol) -> LocalBoxFuture<'a, Result<()>>,
}

impl Row {
    pub(super) fn cell(&self, protocol: Protocol) -> Cell {
        match protocol {
            Protocol::Http1 => self.cells[0],
            Protocol::Http2 => self.cells[1],
        }
    }

    /// The test that proves a cell.
    pub(super) fn test(&self, protocol: Protocol, link: Link) -> String {
        format!("{}::{}_{}", self.area.name(), protocol.short(), link.transport())
    }
}

const BOTH: [Cell; 2] = [Cell::Proved, Cell::Proved];
const GRPC_CELLS: [Cell; 2] = [Cell::Senseless("gRPC is defined over HTTP/2 only"), Cell::Proved];
const CONTINUE_CELLS: [Cell; 2] = [
    Cell::Proved,
    Cell::InPart(
        "denied before the body; but hyper sends no 100 over HTTP/2, so that callers send after a time of their own",
    ),
];
const NODE_CURL_TO_NODE: &str = "Node http/http2, curl → Node http, Node http2 (h2c)";
const NODE_TO_NODE: &str = "Node http/http2 → Node http, Node http2 (h2c)";
const SOCKETS: &str = "HTTP/1.1: npm ws → PyPI websockets, PyPI websockets → npm ws; HTTP/2: Node http2 with ws's frames → both";
const GRPC: &str = "PyPI grpcio, npm @grpc/grpc-js → PyPI grpcio";

macro_rules! row {
    ($area:ident, $cells:expr, $feature:literal, $shown:literal, $between:expr, $prove:path) => {
        Row {
            feature: $feature,
            shown: $shown,
            between: $between,
            area: Area::$area,
            cells: $cells,
            prove: |place, protocol| Box::pin($prove(place, protocol)),
        }
    };
}

/// In the order of the document.
pub(super) const ROWS: &[Row] = &[
    row!(
        Messages,
        BOTH,
        "HEAD",
        "the fields of a GET, its length, no body",
        "Node http/http2, curl → Node http, Node http2 (h2c), nginx",
        messages::head
    ),
    row!(
        Messages,
        BOTH,
        "204 and 304",
        "no body and no length, validators kept, the connection usable for the next request",
        "Node http/http2, curl → Node http, Node http2 (h2c), nginx",
        messages::without_body
    ),
    row!(
        Messages,
        BOTH,
        "ranges",
        "206 with one range and with several, 416, `If-Range`",
        "curl → nginx",
        messages::ranges
    ),
    row!(
        Messages,
        BOTH,
        "unknown methods",
        "`PROPFIND`, `REPORT` with bodies, `BREW`, as they are",
        "Node http/http2, curl → Node http, Node http2 (h2c), nginx",
        messages::methods
    ),
    row!(
        Messages,
        BOTH,
        "repeated fields",
        "in order, both ways, `Set-Cookie` among them",
        NODE_TO_NODE,
        messages::repeated
    ),
    row!(
        Messages,
        BOTH,
        "64 KiB of header fields",
        "both ways, as many fields and as one, with `limits.headers = \"96KiB\"`",
        NODE_TO_NODE,
        messages::large_heads
    ),
    row!(
        Messages,
        CONTINUE_CELLS,
        "100-continue",
        "the body is asked for; a denied request is answered without it",
        "Node http/http2; HTTP/1.1: curl, HTTP/2: nghttp → Node http, Node http2 (h2c)",
        messages::expect
    ),
    row!(
        Messages,
        BOTH,
        "uploads of unknown length",
        "arrive whole, and without a length",
        NODE_CURL_TO_NODE,
        messages::unknown_length
    ),
    row!(
        Messages,
        BOTH,
        "request trailers",
        "arrive at the upstream (on HTTP/1.1 with bodies of unknown length)",
        "Node http/http2; HTTP/2: nghttp → Node http, Node http2 (h2c)",
        messages::request_trailers
    ),
    row!(
        Messages,
        BOTH,
        "response trailers",
        "arrive at the caller",
        NODE_TO_NODE,
        messages::response_trailers
    ),
    row!(
        Live,
        BOTH,
        "server-sent events",
        "each event arrives within 100 ms of being sent, the first too",
        NODE_TO_NODE,
        live::events
    ),
    row!(
        Live,
        BOTH,
        "answers that begin before the upload ends",
        "20 pieces there and back, each within 100 ms; the upload's end passes too",
        NODE_TO_NODE,
        live::duplex
    ),
    row!(
        Live,
        BOTH,
        "answers that end before the upload",
        "arrive whole while the caller is still sending",
        NODE_TO_NODE,
        live::early
    ),
    row!(
        Live,
        BOTH,
        "half-closed requests",
        "an ended request keeps its answer; a caller on HTTP/1.1 that closes its half of the connection has left: cancelled within 100 ms",
        NODE_TO_NODE,
        live::half_closed
    ),
    row!(
        Live,
        BOTH,
        "aborted requests",
        "before the answer, in its middle, in the middle of an upload, the stream or the connection: the upstream knows within 100 ms",
        NODE_TO_NODE,
        live::aborted
    ),
    row!(
        Live,
        BOTH,
        "answers that break off",
        "never look whole to the caller",
        "Node http/http2, curl → Node http, Node http2 (h2c)",
        live::broken_off
    ),
    row!(
        Live,
        BOTH,
        "slow readers",
        "the sender is held back (caller and upstream alike), memory stays flat, then everything arrives",
        NODE_TO_NODE,
        live::slow_readers
    ),
    row!(
        Live,
        BOTH,
        "slow writers",
        "each piece of a slow upload arrives within 100 ms",
        NODE_TO_NODE,
        live::slow_writers
    ),
    row!(
        WebSocket,
        BOTH,
        "WebSocket (RFC 6455; over HTTP/2 RFC 8441)",
        "text, binary, fragments, ping and pong from both sides, the subprotocol and extensions agreed on",
        SOCKETS,
        websocket::talk
    ),
    row!(
        WebSocket,
        BOTH,
        "WebSocket close codes",
        "code and reason from either side; a connection that breaks has none",
        SOCKETS,
        websocket::close_codes
    ),
    row!(
        WebSocket,
        BOTH,
        "WebSocket, many messages",
        "10,000 each way at the same time, in order",
        SOCKETS,
        websocket::flood
    ),
    row!(
        WebSocket,
        BOTH,
        "WebSocket callers that vanish",
        "the upstream knows within 100 ms",
        SOCKETS,
        websocket::vanish
    ),
    row!(
        WebSocket,
        BOTH,
        "WebSocket refused by the upstream",
        "its answer arrives as an ordinary one",
        SOCKETS,
        websocket::refused
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC, unary",
        "3 MB and empty messages, metadata before and after, binary metadata",
        GRPC,
        grpc::unary
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC, server streaming",
        "each message arrives within 100 ms of being sent",
        GRPC,
        grpc::server_streaming
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC, client streaming",
        "1,000 messages of 1,000 bytes",
        GRPC,
        grpc::client_streaming
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC, both streaming",
        "20 messages there and back, each within 100 ms",
        GRPC,
        grpc::both
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC status",
        "all 16 error codes with details and trailing metadata, from trailers alone too; a refusal of the relay is an error of its own",
        GRPC,
        grpc::status
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC deadlines",
        "the upstream knows the deadline, and stops at it",
        GRPC,
        grpc::deadline
    ),
    row!(
        Grpc,
        GRPC_CELLS,
        "gRPC cancellation",
        "the upstream knows within 100 ms, before the answer and in a stream",
        GRPC,
        grpc::cancellation
    ),
    row!(
        Bulk,
        BOTH,
        "large bodies",
        "256 MiB each way (10 GiB with `tests/run --long`), of unknown length, every byte in its place, in constant memory",
        "Node http/http2 → Node http",
        bulk::ordinary
    ),
];
