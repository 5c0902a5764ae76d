//! What the running relay says of its agents and services, and what their agents see of upstreams when asked.

use std::time::{Duration, SystemTime};

use postern_base::console::checks::Check;
use postern_base::console::span;
use postern_base::id::ServiceName;

use super::super::{Context, Failure, answer};
use crate::admin::api;
use crate::admin::api::agents::AgentList;
use crate::admin::api::probe::{ProbeCall, ProbeView};
use crate::admin::api::status::Status;
use crate::enroll::{Bearer, CaReport};

pub(super) async fn checks(
    context: &Context,
    status: &Status,
    ttl: Option<Duration>,
) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    let audit = &status.audit;
    checks.push(match audit.room.as_str() {
        _ if !audit.healthy => Check::bad(
            "audit log",
            "lines do not reach it: requests are refused",
            "see the relay's log for the cause",
        ),
        "enough" => Check::good("audit log", "healthy, its reserve untouched"),
        "reserve" => {
            Check::bad("audit log", "the disk is full; the reserve is being used", "make room on its disk")
        }
        _ => Check::bad("audit log", "the disk and the reserve are full", "make room on its disk"),
    });
    for service in &status.services {
        let name = format!("service {}", service.name);
        let serving: Vec<_> = service
            .agents
            .iter()
            .filter(|one| one.missing.is_none())
            .map(|one| one.agent.to_string())
            .collect();
        if !serving.is_empty() {
            checks.push(Check::good(name.clone(), format!("served by {}", serving.join(", "))));
        }
        for one in &service.agents {
            if let Some(missing) = one.missing {
                let (what, fix) = missing.told(&one.agent, &service.name);
                let check = if serving.is_empty() { Check::bad } else { Check::warn };
                checks.push(check(name.clone(), what, fix));
            }
        }
    }
    let list: Option<AgentList> = answer(context.relay()?.get(api::AGENTS).await)?;
    let now = postern_base::clock::seconds(SystemTime::now());
    for agent in list.map(|list| list.agents).unwrap_or_default() {
        let who = format!("agent {}/{}", agent.row.name, agent.row.instance);
        let ends = agent.row.certificate.not_after;
        // Agents renew at half of a certificate's life; a tenth more is what their retries may take.
        let due = ttl.map(|ttl| ends.saturating_sub(ttl.as_secs() * 4 / 10));
        let is_up = agent.tunnels.iter().any(|tunnel| tunnel.usable);
        if is_up && due.is_some_and(|due| due < now) {
            let text = format!(
                "it has not renewed its certificate, which ends in {}",
                span(ends.saturating_sub(now))
            );
            let fix = format!(
                "look at its machine: postern-agent status; and set its clock, if that is off (agent {})",
                agent.row.name
            );
            checks.push(Check::warn(who, text, fix));
        } else if !is_up && ends < now {
            let text = format!("down, and its certificate ended {} ago", span(now - ends));
            let fix =
                "start it: within agents.recover it comes back by itself; later invite it anew, or remove it";
            checks.push(Check::warn(who, text, fix));
        }
    }
    Ok(checks)
}

/// Has the agents of a service try its upstream.
pub(super) async fn upstreams(
    context: &Context,
    service: &ServiceName,
    is_running: bool,
) -> Result<Vec<Check>, Failure> {
    if !is_running {
        return Ok(vec![Check::skipped(
            format!("upstream of {service}"),
            "no relay runs here that could ask",
        )]);
    }
    let call = serde_json::to_value(ProbeCall { service: service.clone() })?;
    let views: Option<Vec<ProbeView>> = answer(context.relay()?.post(api::PROBE, &call).await)?;
    let checks = views.unwrap_or_default().into_iter().map(|view| {
        let name = match &view.instance {
            Some(instance) => format!("upstream of {service} (agent {}/{instance})", view.agent),
            None => format!("upstream of {service} (agent {})", view.agent),
        };
        let took = format!("{}.{:03} ms", view.took_us / 1000, view.took_us % 1000);
        match view.reached {
            Some(true) => Check::good(name, format!("{} in {took}", view.detail)),
            Some(false) => {
                let fix = format!(
                    "start the service behind agent {}, or look at `postern-agent status` there",
                    view.agent
                );
                Check::bad(name, view.detail, fix)
            }
            None => {
                let fix = format!("look at its machine: postern-agent doctor (agent {})", view.agent);
                Check::bad(name, view.detail, fix)
            }
        }
    });
    Ok(checks.collect())
}

/// The fingerprints of the roots that agents may have pinned.
pub(super) fn pins(authority: &CaReport) -> Vec<[u8; 32]> {
    let roots =
        authority.certificates.iter().filter(|row| matches!(row.what, Bearer::Root | Bearer::OldRoot));
    roots.filter_map(|row| bytes(&row.key)).collect()
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    digits.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_32_bytes_in_hexadecimal() {
        assert_eq!(bytes(&"0a".repeat(32)), Some([10; 32]));
        for bad in ["", "0a", &"zz".repeat(32), &"0a".repeat(33)] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
