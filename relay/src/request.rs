//! The walk of one request, top to bottom: route, authenticate, authorize, limit, forward, respond, audit. Each stage takes the proof that
//! the stage before it made; a stage that refuses ends the walk with a [`respond::Refusal`], which one table turns into an answer.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use postern_gate::policy::ServiceKind;

use crate::public::Connection;

pub mod address;
pub mod authenticate;
pub mod authorize;
pub mod body;
pub mod cors;
pub mod forward;
pub mod headers;
pub mod limit;
pub mod live;
pub mod onward;
pub mod own;
pub mod record;
pub mod respond;
pub mod route;
pub mod upgrade;

use body::ResponseBody;
use forward::Carried;
use record::Record;
use respond::Refusal;
use route::Place;

/// Answers one request, whatever happens in it.
pub async fn serve(connection: &Arc<Connection>, request: Request<Incoming>) -> Response<ResponseBody> {
    let mut record = Record::begin(connection, request.method(), !request.body().is_end_stream());
    let is_head = request.method() == Method::HEAD;
    // A panic ends this request alone; hyper would otherwise take the connection's other requests down with it.
    let walked = AssertUnwindSafe(walk(connection, request, &mut record)).catch_unwind().await;
    let answer = walked.unwrap_or_else(|_| {
        tracing::error!(request_id = %record.id(), "a request ended in a panic");
        Err(Refusal::Internal)
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
    let method = head.method.clone();
    record.comes_from(address::caller(connection.peer, &head.headers, &snapshot.settings.listen));

    limit::before_work(relay, &snapshot.settings.limits, &head, record)?;
    let mut upgrade = upgrade::asked(&mut head)?;
    let routed = Arc::new(route::route(&snapshot, connection, &head)?);
    if routed.is_tcp() {
        head.method = Method::CONNECT;
    }
    let asks_to_switch = upgrade.as_ref().is_some_and(|upgrade| routed.may_switch(upgrade.protocol));
    record.routed(&routed, &head.method, asks_to_switch);
    record.page = cors::page(&routed, &head.headers);
    if let Some(answer) = cors::preflight(record.page.as_ref(), &routed, &head) {
        return Ok(answer);
    }
    if let Place::Own(address) = &routed.place {
        upgrade::at_own(upgrade.as_ref())?;
        // Boxed: large, and nothing that is in a hurry.
        return Box::pin(own::answer(connection, &snapshot, *address, &head, body, record, now)).await;
    }
    let caller =
        authenticate::authenticate(connection, &snapshot, &head, &method, &routed, record, now).await?;
    let permit =
        authorize::authorize(connection, &snapshot, &caller.principal, &head.method, &routed, record, now)?;
    let running = record.enter(&snapshot, &permit, &routed, now)?;
    let service = permit.service();
    match service.kind {
        ServiceKind::Http => {
            upgrade = upgrade::at_http(upgrade)?;
            limit::body_size(service, &head.headers)?;
            headers::to_upstream(&mut head, &permit, &routed, record)?;
            onward::identify(&connection.worker, &snapshot, &permit, &mut head, now)?;
        }
        ServiceKind::Tcp => upgrade = Some(upgrade::at_tcp(upgrade)?),
    }
    // Pinned here: what is handed to another future is kept twice.
    let work = pin!(async {
        relay.settle(&service.name).await;
        limit::place(relay, &snapshot.settings.limits, &permit, record)?;
        onward::credential(relay, &snapshot, &permit, &caller.shown, &mut head, now).await?;
        let carried = Carried { body, upgrade, shown: &caller.shown };
        forward::forward(connection, &snapshot, &permit, &routed, head, carried, record).await
    });
    running.or_cut(work).await?
}
