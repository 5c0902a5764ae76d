//! One request at the agent: takes a stream, reads its head, and has it served as what it is: HTTP, an upgrade, or a TCP connection. Before
//! the answer's head a failure is a [`ResponseHead::Failed`]; after it, a reset of the stream. Whoever leaves early stops the other side.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use postern_gate::policy::CONNECT;
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::head::{Credential, RequestHead, ResponseHead, failure};
use postern_wire::link::{Code, RecvStream, SendStream, StreamError};

use crate::audit::AuditQueue;
use crate::supervisor::Agent;
use crate::upstream::{Route, Upstreams};
use crate::verify::{self, Watched};

pub mod body;
mod failed;
mod http;
mod tcp;
mod upgrade;

use self::http::Asked;
use failed::Failure;

/// A relay sends the head with the stream's first packet.
const HEAD: Duration = Duration::from_secs(10);

/// Serves one stream; dropping it resets both directions. Each request's task is as large as the largest of its ways, and is copied when it is
/// made: all ways but the plain one are boxed.
pub async fn serve(
    agent: &Arc<Agent>,
    upstreams: &Upstreams,
    audit: &AuditQueue,
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
        let mut entry = audit.request(&head);
        let walked = walk(agent, upstreams, head, bytes, receiver, &mut sender).await;
        let failure = match walked {
            Ok(Served::Whole) => return entry.served(),
            Ok(Served::Cut) => return sender.reset(Code::CANCELLED),
            Err(failure) => failure,
        };
        entry.failed(failure.stage, &failure.detail);
        agent.metrics.failed(failure.stage);
        tracing::warn!(stage = ?failure.stage, detail = %failure.detail, "a request failed here");
        let Failure { stage, code, detail } = failure;
        let head = ResponseHead::Failed { stage, code, detail: &detail };
        if sender.message(&head, HEAD_LIMIT).await.is_ok() {
            sender.finish();
        }
    };
    tokio::select! {
        // The work first: looking at `stopped` takes the tunnel's lock.
        biased;
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
) -> Result<Served, Failure> {
    match head {
        RequestHead::Http {
            request_id,
            service,
            method,
            path_and_query,
            fields,
            credential,
            upgrade,
            ..
        } => {
            let route = route(agent, upstreams, service, request_id)?;
            let path = path_and_query.split('?').next().unwrap_or_default();
            let is_upgrade = upgrade.is_some();
            let watched =
                verified(agent, route, request_id, credential.as_ref(), (method, path, is_upgrade)).await?;
            let caller = watched.as_ref().map(|watched| watched.caller.clone());
            let asked = Asked { method, path_and_query, fields, bytes, caller };
            match upgrade {
                None => http::serve(agent, route, &asked, receiver, sender).await.map(|()| Served::Whole),
                Some("websocket") => {
                    until(watched, Box::pin(upgrade::serve(agent, route, &asked, receiver, sender))).await
                }
                Some(_) => {
                    Err(Failure::agent(failure::NOT_SUPPORTED, "this agent upgrades to websocket alone"))
                }
            }
        }
        RequestHead::Tcp { request_id, service, credential, .. } => {
            let route = route(agent, upstreams, service, request_id)?;
            let watched =
                verified(agent, route, request_id, credential.as_ref(), (CONNECT, "", false)).await?;
            until(watched, Box::pin(tcp::serve(agent, route, receiver, sender))).await
        }
    }
}

/// How a request without a failure ended.
enum Served {
    Whole,
    /// A live stream outlasted its caller's token.
    Cut,
}

/// Decides again, where the service's entry says so: the caller, to be watched as long as a live stream lasts.
async fn verified<'a>(
    agent: &'a Agent,
    route: &'a Route,
    request_id: &'a str,
    credential: Option<&Credential<'_>>,
    (method, path, is_upgrade): (&'a str, &'a str, bool),
) -> Result<Option<Watched<'a>>, Failure> {
    let service = &route.upstream.service;
    if !service.verifies {
        return Ok(None);
    }
    let (verifier, verify) = agent
        .verifier
        .as_ref()
        .zip(agent.settings.verification.as_ref().and_then(|all| all.services.get(&service.name)))
        .ok_or_else(|| {
            Failure::agent(failure::NOT_SUPPORTED, "nothing here can verify this service's callers")
        })?;
    let asked = verify::Call { service: &service.name, method, path, is_upgrade };
    let judged = Box::pin(verifier.judge(verify, &asked, credential, SystemTime::now())).await;
    let caller = judged.map_err(|refused| Failure::verify(agent, route, &refused))?;
    tracing::debug!(request_id = %request_id.escape_debug(), token = %caller.token_id(), "verified");
    Ok(Some(Watched { verifier, leases: &agent.leases, verify, request_id, asked, caller }))
}

/// Serves a live stream until its caller's last token has expired.
async fn until(
    watched: Option<Watched<'_>>,
    serving: impl Future<Output = Result<(), Failure>>,
) -> Result<Served, Failure> {
    let Some(watched) = watched else { return serving.await.map(|()| Served::Whole) };
    tokio::select! {
        served = serving => served.map(|()| Served::Whole),
        () = watched.expired() => Ok(Served::Cut),
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
