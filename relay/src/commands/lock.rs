//! `lock add`, `lock ls`, `lock rm`: through the running relay, or on the database where none runs. A token is never an argument: it is
//! named by its id, or read from a file.

use std::time::{Duration, SystemTime};

use postern_base::console::{self, time};
use postern_gate::token::token_id;

use super::{Context, Done, Exit, Failure, answer, block_on, database};
use crate::admin::api::{self, LockCall, Locked, UnlockCall};
use crate::cli::{LockAdd, LockCommand, LockWhat};
use crate::session::{Lock, LockId, LockOn, Wanted};

pub(super) fn run(context: &Context, command: LockCommand) -> Done {
    match command {
        LockCommand::Add(args) => add(context, *args),
        LockCommand::Ls => list(context),
        LockCommand::Rm { id } => remove(context, id),
    }
}

fn wanted(what: LockWhat) -> Result<Wanted, Failure> {
    let LockWhat { user, client, issuer, agent, service, token, token_file, all: _ } = what;
    if let Some(path) = token_file {
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Failure::new(Exit::Failed, format!("{}: {e}", path.display())))?;
        return Ok(Wanted::Token(token_id(text.trim()).to_string()));
    }
    let named = [
        user.map(Wanted::User),
        client.map(Wanted::Client),
        issuer.map(Wanted::Issuer),
        agent.map(Wanted::Agent),
        service.map(Wanted::Service),
        token.map(Wanted::Token),
    ];
    // One of them is there; where none is, it is --all.
    Ok(named.into_iter().flatten().next().unwrap_or(Wanted::All))
}

fn add(context: &Context, args: LockAdd) -> Done {
    let LockAdd { what, ttl, reason } = args;
    if reason.trim().is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "--reason says nothing: say why, for whoever finds the lock later",
        ));
    }
    let call = LockCall { wanted: wanted(what)?, ttl: ttl.map(|span| span.0.as_secs().max(1)), reason };
    let called = block_on(context.relay()?.post(api::LOCK, &serde_json::to_value(&call)?))?;
    let answered: Option<Locked> = answer(called)?;
    let is_running = answered.is_some();
    let Locked { lock, cut } = if let Some(locked) = answered {
        locked
    } else {
        let loaded = context.load()?;
        let on = call.wanted.resolve(&loaded.settings)?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = super::agent::open_audit(&loaded)?;
        let uid = rustix::process::getuid().as_raw();
        let ttl = call.ttl.map(Duration::from_secs);
        let lock = enrollment.lock(on, ttl, &call.reason, uid, SystemTime::now())?;
        super::agent::record(audit, "lock", lock.told());
        Locked { lock, cut: 0 }
    };
    if context.output.json {
        return Ok(console::json(&Locked { lock, cut })?);
    }
    console::line(lock.id.to_string())?;
    let until =
        lock.expires.map_or_else(|| "until it is taken away".to_owned(), |at| format!("until {}", time(at)));
    context.output.note(format!("{} is locked {until}; {cut} request(s) and stream(s) cut", lock.on));
    if is_running && cut == 0 && matches!(lock.on, LockOn::User { .. } | LockOn::Client { .. }) {
        console::error("! nobody of that name has a session here now: check the spelling");
    }
    context.output.note(format!("To undo: postern-relay lock rm {}", lock.id));
    Ok(())
}

fn list(context: &Context) -> Done {
    let called = block_on(context.relay()?.get(api::LOCKS))?;
    let locks: Vec<Lock> = match answer(called)? {
        Some(locks) => locks,
        None => database(context, &context.load()?.settings)?.locks(SystemTime::now()),
    };
    if context.output.json {
        return Ok(console::json(&locks)?);
    }
    if locks.is_empty() {
        context.output.note("no locks");
        return Ok(());
    }
    let rows: Vec<_> = locks
        .iter()
        .map(|lock| {
            let until = lock.expires.map_or_else(|| "taken away".to_owned(), time);
            let reason = shown(&lock.reason);
            vec![lock.id.to_string(), lock.on.to_string(), time(lock.made), until, reason]
        })
        .collect();
    Ok(console::table(&["LOCK", "ON", "SINCE", "UNTIL", "REASON"], &rows, &[1, 4])?)
}

/// On one line, and harmless on a terminal.
fn shown(reason: &str) -> String {
    let mut text = String::with_capacity(reason.len());
    for c in reason.chars() {
        if c.is_control() { text.extend(c.escape_debug()) } else { text.push(c) }
    }
    text
}

fn remove(context: &Context, id: LockId) -> Done {
    let called = block_on(context.relay()?.post(api::UNLOCK, &serde_json::to_value(UnlockCall { id })?))?;
    let lock: Lock = if let Some(lock) = answer(called)? {
        lock
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = super::agent::open_audit(&loaded)?;
        let lock = enrollment.unlock(id)?;
        super::agent::record(audit, "unlock", lock.undone(rustix::process::getuid().as_raw()));
        lock
    };
    if context.output.json {
        return Ok(console::json(&lock)?);
    }
    context.output.note(format!("{} is locked no more by {}", lock.on, lock.id));
    Ok(())
}
