//! What the running agent says of itself, as checks: whether it runs, its tunnels, and what relays refuse.

use postern_base::admin::ClientError;
use postern_base::console::checks::Check;

use crate::admin::status::Status;

pub(super) fn checks(status: &Result<Status, ClientError>) -> Vec<Check> {
    let name = "agent";
    match status {
        Ok(status) => std::iter::once(tunnels(status)).chain(refused(status)).collect(),
        Err(ClientError::NotRunning) => {
            let fix = "start it: systemctl start postern-agent (or: postern-agent run)";
            vec![Check::warn(name, "none runs with this state directory", fix)]
        }
        Err(e @ ClientError::NotAllowed { .. }) => {
            vec![Check::bad(name, e.to_string(), "run this command as the agent's user or as root")]
        }
        Err(e @ (ClientError::Refused { .. } | ClientError::Broken(_))) => {
            vec![Check::bad(name, e.to_string(), "look at its log, and restart it")]
        }
    }
}

fn tunnels(status: &Status) -> Check {
    let usable = status.tunnels.iter().filter(|tunnel| tunnel.usable).count();
    let said = format!("version {}, {usable} of {} tunnels usable", status.version, status.tunnels_wanted);
    let last =
        status.last_error.as_ref().map(|last| format!("; last error: {}", last.error)).unwrap_or_default();
    if status.suspended.is_some() {
        let fix = format!("at the relay: postern-relay agent resume {}", status.agent);
        return Check::bad("agent", format!("{said}; it is suspended"), fix);
    }
    if status.draining {
        return Check::warn("agent", format!("{said}; it drains"), "start it again when it has ended");
    }
    match usable {
        0 => Check::bad(
            "agent",
            format!("{said}{last}"),
            "see what follows of the relay; then look at the agent's log",
        ),
        some if some < status.tunnels_wanted => Check::warn(
            "agent",
            format!("{said}{last}"),
            "see what follows of the relays; it keeps trying by itself",
        ),
        _ => Check::good("agent", said),
    }
}

fn refused(status: &Status) -> impl Iterator<Item = Check> {
    status.services.iter().filter_map(|service| {
        let refused = service.refused.first()?;
        let fix = format!(
            "at the relay, give it to this agent (`agent = \"{}\"` under [services.{}]), or take it out here: postern-agent service rm {}",
            status.agent, service.name, service.name
        );
        let detail = format!("{} refuses it: {}", refused.relay, refused.reason);
        Some(Check::bad(format!("service {}", service.name), detail, fix))
    })
}
