//! One request at the agent: takes a stream, reads its head, and has it served as what it is: HTTP, an upgrade, or a TCP connection. Before
//! the answer's head a failure is a [`ResponseHead::Failed`]; after it, a reset of the stream. Whoever leaves early stops the other side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::head::{RequestHead, ResponseHead, failure};
use postern_wire::link::{Code, RecvStream, SendStream, StreamError};

use crate::supervisor::Agent;
use crate::upstream::{Route, Upstreams};

pub mod body;
mod failed;
mod http;
mod tcp;
mod upgrade;

use self::http::Asked;
use failed::Failure;

/// A relay sends the head with the stream's first packet.
const HEAD: Duration = Duration::from_secs(10);

/// Serves one stream; dropping it resets both directions.
pub async fn serve(
    agent: &Arc<Agent>,
    upstreams: &Upstreams,
    mut sender: SendStream,
    mut receiver: RecvStream,
) {
    let _counted = agent.metrics.request();
    // The relay stops our half when its caller has left.
    let stopped = sender.stopped();
    let work = async {
        let read = read_head(&mut receiver).await;
        let head = read.as_ref().map_err(StreamError::clone);
        let head = head.and_then(|bytes| Ok((codec::decode::<RequestHead<'_>>(bytes)?, bytes)));
        let (head, bytes) = match head {
            Ok(head) => head,
            Err(e) => {
                tracing::warn!(error = %e, "a request stream without a proper head");
                receiver.stop(Code::PROTOCOL);
                return sender.reset(Code::PROTOCOL);
            }
        };
        if let Err(failure) = walk(agent, upstreams, head, bytes, receiver, &mut sender).await {
            agent.metrics.failed(failure.stage);
            tracing::warn!(stage = ?failure.stage, detail = %failure.detail, "a request failed here");
            let Failure { stage, code, detail } = failure;
            let head = ResponseHead::Failed { stage, code, detail: &detail };
            if sender.message(&head, HEAD_LIMIT).await.is_ok() {
                sender.finish();
            }
        }
    };
    tokio::select! {
        () = work => {}
        // Everything that `work` holds is dropped here: the upstream sees its connection close.
        Some(_) = stopped => {}
    }
}

async fn read_head(receiver: &mut RecvStream) -> Result<Bytes, StreamError> {
    let bytes = tokio::time::timeout(HEAD, receiver.message(HEAD_LIMIT)).await;
    bytes.map_err(|_| StreamError::Truncated)??.ok_or(StreamError::Truncated)
}

async fn walk(
    agent: &Agent,
    upstreams: &Upstreams,
    head: RequestHead<'_>,
    bytes: &Bytes,
    receiver: RecvStream,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    match head {
        RequestHead::Http { request_id, service, method, path_and_query, fields, upgrade, .. } => {
            let route = route(agent, upstreams, service, request_id)?;
            let asked = Asked { method, path_and_query, fields, bytes };
            match upgrade {
                None => http::serve(agent, route, &asked, receiver, sender).await,
                Some("websocket") => upgrade::serve(agent, route, &asked, receiver, sender).await,
                Some(_) => {
                    Err(Failure::agent(failure::NOT_SUPPORTED, "this agent upgrades to websocket alone"))
                }
            }
        }
        RequestHead::Tcp { request_id, service, .. } => {
            let route = route(agent, upstreams, service, request_id)?;
            tcp::serve(agent, route, receiver, sender).await
        }
    }
}

fn route<'a>(
    agent: &Agent,
    upstreams: &'a Upstreams,
    service: &str,
    request_id: &str,
) -> Result<&'a Route, Failure> {
    let Some(route) = upstreams.route(service) else {
        let detail = format!("agent {} has no service {}", agent.identity.name(), service.escape_debug());
        return Err(Failure::agent(failure::NO_SUCH_SERVICE, detail));
    };
    tracing::debug!(request_id = %request_id.escape_debug(), %service, "request");
    Ok(route)
}
