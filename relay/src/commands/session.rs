//! `session ls`: the live streams of the running relay and whose they are.

use postern_base::console::{self, time};

use super::{Context, Done, answer, block_on, not_running};
use crate::admin::api;
use crate::cli::SessionCommand;
use crate::session::StreamView;

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
    let rows: Vec<_> = streams
        .iter()
        .map(|stream| {
            vec![
                format!("{}/{}", stream.issuer, stream.user.escape_debug()),
                stream.service.to_string(),
                stream.protocol.clone(),
                stream.agent.as_ref().map_or("-", AsRef::as_ref).to_owned(),
                stream.address.to_string(),
                time(stream.since),
                time(stream.until),
                stream.bytes_in.to_string(),
                stream.bytes_out.to_string(),
                stream.request_id.clone(),
            ]
        })
        .collect();
    let titles = ["USER", "SERVICE", "KIND", "AGENT", "FROM", "SINCE", "UNTIL", "IN", "OUT", "REQUEST"];
    Ok(console::table(&titles, &rows)?)
}
