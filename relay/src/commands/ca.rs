//! `ca show` and `ca rotate`: through the running relay, or on its state where none runs. The root's key is read here, signs here, and is
//! forgotten when the command ends; the relay never sees it.

use std::time::SystemTime;

use postern_base::console::{self, time};
use serde_json::json;

use super::agent::{open_audit, record};
use super::{Context, Done, Failure, answer, block_on, enrollment};
use crate::admin::api;
use crate::admin::api::ca::{FinishCall, PrepareCall, Rotated};
use crate::cli::{Ca, Rotate};
use crate::enroll::{CaReport, Enrollment, NewRootKey, Prepared, Signed, root_key, sign};

pub(super) fn run(context: &Context, command: Ca) -> Done {
    match command {
        Ca::Show => show(context),
        Ca::Rotate(args) if args.finish => finish(context, args.force),
        Ca::Rotate(args) => rotate(context, &args),
    }
}

fn show(context: &Context) -> Done {
    let called = block_on(context.relay()?.get(api::CA))?;
    let report: CaReport = match answer(called)? {
        Some(report) => report,
        None => enrollment(&context.load()?.settings)?.ca_report(SystemTime::now()),
    };
    if context.output.json {
        return Ok(console::json(&report)?);
    }
    let rows: Vec<_> = report
        .certificates
        .iter()
        .map(|row| {
            // Enough to tell two keys apart at a glance; --json has all of it.
            let key = row.key.get(..16).unwrap_or(&row.key).to_owned();
            vec![
                row.what.word().to_owned(),
                row.name.clone(),
                row.epoch.to_string(),
                time(row.not_after),
                key,
            ]
        })
        .collect();
    console::table(&["WHAT", "NAME", "EPOCH", "GOOD UNTIL", "KEY"], &rows)?;
    if report.overlap {
        console::line(
            "\nThe root is being replaced: the old one is believed until postern-relay ca rotate --finish",
        )?;
    }
    let (all, behind) = (report.instances, report.behind.len());
    if behind > 0 {
        console::line(format!(
            "\n{behind} of {all} agent instance(s) have not moved to epoch {} yet:",
            report.epoch
        ))?;
        let rows: Vec<_> = report
            .behind
            .iter()
            .map(|row| {
                vec![
                    row.agent.to_string(),
                    row.instance.to_string(),
                    row.epoch.to_string(),
                    time(row.not_after),
                ]
            })
            .collect();
        console::table(&["AGENT", "INSTANCE", "EPOCH", "GOOD UNTIL"], &rows)?;
    } else if all > 0 {
        console::line(format!("\nAll {all} agent instance(s) have certificates of epoch {}", report.epoch))?;
    }
    for warning in &report.warnings {
        context.output.note(format!("! {warning}"));
    }
    Ok(())
}

/// Where the rotation is done: by the running relay, or here.
enum Where {
    Relay,
    Here(Box<Enrollment>),
}

fn rotate(context: &Context, args: &Rotate) -> Done {
    let loaded = context.load()?;
    let now = SystemTime::now();
    let call = PrepareCall { root: args.root };
    let called = block_on(context.relay()?.post(api::CA_PREPARE, &serde_json::to_value(&call)?))?;
    let (place, prepared): (Where, Prepared) = if let Some(prepared) = answer(called)? {
        (Where::Relay, prepared)
    } else {
        let enrollment = enrollment(&loaded.settings)?;
        let prepared = enrollment.prepare_rotation(args.root)?;
        (Where::Here(Box::new(enrollment)), prepared)
    };
    let (path, key) = root_key(&prepared, args.root_key.as_deref())?;
    let next = args.root.then(|| NewRootKey::make(&prepared.dir)).transpose()?;
    let signed = sign(
        &prepared,
        &loaded.settings.agents.trust_domain,
        (&key, &path),
        next.as_ref().map(NewRootKey::key),
        now,
    )?;
    drop(key);
    let rotated = match place {
        Where::Relay => {
            let called = block_on(context.relay()?.post(api::CA_ROTATE, &serde_json::to_value(&signed)?))?;
            answer(called)?.ok_or_else(super::not_running)?
        }
        Where::Here(enrollment) => here(context, &enrollment, &signed, now)?,
    };
    let kept = next.map(NewRootKey::keep).transpose()?;
    if context.output.json {
        return Ok(console::json(&rotated)?);
    }
    let output = context.output;
    output.note(format!(
        "issuing CA of epoch {} is in force; {} tunnel(s) told to renew",
        rotated.epoch, rotated.told
    ));
    if let Some(kept) = kept {
        output.note(format!("! the new root's key is {}: move it to a safe place", kept.display()));
        if kept != path {
            output.note(format!(
                "  {} is the old root's: destroy it when the old root is not believed any more",
                path.display()
            ));
        }
        output.note(
            "Next: wait until all have moved (postern-relay ca show), then: postern-relay ca rotate --finish",
        );
    } else {
        output.note("Next: see who has moved: postern-relay ca show");
    }
    Ok(())
}

fn here(
    context: &Context,
    enrollment: &Enrollment,
    signed: &Signed,
    now: SystemTime,
) -> Result<Rotated, Failure> {
    let audit = open_audit(&context.load()?)?;
    enrollment.rotate(signed, now)?;
    let epoch = enrollment.epoch();
    record(audit, "admin", json!({ "action": "ca rotate", "epoch": epoch, "root": signed.root.is_some() }));
    Ok(Rotated { epoch, overlap: enrollment.ca_report(now).overlap, told: 0 })
}

fn finish(context: &Context, force: bool) -> Done {
    let now = SystemTime::now();
    let called =
        block_on(context.relay()?.post(api::CA_FINISH, &serde_json::to_value(FinishCall { force })?))?;
    let rotated: Rotated = if let Some(rotated) = answer(called)? {
        rotated
    } else {
        let loaded = context.load()?;
        let audit = open_audit(&loaded)?;
        let enrollment = enrollment(&loaded.settings)?;
        let behind = enrollment.ca_report(now).behind.len();
        enrollment.finish_rotation(force, now)?;
        let epoch = enrollment.epoch();
        let detail = json!({ "action": "ca rotate --finish", "epoch": epoch, "left_behind": behind });
        record(audit, "admin", detail);
        Rotated { epoch, overlap: false, told: 0 }
    };
    if context.output.json {
        return Ok(console::json(&rotated)?);
    }
    context.output.note("the old root is not believed any more");
    Ok(())
}
