//! The walk of one request, top to bottom: route, authenticate, authorize, limit, forward, respond, audit. Each stage takes the proof that
//! the stage before it made; a stage that refuses ends the walk with a [`respond::Refusal`], which one table turns into an answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::public::Connection;

pub mod authenticate;
pub mod authorize;
pub mod body;
pub mod forward;
pub mod headers;
pub mod limit;
pub mod own;
pub mod record;
pub mod respond;
pub mod route;

use body::ResponseBody;
use record::Record;
use respond::Refusal;
use route::Place;

/// Answers one request, whatever happens in it.
pub async fn serve(connection: &Arc<Connection>, request: Request<Incoming>) -> Response<ResponseBody> {
    let mut record = Record::begin(connection, request.method());
    let is_head = request.method() == http::Method::HEAD;
    // A panic ends this request alone; hyper would otherwise take the connection's other requests down with it.
    let walked = AssertUnwindSafe(walk(connection, request, &mut record)).catch_unwind().await;
    let answer = walked.unwrap_or_else(|_| {
        tracing::error!(request_id = %record.id(), "a request ended in a panic");
        Err(Refusal::Panicked)
    });
    match answer {
        Ok(response) => respond::finish(response, record),
        Err(refusal) => respond::refuse(connection, &refusal, is_head, record),
    }
}

async fn walk(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refusal> {
    let relay = &connection.worker.relay;
    let snapshot = relay.snapshot();
    let now = SystemTime::now();
    let (mut head, body) = request.into_parts();

    limit::before_work(relay, &snapshot.settings.limits, &head, record)?;
    let routed = Arc::new(route::route(&snapshot, connection, &head)?);
    record.routed(&routed);
    if let Place::Own(address) = &routed.place {
        return own::answer(connection, &snapshot, *address, &head, record, now).await;
    }
    let caller =
        authenticate::authenticate(connection, &snapshot, &head.headers, &routed, record, now).await?;
    let permit = authorize::authorize(connection, &snapshot, &caller, &head.method, &routed, record, now)?;
    limit::body_size(permit.service(), &head.headers)?;
    headers::to_upstream(&mut head, &permit, &routed, record)?;
    let response = forward::forward(connection, &snapshot, &permit, &routed, head, body, record).await?;
    Ok(response)
}
