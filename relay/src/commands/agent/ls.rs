//! `agent ls`: what the running relay holds of each instance, or what the database knows where none runs. Rows fit 80 columns with ids as
//! relays make them; what needs a sentence stands below them.

use std::time::SystemTime;

use postern_base::console::{self, span, time};
use postern_base::id::ServiceName;

use super::super::{Context, Done, answer, block_on, database};
use crate::admin::api;
use crate::admin::api::agents::{self, AgentList, AgentView};
use crate::admin::api::status::TunnelView;
use crate::enroll::{CertificateRecord, InviteRow};

const HEADING: [&str; 5] = ["AGENT", "STATE", "SEEN", "CERTIFICATE", "MAY SERVE"];

pub(super) fn list(context: &Context) -> Done {
    let called = block_on(context.relay()?.get(api::AGENTS))?;
    let (list, relay_runs): (AgentList, bool) = match answer(called)? {
        Some(list) => (list, true),
        None => (agents::list(&database(context, &context.load()?.settings)?, Vec::new()), false),
    };
    if context.output.json {
        return Ok(console::json(&list)?);
    }
    let now = postern_base::clock::seconds(SystemTime::now());
    let rows = list
        .agents
        .iter()
        .map(|agent| instance(agent, list.epoch, relay_runs, now))
        .chain(others(&list.others));
    let rows: Vec<_> = rows.chain(list.invites.iter().map(|invite| invited(invite, now))).collect();
    if rows.is_empty() {
        context.output.note("no agents yet: invite one with: postern-relay agent invite NAME");
    } else {
        console::table(&HEADING, &rows, &[0, 4])?;
    }
    for suspended in &list.suspensions {
        let (since, reason) = (time(suspended.suspension.since), &suspended.suspension.reason);
        let reason = reason.escape_debug();
        context.output.note(format!("! {} is suspended since {since}: {reason}", suspended.who));
    }
    if !relay_runs && !list.agents.is_empty() {
        context.output.note("no relay runs here: whether agents are up is not known");
    }
    Ok(())
}

fn instance(AgentView { row, tunnels }: &AgentView, epoch: u64, relay_runs: bool, now: u64) -> Vec<String> {
    let usable = tunnels.iter().filter(|tunnel| tunnel.usable).count();
    let state = match (&row.suspended, relay_runs) {
        (Some(_), _) => "suspended".to_owned(),
        (None, true) => state(usable),
        (None, false) => "unknown".to_owned(),
    };
    let seen = if usable > 0 { "now".to_owned() } else { ago(row.last_seen, now) };
    let agent = format!("{}/{}", row.name, row.instance);
    vec![agent, state, seen, certificate(&row.certificate, epoch, now), may_serve(row.services.as_deref())]
}

/// Those that are known by their tunnels alone.
fn others(tunnels: &[TunnelView]) -> Vec<Vec<String>> {
    let whose = |a: &TunnelView, b: &TunnelView| (&a.agent, &a.instance) == (&b.agent, &b.instance);
    let row = |of_one: &[TunnelView]| {
        let agent = format!("{}/{}", of_one[0].agent, of_one[0].instance);
        let usable = of_one.iter().filter(|tunnel| tunnel.usable).count();
        vec![agent, state(usable), "now".to_owned(), "made elsewhere".to_owned(), may_serve(None)]
    };
    tunnels.chunk_by(whose).map(row).collect()
}

fn state(usable: usize) -> String {
    match usable {
        0 => "down".to_owned(),
        1 => "up, 1 tunnel".to_owned(),
        n => format!("up, {n} tunnels"),
    }
}

fn invited(invite: &InviteRow, now: u64) -> Vec<String> {
    let state = if invite.expires > now { "invited" } else { "invite ended" };
    let left = if invite.expires > now { left(invite.expires, now) } else { ago(invite.expires, now) };
    vec![
        invite.agent.to_string(),
        state.to_owned(),
        "-".to_owned(),
        left,
        may_serve(invite.services.as_deref()),
    ]
}

/// How long it is good, and the epoch of the authority that issued it where that was replaced since.
fn certificate(record: &CertificateRecord, epoch: u64, now: u64) -> String {
    let good = if record.not_after > now {
        left(record.not_after, now)
    } else {
        format!("ended {}", ago(record.not_after, now))
    };
    if record.epoch == epoch { good } else { format!("{good}, epoch {}", record.epoch) }
}

fn may_serve(services: Option<&[ServiceName]>) -> String {
    services.map_or_else(
        || "all".to_owned(),
        |services| services.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
    )
}

fn left(end: u64, now: u64) -> String {
    format!("{} left", span(end.saturating_sub(now)))
}

fn ago(at: u64, now: u64) -> String {
    format!("{} ago", span(now.saturating_sub(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_80_columns_and_say_what_is_out_of_the_ordinary() {
        let row = |change: fn(&mut serde_json::Value)| {
            let mut view = serde_json::json!({
                "name": "dc1", "instance": "01jc8z5v8n3m0q4r6t7w9x2y1z", "services": null, "enrolled": 0,
                "certificate": { "serial": "4a", "not_after": 90_000, "key": null, "epoch": 2 }, "previous": null,
                "suspended": null, "last_seen": 40_000, "tunnels": [],
            });
            change(&mut view);
            serde_json::from_value::<AgentView>(view).unwrap()
        };
        let shown = |view: &AgentView, runs, now| instance(view, 2, runs, now)[1..].join("|");
        let usual = row(|_| {});
        assert_eq!(shown(&usual, true, 50_000), "down|2 h ago|11 h left|all");
        assert_eq!(shown(&usual, false, 50_000), "unknown|2 h ago|11 h left|all");
        assert_eq!(shown(&usual, true, 90_000 + 3 * 86_400), "down|3 d ago|ended 3 d ago|all");
        let behind = row(|view| view["certificate"]["epoch"] = 1.into());
        assert_eq!(shown(&behind, true, 50_000), "down|2 h ago|11 h left, epoch 1|all");
        let out = row(|view| {
            view["suspended"] = serde_json::json!({ "reason": "r", "since": 1, "by": null });
            view["services"] = serde_json::json!(["wiki", "billing"]);
        });
        assert_eq!(shown(&out, false, 50_000), "suspended|2 h ago|11 h left|wiki billing");
        let width: usize = instance(&usual, 2, true, 50_000).iter().map(|cell| cell.len() + 2).sum();
        assert!(width <= 80 + 2, "{width}");
    }
}
