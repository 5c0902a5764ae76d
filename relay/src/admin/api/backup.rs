//! `backup` and `restore` of a running relay: its state as one file over the socket, and back. What a restore keeps out is cut at once.

use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use postern_base::admin::Answer as Reply;
use serde_json::json;

use super::{Answer, Call, audit, refuse, reply, value};
use crate::backup::{self, Archive, BackupError};
use crate::relay::Relay;

pub(super) async fn backup(relay: Arc<Relay>, call: Call) -> Reply {
    let made = tokio::task::spawn_blocking(move || made(&relay, &call)).await;
    match made {
        Ok(Ok(bytes)) => Reply::File(bytes.into()),
        Ok(Err(e)) => reply(refuse(StatusCode::CONFLICT, &e)),
        Err(e) => reply(refuse(StatusCode::INTERNAL_SERVER_ERROR, &e)),
    }
}

fn made(relay: &Relay, call: &Call) -> Result<Vec<u8>, BackupError> {
    let url = relay.snapshot().settings.url.to_string();
    let enrollment = relay.enrollment();
    let archive = backup::gather(enrollment.settings(), enrollment, &url, SystemTime::now())?;
    let bytes = archive.write()?;
    audit(relay, call, json!({ "action": "backup", "bytes": bytes.len() }));
    Ok(bytes)
}

pub(super) fn restore(relay: &Relay, call: &Call) -> Answer {
    let enrollment = relay.enrollment();
    let restored = Archive::read(&call.body).map_err(BackupError::from).and_then(|archive| {
        backup::into_running(&archive, enrollment.settings(), enrollment, SystemTime::now())
    });
    let restored = restored.or_else(|e| refuse(StatusCode::CONFLICT, &e))?;
    // Whoever is kept out by the backup's word goes now.
    let barred = relay.registry().all();
    let barred = barred.iter().filter(|tunnel| enrollment.standing(&tunnel.agent, &tunnel.instance).is_err());
    barred.for_each(|tunnel| tunnel.sever());
    relay.session().take_up_locks(relay);
    audit(relay, call, restored.told());
    value(&restored)
}
