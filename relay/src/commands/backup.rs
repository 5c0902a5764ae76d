//! `backup` and `restore`: through the running relay, or on the state directory where none runs.

use std::path::Path;
use std::time::SystemTime;

use postern_base::admin::ClientError;
use postern_base::console::{self, count, time};
use postern_base::file::{self, Access};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::agent::{open_audit, record};
use super::{Context, Done, Exit, Failure, answer, block_on, database, enroll_settings};
use crate::admin::api;
use crate::backup::{self, Archive, Restore, Restored};
use crate::cli;

/// `backup --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct BackedUp<'a> {
    file: &'a Path,
    /// In seconds since the epoch.
    made: u64,
    bytes: usize,
}

/// `restore --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct PutBack {
    restored: Restored,
    /// The first key of an audit chain that begins here, shown this once.
    audit_key: Option<String>,
}

pub(super) fn backup(context: &Context, args: &cli::Backup) -> Done {
    let path = &args.file;
    if path.symlink_metadata().is_ok() {
        let text = format!("{}: it is there already; choose another name", path.display());
        return Err(Failure::new(Exit::Failed, text));
    }
    let bytes = match block_on(context.relay()?.download(api::BACKUP))? {
        Ok(bytes) => bytes.to_vec(),
        Err(ClientError::NotRunning) => {
            let loaded = context.load()?;
            let settings = enroll_settings(&loaded.settings);
            let enrollment = database(context, &loaded.settings)?;
            let audit = open_audit(&loaded)?;
            let url = loaded.settings.url.to_string();
            let archive = backup::gather(&settings, &enrollment, &url, SystemTime::now())?;
            let bytes = archive.write()?;
            record(audit, "admin", json!({ "action": "backup", "bytes": bytes.len() }));
            bytes
        }
        Err(e) => return Err(refused(e)),
    };
    // What was sent is read once more: a backup that cannot be put back is none.
    let made = Archive::read(&bytes)?.manifest().made;
    file::write_atomic(path, &bytes, Access::Private)
        .map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))?;
    if context.output.json {
        return Ok(console::json(&BackedUp { file: path, made, bytes: bytes.len() })?);
    }
    let output = context.output;
    output.note(format!("wrote {} ({} KiB)", path.display(), bytes.len().div_ceil(1024)));
    output.note("Whoever has it can make agents: keep it as you would a key.");
    output.note("Not in it: relay.toml, the root's key, the audit log and its key.");
    Ok(())
}

/// What a call without an answer of its own ends with.
fn refused(error: ClientError) -> Failure {
    match answer::<Value>(Err(error)) {
        Err(failure) => failure,
        Ok(_) => super::not_running(),
    }
}

pub(super) fn restore(context: &Context, args: &cli::Restore) -> Done {
    let path = &args.file;
    let bytes =
        std::fs::read(path).map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))?;
    if let Err(e) = file::check_private(path) {
        console::error(format!("! {e}"));
    }
    // Refused here with a better word than after a way over the socket.
    let archive = Archive::read(&bytes)?;
    let (restored, is_running, key) = match block_on(context.relay()?.upload(api::RESTORE, bytes.into()))? {
        Ok(value) => (serde_json::from_value::<Restored>(value)?, true, None),
        Err(ClientError::NotRunning) => {
            let loaded = context.load()?;
            let settings = enroll_settings(&loaded.settings);
            let mut restore = Restore::begin(&archive, &settings)?;
            let key = restore.log()?;
            // Told before anything can fail: it is nowhere else.
            if let Some(key) = key.as_ref().filter(|_| !context.output.json) {
                console::line(key.expose().as_str())?;
                context.output.note(
                    "A new audit chain begins here. Its first key, shown this once: keep it away from this machine",
                );
            }
            let audit = open_audit(&loaded)?;
            let restored = restore.finish(SystemTime::now())?;
            record(audit, "admin", restored.told());
            (restored, false, key)
        }
        Err(e) => return Err(refused(e)),
    };
    if context.output.json {
        let key = key.as_ref().map(|key| key.expose().to_string());
        return Ok(console::json(&PutBack { restored, audit_key: key })?);
    }
    told(context, &restored, is_running);
    Ok(())
}

fn told(context: &Context, restored: &Restored, is_running: bool) {
    let output = context.output;
    let made = time(restored.made);
    output.note(format!("✓ restored from a backup of {made} (version {})", restored.version));
    for file in &restored.files {
        output.note(format!("  back: {file}"));
    }
    let merged = &restored.merged;
    output.note(format!("  back that was not known here: {}", count(merged.instances, "instance")));
    for (what, names) in [
        ("removed before the backup, and out again", &merged.removed),
        ("suspended then, and again", &merged.suspended),
        ("locked then, and again", &merged.locks),
    ] {
        for name in names {
            output.note(format!("  {what}: {name}"));
        }
    }
    if let Some(epoch) = restored.older_authority {
        output.note(format!(
            "  the backup's issuing CA (epoch {epoch}) is older than the one in force, which stays"
        ));
    }
    output.note("  open invites were not brought back: make new ones");
    if restored.afresh {
        console::error(format!(
            "! There was no database here, so nothing knows who was removed, suspended or locked after {made}:\n  \
             look it up in the audit log (event admin, lock) and do it again before you start the relay"
        ));
    } else {
        output.note("  whoever was removed, suspended or locked here since stays so");
    }
    if !is_running {
        output.note("Next: postern-relay run");
    }
}
