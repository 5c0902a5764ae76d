//! `POST /.postern/lease`: takes a fresh token and the ids of live streams; gives each of them the token's time, or says why not. The token
//! is judged for the service of the first stream that is known, so that a service's own audience does.

use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use postern_gate::token::Accept;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::authenticate::{self, Expected};
use super::super::record::Record;
use super::super::respond::Refusal;
use crate::public::Connection;
use crate::relay::Snapshot;

/// Ids in one request, and the bytes that they take at most.
const IDS: usize = 1000;
const BODY: usize = 64 * 1024;
/// So little is sent at once.
const BODY_TIME: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    leases: Vec<String>,
}

pub(super) async fn renew(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &Parts,
    body: Incoming,
    record: &mut Record,
    now: SystemTime,
) -> Result<Value, Refusal> {
    // Who shows no token at all is not listened to; any other must be, to know for what the token is meant.
    if !head.headers.contains_key(http::header::AUTHORIZATION) {
        return Err(Refusal::NoToken);
    }
    let relay = &connection.worker.relay;
    if !relay.admission().may_authenticate(record.peer().ip(), Instant::now()) {
        return Err(Refusal::TooManyFailures);
    }
    let asked = read(body).await?;
    let session = relay.session();
    let service = asked.leases.iter().find_map(|lease| session.service_of(lease));
    let service = service.and_then(|name| snapshot.settings.services.get(&name));
    let accept = service.map_or_else(Accept::default, |service| service.accept());
    // Who knows a stream's lease knows its service.
    let expected = Expected { accept, is_told: true };
    let caller = authenticate::verify(connection, snapshot, head, expected, record, now).await?;
    let mut leases = Vec::with_capacity(asked.leases.len());
    for lease in &asked.leases {
        let renewed = session.renew(relay, lease, &caller.principal, &caller.shown.credential(), now).await;
        leases.push(match renewed {
            Ok(expires) => json!({ "id": lease, "renewed": true, "expires": expires }),
            Err(why) => json!({ "id": lease, "renewed": false, "reason": why.to_string() }),
        });
    }
    Ok(json!({ "leases": leases }))
}

async fn read(body: Incoming) -> Result<Asked, Refusal> {
    let read = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY).collect()).await;
    let bytes = match read {
        Err(_) => return Err(Refusal::BodyStalled),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Refusal::BodyTooLarge(BODY as u64));
        }
        Ok(Err(_)) => return Err(Refusal::BodyBroken),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let malformed =
        |why: String| Refusal::Malformed(format!("the body is not {{\"leases\": [ID, …]}}: {why}"));
    let asked: Asked = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    if asked.leases.len() > IDS {
        return Err(malformed(format!("at most {IDS} ids at once")));
    }
    Ok(asked)
}
