//! What the admin API can do, one function per operation, and the shapes of its questions and answers. Offline commands use the same
//! functions on the database itself.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use postern_base::admin::Call;
use postern_base::id::{AgentName, ServiceName};
use postern_gate::policy::Permit;
use postern_gate::principal::Principal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::why;
use crate::config::{self, diff::Diff};
use crate::enroll::{AgentRow, EnrollError, Enrollment, InviteRow};
use crate::relay::Relay;
use crate::request::limit;
use crate::session::{Lock, LockId, Wanted};
use crate::tunnel::registry::TunnelInfo;

pub(crate) const STATUS: &str = "/status";
pub(crate) const RELOAD: &str = "/reload";
pub(crate) const AGENTS: &str = "/agents";
pub(crate) const INVITE: &str = "/agents/invite";
pub(crate) const REMOVE: &str = "/agents/remove";
pub(crate) const WHY: &str = "/policy/why";
pub(crate) const DIFF: &str = "/config/diff";
pub(crate) const LOCKS: &str = "/locks";
pub(crate) const LOCK: &str = "/locks/add";
pub(crate) const UNLOCK: &str = "/locks/remove";
pub(crate) const SESSIONS: &str = "/sessions";

/// What runs. Times are seconds since the epoch.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) url: String,
    pub(crate) config: String,
    pub(crate) started: u64,
    pub(crate) tunnels: Vec<TunnelView>,
}

/// A tunnel as operators see it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TunnelView {
    pub(crate) agent: AgentName,
    pub(crate) instance: String,
    pub(crate) address: SocketAddr,
    pub(crate) since: u64,
    pub(crate) usable: bool,
    pub(crate) services: Vec<ServiceName>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    pub(crate) changes: Vec<String>,
}

/// What a file would change; without one, the relay's own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiffCall {
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InviteCall {
    pub(crate) agent: AgentName,
    pub(crate) services: Option<Vec<ServiceName>>,
    /// Seconds.
    pub(crate) ttl: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Invited {
    pub(crate) invite: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RemoveCall {
    pub(crate) agent: AgentName,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) instances: usize,
    pub(crate) tunnels: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LockCall {
    pub(crate) wanted: Wanted,
    /// Seconds.
    pub(crate) ttl: Option<u64>,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Locked {
    pub(crate) lock: Lock,
    /// Requests and streams that the lock cut.
    pub(crate) cut: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UnlockCall {
    pub(crate) id: LockId,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AgentList {
    pub(crate) agents: Vec<AgentView>,
    pub(crate) invites: Vec<InviteRow>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AgentView {
    #[serde(flatten)]
    pub(crate) row: AgentRow,
    pub(crate) tunnels: Vec<TunnelView>,
}

type Answer = Result<Value, (StatusCode, Value)>;

/// Answers one call from the running relay.
pub(super) async fn answer(relay: Arc<Relay>, call: Call) -> (StatusCode, Value) {
    let operation: fn(&Relay, &Call) -> Answer = match (call.method.as_str(), call.path.as_str()) {
        ("GET", STATUS) => status,
        ("POST", RELOAD) => reload,
        ("GET", AGENTS) => |relay, _| value(&list(relay.enrollment(), relay.tunnels())),
        ("POST", INVITE) => new_invite,
        ("POST", REMOVE) => remove,
        ("GET", LOCKS) => |relay, _| value(&relay.enrollment().locks(SystemTime::now())),
        ("POST", LOCK) => lock,
        ("POST", UNLOCK) => unlock,
        ("GET", SESSIONS) => |relay, _| value(&relay.session().streams()),
        ("POST", DIFF) => diff,
        ("POST", WHY) => return ask(&relay, &call).await.map_or_else(|refusal| refusal, ok),
        _ => {
            let error = "this relay has no such operation: use the command of its own version";
            return (StatusCode::NOT_IMPLEMENTED, json!({ "error": error }));
        }
    };
    // These read files or wait for the disk: not on a runtime that serves.
    let done = tokio::task::spawn_blocking(move || operation(&relay, &call)).await;
    let done = done.unwrap_or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e));
    done.map_or_else(|refusal| refusal, ok)
}

fn status(relay: &Relay, _: &Call) -> Answer {
    value(&Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: relay.snapshot().settings.url.to_string(),
        config: relay.path().display().to_string(),
        started: seconds(relay.started()),
        tunnels: relay.tunnels().into_iter().map(TunnelView::from).collect(),
    })
}

fn reload(relay: &Relay, call: &Call) -> Answer {
    audit(relay, call, json!({ "action": "reload" }));
    match relay.reload() {
        Ok(changes) => value(&Reloaded { changes }),
        Err(errors) => {
            let details: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let error = "the configuration is not good; the old one stays in force";
            Err((StatusCode::UNPROCESSABLE_ENTITY, json!({ "error": error, "details": details })))
        }
    }
}

fn diff(relay: &Relay, call: &Call) -> Answer {
    let DiffCall { file } = body(call)?;
    let path = file.as_deref().unwrap_or(relay.path());
    match config::load(path) {
        Ok(loaded) => {
            let snapshot = relay.snapshot();
            value(&Diff::between((&snapshot.outline, &snapshot.policy), &loaded, SystemTime::now()))
        }
        Err(errors) => {
            let details: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let error = format!("{} is not good", path.display());
            Err((StatusCode::UNPROCESSABLE_ENTITY, json!({ "error": error, "details": details })))
        }
    }
}

fn new_invite(relay: &Relay, call: &Call) -> Answer {
    let wanted: InviteCall = body(call)?;
    let invited = invite(relay.enrollment(), &wanted, SystemTime::now());
    let invited = invited.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let detail = json!({ "action": "agent invite", "agent": wanted.agent, "services": wanted.services });
    audit(relay, call, detail);
    value(&invited)
}

fn remove(relay: &Relay, call: &Call) -> Answer {
    let RemoveCall { agent } = body(call)?;
    let instances = relay.enrollment().remove(&agent, SystemTime::now());
    let instances = instances.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    let tunnels = relay.cut_agent(&agent);
    let detail =
        json!({ "action": "agent remove", "agent": agent, "instances": instances, "tunnels": tunnels });
    audit(relay, call, detail);
    value(&Removed { instances, tunnels })
}

fn lock(relay: &Relay, call: &Call) -> Answer {
    let LockCall { wanted, ttl, reason } = body(call)?;
    let locked = relay.session().lock(relay, &wanted, ttl.map(Duration::from_secs), &reason, call.uid);
    let (lock, cut) = locked.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    value(&Locked { lock, cut })
}

fn unlock(relay: &Relay, call: &Call) -> Answer {
    let UnlockCall { id } = body(call)?;
    let removed = relay.session().unlock(relay, id, call.uid);
    value(&removed.or_else(|e| refuse(StatusCode::CONFLICT, &e))?)
}

async fn ask(relay: &Relay, call: &Call) -> Answer {
    let question = body(call)?;
    let snapshot = relay.snapshot();
    let now = SystemTime::now();
    let tell = |caller: &Principal, address, permit: &mut Permit| limit::look(relay, caller, address, permit);
    let explained =
        why::explain(&snapshot.settings, &snapshot.policy, &snapshot.issuers, &question, now, &tell);
    explained.await.map_or_else(|e| refuse(e.status(), &e), |explanation| value(&explanation))
}

pub(crate) fn invite(
    enrollment: &Enrollment,
    wanted: &InviteCall,
    now: SystemTime,
) -> Result<Invited, EnrollError> {
    let ttl = wanted.ttl.map(Duration::from_secs);
    let invite = enrollment.invite(&wanted.agent, wanted.services.clone(), ttl, now)?;
    Ok(Invited { invite: invite.to_string() })
}

pub(crate) fn list(enrollment: &Enrollment, tunnels: Vec<TunnelInfo>) -> AgentList {
    let mut tunnels: Vec<_> = tunnels.into_iter().map(TunnelView::from).collect();
    let agents = enrollment.agents().into_iter().map(|row| {
        let own = tunnels.extract_if(.., |tunnel| tunnel.instance == row.instance.as_str()).collect();
        AgentView { row, tunnels: own }
    });
    AgentList { agents: agents.collect(), invites: enrollment.invites() }
}

impl From<TunnelInfo> for TunnelView {
    fn from(tunnel: TunnelInfo) -> Self {
        Self {
            agent: tunnel.agent,
            instance: tunnel.instance.to_string(),
            address: tunnel.address,
            since: seconds(tunnel.since),
            usable: tunnel.usable,
            services: tunnel.services,
        }
    }
}

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, (StatusCode, Value)> {
    serde_json::from_slice(&call.body).or_else(|e| refuse(StatusCode::BAD_REQUEST, &e))
}

fn ok(value: Value) -> (StatusCode, Value) {
    (StatusCode::OK, value)
}

fn value<T: Serialize>(answer: &T) -> Answer {
    serde_json::to_value(answer).or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e))
}

fn refuse<T>(status: StatusCode, error: &dyn Error) -> Result<T, (StatusCode, Value)> {
    Err((status, json!({ "error": error.to_string() })))
}

fn audit(relay: &Relay, call: &Call, mut detail: Value) {
    detail["uid"] = call.uid.into();
    relay.audit().event("admin", detail);
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
