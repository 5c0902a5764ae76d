//! Takes one request of the echo server; gives its answer, by path.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Fault, Seen, Shared};
use crate::http::{Body, full, pattern_body};
use crate::pattern;

/// `/dirty` answers with these: none may reach a caller (those of a service under a prefix lose the cookie too).
const DIRTY: &[(&str, &str)] = &[
    ("server", "legacy/1.0"),
    ("x-powered-by", "legacy"),
    ("alt-svc", "h3=\":443\""),
    ("x-postern-subject", "root"),
    ("proxy-status", "legacy"),
    ("set-cookie", "session=1"),
    ("strict-transport-security", "max-age=1"),
    ("www-authenticate", "Bearer realm=\"legacy\""),
    ("connection", "x-hop"),
    ("x-hop", "1"),
    ("x-kept", "one"),
    ("x-kept", "two"),
];

/// `/open` answers as if every web page might read it.
const OPEN: &[(&str, &str)] = &[
    ("access-control-allow-origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("access-control-expose-headers", "x-everything"),
    ("vary", "Accept"),
];

type Answered = Result<Response<Body>, Infallible>;

pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answered {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    let seen = Seen { method: head.method.to_string(), target, headers: head.headers };
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
    let query: HashMap<_, _> = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .map(|(name, value)| (name.into_owned(), value.parse::<u64>().unwrap_or_default()))
        .collect();
    let number = |name: &str, default: u64| query.get(name).copied().unwrap_or(default);
    let answer = match head.uri.path() {
        "/stream" => {
            let pause = Duration::from_millis(number("pause", 0));
            Response::new(pattern_body(number("bytes", 0), number("step", pattern::CHUNK as u64), pause))
        }
        "/sink" => sink(&shared, body).await,
        "/hold" => hold(&shared).await,
        "/delay" => {
            tokio::time::sleep(Duration::from_millis(number("ms", 0))).await;
            describe(&seen, body).await
        }
        "/broken" => Response::new(broken(number("bytes", 0))),
        "/trailers" => trailers(),
        "/dirty" => {
            let mut answer = describe(&seen, body).await;
            for (name, value) in DIRTY {
                answer.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            let here = format!("http://{}/elsewhere", seen.header("host"));
            answer
                .headers_mut()
                .extend(HeaderValue::try_from(here).ok().map(|v| (http::header::LOCATION, v)));
            answer
        }
        "/open" => {
            let mut answer = describe(&seen, body).await;
            for (name, value) in OPEN {
                answer.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            answer
        }
        path => {
            let status = path.strip_prefix("/status/").and_then(|code| code.parse().ok());
            let mut answer = describe(&seen, body).await;
            *answer.status_mut() =
                status.and_then(|code: u16| StatusCode::from_u16(code).ok()).unwrap_or_default();
            answer
        }
    };
    Ok(answer)
}

fn json_answer(value: &Value) -> Response<Body> {
    let mut answer = Response::new(full(value.to_string()));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// What arrived: method, target, every field in order, the body where it is text, its length, and its trailers.
async fn describe(seen: &Seen, body: Incoming) -> Response<Body> {
    let fields = |map: &HeaderMap| -> Vec<Value> {
        map.iter()
            .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
            .collect()
    };
    let (body, trailers, whole) = match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().map(fields);
            (body.to_bytes(), trailers, true)
        }
        Err(_) => (bytes::Bytes::new(), None, false),
    };
    json_answer(&json!({
        "from": "echo",
        "method": seen.method,
        "target": seen.target,
        "headers": fields(&seen.headers),
        "length": body.len(),
        "body": String::from_utf8_lossy(&body[..body.len().min(1024)]),
        "trailers": trailers,
        "whole": whole,
    }))
}

/// Reads a body of the pattern to its end; says how much came, and whether every byte was in its place and the end was a good one.
async fn sink(shared: &Shared, mut body: Incoming) -> Response<Body> {
    let mut check = pattern::Check::default();
    let mut fault = None;
    while let Some(frame) = body.frame().await {
        let fed = match frame {
            Ok(frame) => {
                frame.into_data().map_or(Ok(()), |data| check.feed(&data).map_err(|e| e.to_string()))
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = fed {
            let received = check.received();
            shared
                .faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Fault { received, reason: reason.clone() });
            fault = Some(reason);
            break;
        }
    }
    json_answer(&json!({ "received": check.received(), "fault": fault }))
}

/// Counts a held request while it waits, and notes when it was dropped instead of answered.
struct Held<'a> {
    shared: &'a Shared,
    answered: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let lower = |counter: &AtomicU64| counter.fetch_sub(1, Ordering::SeqCst);
        lower(&self.shared.waiting);
        if !self.answered {
            self.shared.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn hold(shared: &Shared) -> Response<Body> {
    let mut release = shared.release.subscribe();
    shared.waiting.fetch_add(1, Ordering::SeqCst);
    let mut held = Held { shared, answered: false };
    // The sender lives as long as the server.
    let _ = release.changed().await;
    held.answered = true;
    json_answer(&json!({ "from": "echo", "held": true }))
}

/// Promises `bytes` and breaks off in the middle.
fn broken(bytes: u64) -> Body {
    // Without pauses nothing would have been flushed, not even the head.
    let whole = pattern_body(bytes / 2, pattern::CHUNK as u64, Duration::from_millis(5));
    let end = futures_util::stream::iter([Err(std::io::Error::other("broken on purpose"))]);
    let frames = futures_util::stream::StreamExt::chain(http_body_util::BodyStream::new(whole), end);
    StreamBody::new(frames).boxed_unsync()
}

fn trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    let frames = futures_util::stream::iter([
        Ok(Frame::data(bytes::Bytes::from_static(b"body"))),
        Ok(Frame::trailers(trailers)),
    ]);
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(http::header::TRAILER, HeaderValue::from_static("x-checksum"));
    answer
}
