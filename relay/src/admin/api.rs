//! What the admin API can do, one function per operation, and the shapes of its questions and answers. Offline commands use the same
//! functions on the database itself.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use postern_base::admin::{Actor, Answer as Reply, Call};
use postern_base::clock::seconds;
use postern_base::telemetry::recent::recent;
use postern_gate::policy::Permit;
use postern_gate::principal::Principal;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::why;
use crate::config::{self, diff::Diff};
use crate::relay::Relay;
use crate::request::limit;
use crate::session::{Lock, LockId, Wanted};

pub(crate) mod agents;
pub(crate) mod backup;
pub(crate) mod ca;
pub(crate) mod drain;
pub(crate) mod issuer;
pub(crate) mod probe;
pub(crate) mod status;

pub(crate) const STATUS: &str = "/status";
pub(crate) const RELOAD: &str = "/reload";
pub(crate) const AGENTS: &str = "/agents";
pub(crate) const INVITE: &str = "/agents/invite";
pub(crate) const SUSPEND: &str = "/agents/suspend";
pub(crate) const RESUME: &str = "/agents/resume";
pub(crate) const REMOVE: &str = "/agents/remove";
pub(crate) const WHY: &str = "/policy/why";
pub(crate) const DIFF: &str = "/config/diff";
pub(crate) const LOCKS: &str = "/locks";
pub(crate) const LOCK: &str = "/locks/add";
pub(crate) const UNLOCK: &str = "/locks/remove";
pub(crate) const SESSIONS: &str = "/sessions";
pub(crate) const CA: &str = "/ca";
pub(crate) const CA_PREPARE: &str = "/ca/prepare";
pub(crate) const CA_ROTATE: &str = "/ca/rotate";
pub(crate) const CA_FINISH: &str = "/ca/finish";
pub(crate) const DRAIN: &str = "/drain";
pub(crate) const PROBE: &str = "/probe";
pub(crate) const WARNINGS: &str = "/warnings";
pub(crate) const ISSUER: &str = "/issuers/test";
pub(crate) const BACKUP: &str = "/backup";
pub(crate) const RESTORE: &str = "/restore";
/// Calls that bring files.
pub(crate) const FILES: &[&str] = &[RESTORE];

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Reloaded {
    pub(crate) changes: Vec<String>,
    /// What is allowed but probably not meant.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// What a file would change; without one, the relay's own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiffCall {
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LockCall {
    pub(crate) wanted: Wanted,
    /// Seconds.
    pub(crate) ttl: Option<u64>,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Locked {
    pub(crate) lock: Lock,
    /// Requests and streams that the lock cut.
    pub(crate) cut: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UnlockCall {
    pub(crate) id: LockId,
}

type Answer = Result<Value, (StatusCode, Value)>;

/// Answers one call from the running relay.
pub(super) async fn answer(relay: Arc<Relay>, call: Call) -> Reply {
    let operation: fn(&Relay, &Call) -> Answer = match (call.method.as_str(), call.path.as_str()) {
        ("GET", STATUS) => |relay, _| status::status(relay),
        ("GET", CA) => |relay, _| ca::show(relay),
        ("POST", CA_PREPARE) => ca::prepare,
        ("POST", CA_ROTATE) => ca::new_authority,
        ("POST", CA_FINISH) => ca::end_overlap,
        ("GET", DRAIN) => |relay, _| drain::progress(relay),
        ("POST", DRAIN) => drain::begin,
        ("GET", WARNINGS) => |_, _| value(&recent()),
        ("POST", PROBE) => return reply(probe::probe(&relay, &call).await),
        ("POST", ISSUER) => return reply(issuer::test(&relay, &call).await),
        ("GET", BACKUP) => return backup::backup(relay, call).await,
        ("POST", RESTORE) => backup::restore,
        ("POST", RELOAD) => reload,
        ("GET", AGENTS) => |relay, _| value(&agents::list(relay.enrollment(), relay.tunnels())),
        ("POST", INVITE) => agents::new_invite,
        ("POST", SUSPEND) => agents::new_suspension,
        ("POST", RESUME) => agents::end_suspension,
        ("POST", REMOVE) => agents::removal,
        ("GET", LOCKS) => |relay, _| value(&relay.enrollment().locks(SystemTime::now())),
        ("POST", LOCK) => lock,
        ("POST", UNLOCK) => unlock,
        ("GET", SESSIONS) => |relay, _| value(&relay.session().streams()),
        ("POST", DIFF) => diff,
        ("POST", WHY) => return reply(ask(&relay, &call).await),
        _ => {
            let error = "this relay has no such operation: use the command of its own version";
            return (StatusCode::NOT_IMPLEMENTED, json!({ "error": error })).into();
        }
    };
    // These read files or wait for the disk: not on a runtime that serves.
    let done = tokio::task::spawn_blocking(move || operation(&relay, &call)).await;
    let done = done.unwrap_or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e));
    reply(done)
}

fn reload(relay: &Relay, call: &Call) -> Answer {
    audit(relay, call, json!({ "action": "reload" }));
    match relay.reload() {
        Ok((changes, warnings)) => value(&Reloaded { changes, warnings }),
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
    match config::look(path) {
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

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, (StatusCode, Value)> {
    serde_json::from_slice(&call.body).or_else(|e| refuse(StatusCode::BAD_REQUEST, &e))
}

fn reply(answer: Answer) -> Reply {
    let (status, value) = answer.map_or_else(|refusal| refusal, |value| (StatusCode::OK, value));
    Reply::Json(status, value)
}

fn value<T: Serialize>(answer: &T) -> Answer {
    serde_json::to_value(answer).or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, &e))
}

fn refuse<T>(status: StatusCode, error: &dyn Error) -> Result<T, (StatusCode, Value)> {
    Err((status, json!({ "error": error.to_string() })))
}

/// Records an action and who did it. Blocks on the system's book of users.
fn audit(relay: &Relay, call: &Call, mut detail: Value) {
    Actor::of(call.uid).sign(&mut detail);
    relay.audit().event("admin", detail);
}
