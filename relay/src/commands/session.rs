//! `session ls`: the live streams of the running relay and whose they are. On a terminal what fits one, with ages instead of times; elsewhere
//! each stream's times and its request, by which the audit log has it; all else with `--json`.

use std::io;
use std::time::SystemTime;

use postern_base::console::{self, fold, span, time};

use super::{Context, Done, answer, block_on, not_running};
use crate::admin::api;
use crate::cli::SessionCommand;
use crate::session::StreamView;

/// What both have in front.
const WHOSE: [&str; 5] = ["USER", "SERVICE", "KIND", "AGENT", "FROM"];
/// The columns that become narrower on a terminal: all but the kind.
const YIELDING: [usize; 4] = [0, 1, 3, 4];

pub(super) fn run(context: &Context, command: &SessionCommand) -> Done {
    let SessionCommand::Ls = command;
    let called = block_on(context.relay()?.get(api::SESSIONS))?;
    let streams: Vec<StreamView> = answer(called)?.ok_or_else(not_running)?;
    if context.output.json {
        return Ok(console::json(&streams)?);
    }
    if streams.is_empty() {
        context.output.note("no live streams");
        return Ok(());
    }
    let now = postern_base::clock::seconds(SystemTime::now());
    let (titles, rows): (&[&str], Vec<_>) = if fold::columns(io::stdout()).is_some() {
        (&["AGE", "LEFT", "IN", "OUT"], streams.iter().map(|stream| short(stream, now)).collect())
    } else {
        (&["SINCE", "UNTIL", "IN", "OUT", "REQUEST"], streams.iter().map(long).collect())
    };
    Ok(console::table(&[&WHOSE, titles].concat(), &rows, &YIELDING)?)
}

fn short(stream: &StreamView, now: u64) -> Vec<String> {
    let (age, left) = (now.saturating_sub(stream.since), stream.until.saturating_sub(now));
    let (taken, given) = (stream.bytes_in.to_string(), stream.bytes_out.to_string());
    whose(stream).into_iter().chain([span(age), span(left), taken, given]).collect()
}

fn long(stream: &StreamView) -> Vec<String> {
    let (taken, given) = (stream.bytes_in.to_string(), stream.bytes_out.to_string());
    let more = [time(stream.since), time(stream.until), taken, given, stream.request_id.clone()];
    whose(stream).into_iter().chain(more).collect()
}

fn whose(stream: &StreamView) -> [String; 5] {
    [
        format!("{}/{}", stream.issuer, stream.user.escape_debug()),
        stream.service.to_string(),
        stream.protocol.clone(),
        stream.agent.as_ref().map_or("-", AsRef::as_ref).to_owned(),
        stream.address.to_string(),
    ]
}
