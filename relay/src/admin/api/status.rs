//! What a running relay holds, for `status`: its tunnels, services, issuers, audit log and certificate authority, and what is missing. Read
//! from memory and from two directory entries; changes nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_base::audit::Room;
use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_base::telemetry::recent::{self, Warning};
use postern_gate::policy::ServiceKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answer, seconds, value};
use crate::enroll::{AgentRow, CaReport};
use crate::relay::Relay;
use crate::settings::Service;
use crate::tunnel::registry::TunnelInfo;

/// What runs. Times are seconds since the epoch.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) url: String,
    /// The file that is in force.
    pub(crate) config: PathBuf,
    pub(crate) started: u64,
    /// Whether `/readyz` says yes.
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) work: Work,
    pub(crate) tunnels: Vec<TunnelView>,
    pub(crate) services: Vec<ServiceView>,
    pub(crate) issuers: Vec<IssuerView>,
    pub(crate) audit: AuditView,
    /// The one that callers see.
    pub(crate) certificate: Option<CertificateView>,
    /// As `ca show --json` prints it.
    pub(crate) authority: CaReport,
    /// Locks in force.
    pub(crate) locks: usize,
    /// The newest warning or error of the log.
    pub(crate) last_error: Option<Warning>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CertificateView {
    pub(crate) not_after: u64,
}

impl CertificateView {
    fn new(not_after: u64) -> Self {
        Self { not_after }
    }
}

/// What is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Work {
    pub(crate) requests: u64,
    /// `WebSocket`s and TCP connections, which are among the requests.
    pub(crate) streams: usize,
    /// Callers' connections, those of idle callers too.
    pub(crate) connections: u64,
    pub(crate) tunnels: usize,
}

/// A tunnel as operators see it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TunnelView {
    pub(crate) agent: AgentName,
    pub(crate) instance: String,
    pub(crate) address: SocketAddr,
    /// `quic` or `tcp`.
    pub(crate) link: String,
    /// Microseconds; `quic` alone says it.
    pub(crate) round_trip_us: Option<u64>,
    pub(crate) since: u64,
    /// The newest of its instance.
    pub(crate) certificate: Option<CertificateView>,
    /// It works both ways, and its agent has not said goodbye.
    pub(crate) usable: bool,
    /// Its heartbeat is overdue: others carry requests where there are any.
    pub(crate) late: bool,
    /// Requests and streams on it.
    pub(crate) load: usize,
    pub(crate) services: Vec<ServiceName>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ServiceView {
    pub(crate) name: ServiceName,
    /// `http` or `tcp`.
    pub(crate) kind: String,
    /// Whether a request would find a tunnel.
    pub(crate) up: bool,
    /// Since when none does; none where none ever did.
    pub(crate) down_since: Option<u64>,
    /// The agents that relay.toml names for it.
    pub(crate) agents: Vec<ServiceAgent>,
}

/// One agent of a service.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ServiceAgent {
    pub(crate) agent: AgentName,
    /// What keeps it from serving; none where it serves.
    pub(crate) missing: Option<Missing>,
}

/// What keeps an agent from serving a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Missing {
    /// No instance of it is enrolled.
    NotEnrolled,
    /// It has no usable tunnel.
    NoTunnel,
    /// It does not offer the service: its file has none of that name and kind, or the upstream fails its health checks, or its invite did
    /// not name it.
    NotOffered,
    /// An operator locked it.
    Locked,
    /// An operator suspended it, or the relay did.
    Suspended,
}

impl Missing {
    /// The problem, and what to do about it.
    pub(crate) fn told(self, agent: &AgentName, service: &ServiceName) -> (String, String) {
        match self {
            Self::NotEnrolled => (
                format!("agent {agent} is not enrolled"),
                format!("postern-relay agent invite {agent}, and join with that beside the service"),
            ),
            Self::NoTunnel => (
                format!("agent {agent} has no tunnel"),
                "start it (postern-agent run), or see what it says: postern-agent doctor".to_owned(),
            ),
            Self::NotOffered => (
                format!("agent {agent} does not offer it"),
                format!(
                    "see on its machine whether agent.toml has [services.{service}], and whether its upstream is healthy: postern-agent status"
                ),
            ),
            Self::Locked => {
                (format!("agent {agent} is locked"), "postern-relay lock ls, and lock rm".to_owned())
            }
            Self::Suspended => (
                format!("agent {agent} is suspended"),
                format!("see why with postern-relay agent ls, then postern-relay agent resume {agent}"),
            ),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct IssuerView {
    pub(crate) name: IssuerName,
    /// Whether its tokens can be judged now.
    pub(crate) usable: bool,
    /// Keys that are fit; none where the issuer is asked about each token.
    pub(crate) keys: Option<usize>,
    pub(crate) fetched: Option<u64>,
    /// Until when the keys serve if the issuer stays silent.
    pub(crate) usable_until: Option<u64>,
    /// Why the last fetch or question failed.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AuditView {
    /// Whether lines reach their file.
    pub(crate) healthy: bool,
    /// `enough`, `reserve` (the disk is full, the reserve is being used) or `gone`.
    pub(crate) room: String,
    /// Lines lost for want of room since the start.
    pub(crate) lost: u64,
    /// How many lines the log has, ever.
    pub(crate) lines: Option<u64>,
}

pub(super) fn status(relay: &Relay) -> Answer {
    let snapshot = relay.snapshot();
    let now = SystemTime::now();
    let rows = relay.enrollment().agents();
    let tunnels = relay.tunnels();
    let services = snapshot.settings.services.values().map(|s| service(relay, s, &rows, &tunnels)).collect();
    let issuers = snapshot.issuers.health().into_iter().map(|health| IssuerView {
        usable: health.is_usable(now),
        name: health.name,
        keys: health.has_keys.then_some(health.keys),
        fetched: health.fetched.map(seconds),
        usable_until: health.usable_until.map(seconds),
        error: health.error,
    });
    let audit = relay.audit();
    value(&Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: snapshot.settings.url.to_string(),
        config: relay.path().to_owned(),
        started: seconds(relay.started()),
        ready: relay.is_ready(),
        draining: relay.shutdown().is_draining(),
        work: work(relay),
        services,
        issuers: issuers.collect(),
        audit: AuditView {
            healthy: audit.is_healthy(),
            room: match audit.room() {
                Room::Enough => "enough",
                Room::Reserve => "reserve",
                Room::Gone => "gone",
            }
            .to_owned(),
            lost: audit.lost(),
            lines: audit.head().map(|(sequence, _)| sequence),
        },
        certificate: relay.certificate().ends().map(CertificateView::new),
        authority: relay.enrollment().ca_report(now),
        locks: relay.enrollment().locks(now).len(),
        last_error: recent::last(),
        tunnels: views(tunnels, &rows),
    })
}

/// What is under way now.
pub(super) fn work(relay: &Relay) -> Work {
    let count = |gauge: &prometheus_client::metrics::gauge::Gauge| u64::try_from(gauge.get()).unwrap_or(0);
    Work {
        requests: count(&relay.metrics().in_flight),
        streams: relay.session().streams().len(),
        connections: count(&relay.metrics().connections),
        tunnels: relay.tunnels().len(),
    }
}

fn service(relay: &Relay, service: &Service, rows: &[AgentRow], tunnels: &[TunnelInfo]) -> ServiceView {
    let serving = relay.registry().agents_of(&service.name);
    let missing = |agent: &AgentName| {
        let mut own = rows.iter().filter(|row| row.name == *agent).peekable();
        let is_enrolled = own.peek().is_some();
        let is_suspended = is_enrolled && own.all(|row| row.suspended.is_some());
        if relay.session().refuses_agent(agent).is_some() {
            Some(Missing::Locked)
        } else if serving.contains(agent) {
            None
        } else if tunnels.iter().any(|tunnel| tunnel.agent == *agent && tunnel.usable) {
            Some(Missing::NotOffered)
        } else if is_suspended {
            Some(Missing::Suspended)
        } else if is_enrolled {
            Some(Missing::NoTunnel)
        } else {
            Some(Missing::NotEnrolled)
        }
    };
    let agents: Vec<_> = service
        .agents
        .iter()
        .map(|agent| ServiceAgent { agent: agent.clone(), missing: missing(agent) })
        .collect();
    ServiceView {
        name: service.name.clone(),
        kind: match service.kind {
            ServiceKind::Http => "http",
            ServiceKind::Tcp => "tcp",
        }
        .to_owned(),
        up: agents.iter().any(|agent| agent.missing.is_none()),
        down_since: relay.registry().down_since(&service.name),
        agents,
    }
}

/// The tunnels, each with the end of its instance's certificate.
pub(crate) fn views(tunnels: Vec<TunnelInfo>, rows: &[AgentRow]) -> Vec<TunnelView> {
    let ends: HashMap<&str, u64> =
        rows.iter().map(|row| (row.instance.as_str(), row.certificate.not_after)).collect();
    let mut views: Vec<_> = tunnels
        .into_iter()
        .map(|tunnel| TunnelView {
            certificate: ends.get(tunnel.instance.as_str()).copied().map(CertificateView::new),
            agent: tunnel.agent,
            instance: tunnel.instance.to_string(),
            address: tunnel.address,
            link: tunnel.link.to_string(),
            round_trip_us: tunnel.round_trip.map(microseconds),
            since: seconds(tunnel.since),
            usable: tunnel.usable,
            late: tunnel.late,
            load: tunnel.load,
            services: tunnel.services,
        })
        .collect();
    views.sort_by(|a, b| (&a.agent, &a.instance, a.since).cmp(&(&b.agent, &b.instance, b.since)));
    views
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
