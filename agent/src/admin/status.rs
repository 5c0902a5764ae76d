//! What a running agent says of itself. Times are seconds since the epoch. The shape is in docs/schema/agent-status.schema.json; fields
//! come to it, and none goes or changes its meaning.

use std::time::{Duration, SystemTime};

use postern_base::clock::seconds;
use postern_base::id::{AgentName, ServiceName};
use postern_wire::control::ServiceKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::service::Protocol;
use crate::supervisor::Agent;
use crate::tunnel::view::TunnelView;
use crate::upstream::Upstream;
use crate::verify::Verifier;

/// `postern-agent status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub agent: AgentName,
    /// Of the agents of this name, this one.
    pub instance: String,
    pub trust_domain: String,
    pub started: u64,
    /// It takes nothing new, and ends when it has finished.
    pub draining: bool,
    /// Since when a relay says that this agent is suspended.
    pub suspended: Option<u64>,
    /// `host:port` of each relay in agent.toml.
    pub relays: Vec<String>,
    /// Tunnels wanted: `tunnel.connections` to each relay.
    pub tunnels_wanted: usize,
    pub tunnels: Vec<TunnelStatus>,
    pub certificate: CertificateStatus,
    /// By how many milliseconds this machine's clock is ahead of the relay's; negative where it is behind, none before a relay has said.
    pub clock_offset_ms: Option<i64>,
    pub services: Vec<ServiceStatus>,
    /// Those whose tokens are judged here (`verify`).
    pub issuers: Vec<IssuerStatus>,
    pub requests_in_flight: u64,
    /// Between this agent and its relays.
    pub last_error: Option<Happened>,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Happened {
    pub at: u64,
    pub error: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelStatus {
    pub relay: String,
    /// `quic` or `tcp`.
    pub link: String,
    pub since: u64,
    /// A request over it would succeed.
    pub usable: bool,
    /// Microseconds; none until it is known.
    pub round_trip_us: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateStatus {
    pub not_after: u64,
    /// When it is renewed next; none where certificates are made elsewhere.
    pub next_renewal: Option<u64>,
    /// Renewals that failed since the last one that did not.
    pub failures: u32,
    pub last_error: Option<Happened>,
    /// None where it has not been renewed since the agent started.
    pub last_renewal: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub name: ServiceName,
    /// `http` or `tcp`.
    pub kind: String,
    pub upstreams: Vec<String>,
    /// Whether any of its addresses passes the checks.
    pub healthy: bool,
    /// Whether there are checks (`health`).
    pub checked: bool,
    /// Whether the caller's token is judged here again.
    pub verifies: bool,
    pub last_error: Option<Happened>,
    /// By a relay, which lets this agent not serve it.
    pub refused: Vec<RefusedStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedStatus {
    pub relay: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuerStatus {
    pub name: String,
    pub usable: bool,
    pub error: Option<String>,
}

fn happened(told: Option<(SystemTime, String)>) -> Option<Happened> {
    told.map(|(at, error)| Happened { at: seconds(at), error })
}

pub fn of(agent: &Agent, started: SystemTime) -> Status {
    let (identity, settings, tunnels) = (&agent.identity, &agent.settings, agent.tunnels());
    let renewal = agent.renewal();
    let issuers = agent.verifier.as_ref().map(Verifier::issuers).unwrap_or_default();
    let now = SystemTime::now();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent: identity.name().clone(),
        instance: identity.instance().to_string(),
        trust_domain: identity.domain().to_string(),
        started: seconds(started),
        draining: agent.shutdown.is_draining(),
        suspended: agent.suspended().map(seconds),
        relays: settings.relays.iter().map(ToString::to_string).collect(),
        tunnels_wanted: settings.relays.len() * settings.connections,
        tunnels: tunnels.iter().map(tunnel).collect(),
        certificate: CertificateStatus {
            not_after: seconds(identity.not_after()),
            next_renewal: renewal.next.map(seconds),
            failures: renewal.failures,
            last_error: happened(renewal.last_error),
            last_renewal: renewal.last_success.map(seconds),
        },
        clock_offset_ms: agent.clock_offset(),
        services: agent.health.upstreams().iter().map(|upstream| service(upstream, &tunnels)).collect(),
        issuers: issuers
            .into_iter()
            .map(|issuer| IssuerStatus {
                usable: issuer.is_usable(now),
                name: issuer.name.to_string(),
                error: issuer.error,
            })
            .collect(),
        requests_in_flight: agent.metrics.requests_in_flight(),
        last_error: happened(agent.last_error()),
    }
}

fn tunnel(tunnel: &TunnelView) -> TunnelStatus {
    TunnelStatus {
        relay: tunnel.relay.to_string(),
        link: tunnel.link.to_string(),
        since: seconds(tunnel.since),
        usable: tunnel.usable,
        round_trip_us: tunnel.round_trip.map(microseconds),
    }
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn service(upstream: &Upstream, tunnels: &[TunnelView]) -> ServiceStatus {
    let service = &upstream.service;
    let mut refused: Vec<RefusedStatus> = Vec::new();
    for tunnel in tunnels {
        let ours = tunnel.refused.iter().filter(|refusal| refusal.service == service.name.as_str());
        for refusal in ours {
            // All tunnels to one relay hear the same.
            let said = RefusedStatus { relay: tunnel.relay.to_string(), reason: refusal.reason.clone() };
            if !refused.contains(&said) {
                refused.push(said);
            }
        }
    }
    let kind = match kind(service.protocol) {
        ServiceKind::Http => "http",
        ServiceKind::Tcp => "tcp",
    };
    ServiceStatus {
        name: service.name.clone(),
        kind: kind.to_owned(),
        upstreams: service.addresses.iter().map(ToString::to_string).collect(),
        healthy: upstream.balance.is_healthy(),
        checked: service.health.is_some(),
        verifies: service.verifies,
        last_error: happened(upstream.last_error()),
        refused,
    }
}

fn kind(protocol: Protocol) -> ServiceKind {
    match protocol {
        Protocol::Tcp => ServiceKind::Tcp,
        Protocol::Http1 | Protocol::Http2 => ServiceKind::Http,
    }
}
