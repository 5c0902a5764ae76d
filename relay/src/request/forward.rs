//! Down a tunnel and back: takes a permit and a clean head, gives the upstream's answer as it comes, or the live stream that the caller
//! asked for; refuses with 502, 503 or 504. A request that no upstream has seen moves to another tunnel; one that may have been seen is
//! sent once more only if that does no harm (security.md 18). Whatever ends early resets its stream, so that the other side stops at once.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use postern_base::id::{InstanceId, ServiceName};
use postern_gate::policy::ServiceKind;
use postern_wire::body::FramedBody;

use super::authenticate::Shown;
use super::authorize::Permitted;
use super::body::{Download, ResponseBody, Upload};
use super::headers;
use super::live::Live;
use super::record::Record;
use super::respond::Refusal;
use super::route::Routed;
use super::upgrade::Upgrade;
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::session::Session;
use crate::tunnel::registry::{Occupied, Registry, Tunnel};
use crate::workers::WorkerId;

mod attempt;
mod head;

use attempt::{Answer, Answered, Attempt, Failed, Outgoing, Sending};

/// How long a tunnel may take to permit another stream before the next tunnel is tried.
const STREAM_WAIT: Duration = Duration::from_millis(50);
/// And when none was left to try: agents permit more while they are asked for more, which takes them a heartbeat or less.
const STREAM_PATIENCE: Duration = Duration::from_secs(2);
/// In a head it makes a "Trailers-Only" answer, which callers of gRPC know only by a head that ends its stream at once.
const GRPC_STATUS: &str = "grpc-status";
/// Tunnels tried for one request.
const TRIES: usize = 4;

/// What tells a caller the lease of a live stream.
const LEASE: HeaderName = HeaderName::from_static("postern-lease");

/// What is forwarded besides the head.
pub struct Carried<'a> {
    pub body: Incoming,
    pub upgrade: Option<Upgrade>,
    /// For the agent, where the service says so.
    pub shown: &'a Shown,
}

pub async fn forward(
    connection: &Arc<Connection>,
    snapshot: &Snapshot,
    permitted: &Permitted,
    routed: &Routed,
    mut head: http::request::Parts,
    carried: Carried<'_>,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refusal> {
    let service = permitted.service();
    let Carried { body, upgrade, shown } = carried;
    let outgoing = if upgrade.is_some() {
        Outgoing::Raw
    } else if body.is_end_stream() {
        headers::without_body(&mut head.headers);
        Outgoing::Empty
    } else {
        let stall = snapshot.settings.limits.body_stall;
        Outgoing::Unread(Upload::new(body, service, stall, record.bytes.clone()))
    };
    let mut attempt = Attempt {
        head: head::encoded(permitted, shown, routed, &head, upgrade.as_ref(), record)?,
        may_repeat: head.method.is_idempotent() && matches!(outgoing, Outgoing::Empty | Outgoing::Raw),
        outgoing,
        service,
        tasks: &connection.worker.tasks,
    };
    let (registry, session) = (connection.worker.relay.registry(), connection.worker.relay.session());
    let mut tried = Tried::default();
    let mut last = None;
    let mut patience = STREAM_WAIT;
    loop {
        let Some(occupied) = tried.next(registry, session, &service.name, connection.worker.id) else {
            if tried.full.is_empty() {
                break;
            }
            // Enough have been asked; one of those that only had no room is waited for.
            patience = STREAM_PATIENCE;
            let full = std::mem::take(&mut tried.full);
            tried.tunnels.retain(|tunnel| !full.contains(tunnel));
            continue;
        };
        let id = occupied.tunnel().id();
        let opened = tokio::time::timeout(patience, occupied.tunnel().link.open()).await;
        tried.tunnels.push(id);
        let stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => continue,
            Err(_) if patience == STREAM_WAIT => {
                tried.full.push(id);
                continue;
            }
            Err(_) => return Err(last.unwrap_or(Refusal::Overloaded)),
        };
        record.through(occupied.tunnel())?;
        match attempt.send(stream).await {
            Ok(answered) => {
                let upgrade = upgrade.map(|upgrade| (upgrade, shown));
                return answer(connection, permitted, routed, occupied, answered, upgrade, record).await;
            }
            Err(Failed::Unsent(refusal)) => last = Some(refusal),
            Err(Failed::Declined(refusal)) => {
                // Its other tunnels lead to the same upstream.
                tried.instances.push(occupied.tunnel().instance.clone());
                last = Some(refusal);
            }
            Err(Failed::Unanswered(refusal)) if attempt.may_repeat => {
                attempt.may_repeat = false;
                last = Some(refusal);
            }
            Err(Failed::Unanswered(refusal) | Failed::Final(refusal)) => return Err(refusal),
        }
    }
    Err(last.unwrap_or_else(|| {
        if let Some(cut) = service.agents.iter().find_map(|agent| session.refuses_agent(agent)) {
            return cut.into();
        }
        if registry.has_any_of(&service.agents) {
            Refusal::NotOffered
        } else if connection.worker.relay.enrollment().are_suspended(&service.agents) {
            Refusal::Suspended
        } else {
            Refusal::NoAgent
        }
    }))
}

/// What was tried for a request already.
#[derive(Default)]
struct Tried {
    tunnels: Vec<u64>,
    /// Those of them that permitted no stream in time.
    full: Vec<u64>,
    /// Whole agents, that said themselves that they cannot.
    instances: Vec<InstanceId>,
}

impl Tried {
    /// The next tunnel, unless enough have been tried.
    fn next(
        &self,
        registry: &Registry,
        session: &Session,
        service: &ServiceName,
        worker: WorkerId,
    ) -> Option<Occupied> {
        let leaves = |tunnel: &Tunnel| {
            !self.tunnels.contains(&tunnel.id())
                && !self.instances.contains(&tunnel.instance)
                && session.refuses_agent(&tunnel.agent).is_none()
        };
        if self.tunnels.len() < TRIES { registry.pick(service, worker, leaves) } else { None }
    }
}

/// Makes the caller's answer of the agent's.
async fn answer(
    connection: &Arc<Connection>,
    permitted: &Permitted,
    routed: &Routed,
    occupied: Occupied,
    answered: Answered,
    upgrade: Option<(Upgrade, &Shown)>,
    record: &Record,
) -> Result<Response<ResponseBody>, Refusal> {
    let service = permitted.service();
    let Answered { answer, receiver, sending } = answered;
    let (status, mut fields) = match (answer, service.kind) {
        (Answer::Http { status, fields }, ServiceKind::Http) => (status, fields),
        (Answer::Opened, ServiceKind::Tcp) => (StatusCode::SWITCHING_PROTOCOLS, HeaderMap::new()),
        (Answer::Http { .. }, ServiceKind::Tcp) | (Answer::Opened, ServiceKind::Http) => {
            return Err(Refusal::TunnelLost);
        }
    };
    headers::to_caller(status, &mut fields, service, routed);
    let upload = match (sending, upgrade) {
        (Sending::Raw(sender), Some((upgrade, shown))) if status == StatusCode::SWITCHING_PROTOCOLS => {
            let mut switch = upgrade.answer(fields).ok_or(Refusal::NotSwitched)?;
            let lease = record.lease(shown.token()).ok_or(Refusal::NotSwitched)?;
            switch.headers_mut().insert(LEASE, lease);
            let live = Live {
                on: upgrade.on,
                sender,
                receiver,
                idle: service.idle,
                occupied,
                connection: connection.clone(),
            };
            return Ok(switch.map(|()| ResponseBody::live(live)));
        }
        (Sending::Raw(mut sender), upgrade) => {
            if upgrade.is_some_and(|(upgrade, _)| upgrade.is_taken_for_switch(status)) {
                return Err(Refusal::NotSwitched);
            }
            sender.finish();
            None
        }
        (Sending::Done, _) => None,
        (Sending::Going(upload), _) => Some(upload),
    };
    if !(200..600).contains(&status.as_u16()) {
        return Err(Refusal::TunnelLost);
    }
    let tasks = connection.worker.tasks.clone();
    let mut body = FramedBody::new(receiver);
    if fields.contains_key(GRPC_STATUS) {
        let limit = service.first_byte.unwrap_or(Duration::MAX);
        let begun = tokio::time::timeout(limit, body.begin()).await;
        begun.map_err(|_| Refusal::Silent("limit.first_byte", limit))?.map_err(|_| Refusal::TunnelLost)?;
    }
    let download = Download::new(body, service.idle, occupied, upload, tasks);
    let mut response = Response::new(ResponseBody::tunnel(download));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    Ok(response)
}
