//! `ca show` and `ca rotate`: through the running relay, or on its state where none runs. The root's key is read here, signs here, and is
//! forgotten when the command ends; the relay never sees it.

use std::time::SystemTime;

use postern_base::console::{self, time};

use super::agent::{open_audit, record};
use super::{Context, Done, Failure, answer, block_on, database, enroll_settings};
use crate::admin::api;
use crate::admin::api::ca::{self, FinishCall, PrepareCall, Rotated};
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
        None => database(context, &context.load()?.settings)?.ca_report(SystemTime::now()),
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
    console::table(&["WHAT", "NAME", "EPOCH", "GOOD UNTIL", "KEY"], &rows, &[1])?;
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
        console::table(&["AGENT", "INSTANCE", "EPOCH", "GOOD UNTIL"], &rows, &[0])?;
    } else if all > 0 && report.epoch == 0 {
        console::line(format!(
            "\nYour issuing CA bears no epoch (a number in its subject's serialNumber), so it\ncannot be told which of {all} agent instance(s) have not moved to it yet"
        ))?;
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
        let enrollment = database(context, &loaded.settings)?;
        let prepared = enrollment.prepare_rotation(args.root)?;
        (Where::Here(Box::new(enrollment)), prepared)
    };
    let dir = enroll_settings(&loaded.settings).ca_dir();
    let (path, key) = root_key(&prepared, &dir, args.root_key.as_deref())?;
    // An operator who keeps the root's key away from the relay keeps the next one there too.
    let make = || args.root_key.as_deref().map_or_else(|| NewRootKey::make(&dir), NewRootKey::beside);
    let next = args.root.then(make).transpose()?;
    let signed = sign(
        &prepared,
        &loaded.settings.agents.trust_domain,
        (&key, &path),
        next.as_ref().map(NewRootKey::key),
        now,
    );
    drop(key);
    let signed = match signed {
        Ok(signed) => signed,
        Err(e) => {
            if let Some(next) = next {
                next.forget();
            }
            return Err(e.into());
        }
    };
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
        let what_now = if args.root_key.is_some() {
            "keep it as safe as the old one's"
        } else {
            "move it to a safe place"
        };
        output.note(format!("! the new root's key is {}: {what_now}", kept.display()));
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
    let (rotated, detail) = ca::rotate(enrollment, signed, now)?;
    record(audit, "admin", detail);
    Ok(rotated)
}

fn finish(context: &Context, force: bool) -> Done {
    let now = SystemTime::now();
    let call = FinishCall { force };
    let called = block_on(context.relay()?.post(api::CA_FINISH, &serde_json::to_value(&call)?))?;
    let rotated: Rotated = if let Some(rotated) = answer(called)? {
        rotated
    } else {
        let loaded = context.load()?;
        let enrollment = database(context, &loaded.settings)?;
        let audit = open_audit(&loaded)?;
        let (rotated, detail) = ca::finish(&enrollment, &call, now)?;
        record(audit, "admin", detail);
        rotated
    };
    if context.output.json {
        return Ok(console::json(&rotated)?);
    }
    context.output.note("the old root is not believed any more");
    Ok(())
}
