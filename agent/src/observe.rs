//! What the agent counts, and what it says of itself at `/metrics` and `/readyz`: the only address an agent ever listens on.

use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::{Request, StatusCode};
use postern_base::observe::Observed;
use postern_wire::head::Stage;
use postern_wire::link::LinkKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::supervisor::Agent;
use crate::upstream::{Upstream, connect};

/// An upstream that does not take a connection within this time would not serve a request either.
const PROBE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkLabels {
    link: &'static str,
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    tunnels: Family<LinkLabels, Gauge>,
    pub reconnects: Counter,
    pub renewal_failures: Counter,
    requests: Counter,
    in_flight: Gauge,
    failures: Family<StageLabels, Counter>,
    informational: Counter,
    certificate: Gauge<f64, AtomicU64>,
    clock: Gauge<f64, AtomicU64>,
    registry: Registry,
}

/// A request while it is served.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("postern_agent");
        let tunnels = Family::default();
        registry.register("tunnels", "Tunnels over which a request would succeed, by link", tunnels.clone());
        let reconnects = Counter::default();
        registry.register("reconnects", "Tunnels that ended or could not be opened", reconnects.clone());
        let renewal_failures = Counter::default();
        registry.register(
            "renewal_failures",
            "Renewals and recoveries of the certificate that failed",
            renewal_failures.clone(),
        );
        let requests = Counter::default();
        registry.register("requests", "Requests from relays", requests.clone());
        let in_flight = Gauge::default();
        registry.register("requests_in_flight", "Requests being served", in_flight.clone());
        let failures = Family::default();
        registry.register(
            "failures",
            "Requests without an answer from the upstream, by stage",
            failures.clone(),
        );
        let informational = Counter::default();
        registry.register(
            "informational",
            "1xx answers of upstreams, which go no further",
            informational.clone(),
        );
        let certificate = Gauge::default();
        registry.register(
            "certificate_seconds_left",
            "Seconds until the certificate ends; negative from then on",
            certificate.clone(),
        );
        let clock = Gauge::default();
        registry.register(
            "clock_offset_seconds",
            "How far this machine's clock is ahead of the relay's; negative where it is behind",
            clock.clone(),
        );
        Self {
            tunnels,
            reconnects,
            renewal_failures,
            requests,
            in_flight,
            failures,
            informational,
            certificate,
            clock,
            registry,
        }
    }
}

impl Metrics {
    pub fn request(&self) -> Counted {
        self.requests.inc();
        self.in_flight.inc();
        Counted(self.in_flight.clone())
    }

    pub fn failed(&self, stage: Stage) {
        self.failures.get_or_create(&StageLabels { stage: stage_name(stage) }).inc();
    }

    /// Counts what comes before the answer of an HTTP/1.1 upstream; 100 answers nothing that we ask.
    pub fn count_informational<B>(&self, request: &mut Request<B>) {
        let informational = self.informational.clone();
        hyper::ext::on_informational(request, move |early| {
            if early.status() != StatusCode::CONTINUE {
                informational.inc();
            }
        });
    }

    pub fn tunnels(&self, link: LinkKind) -> Gauge {
        let link = match link {
            LinkKind::Quic => "quic",
            LinkKind::Tcp => "tcp",
        };
        self.tunnels.get_or_create_owned(&LinkLabels { link })
    }

    /// Requests that are being served now.
    pub fn requests_in_flight(&self) -> u64 {
        u64::try_from(self.in_flight.get()).unwrap_or(0)
    }

    /// What is looked up when somebody asks.
    fn look(&self, agent: &Agent) {
        let (end, now) = (agent.identity.not_after(), SystemTime::now());
        let late = || now.duration_since(end).map_or(0.0, |late| -late.as_secs_f64());
        self.certificate.set(end.duration_since(now).map_or_else(|_| late(), |left| left.as_secs_f64()));
        // Before a relay has said, it counts as right.
        let offset = agent.clock_offset().unwrap_or(0);
        let by = Duration::from_millis(offset.unsigned_abs()).as_secs_f64();
        self.clock.set(if offset < 0 { -by } else { by });
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// In metrics and audit lines.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Agent => "agent",
        Stage::Verify => "verify",
        Stage::Connect => "connect",
        Stage::Tls => "tls",
        Stage::Upstream => "upstream",
        Stage::Timeout => "timeout",
    }
}

impl Observed for Agent {
    fn metrics(&self) -> String {
        self.metrics.look(self);
        self.metrics.text()
    }

    /// No tunnel that was proved both ways, or an upstream that takes no connection.
    async fn obstacles(&self) -> String {
        let mut text = String::new();
        if self.shutdown.is_draining() {
            text.push_str("draining\n");
        }
        if self.usable_tunnels() == 0 {
            text.push_str("no tunnel to a relay\n");
        }
        let probes = join_all(self.health.upstreams().iter().map(|upstream| probe(upstream))).await;
        for (service, reason) in probes.into_iter().flatten() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "service {service}: {reason}");
        }
        text
    }
}

/// Any address will do; where there are checks, they know better.
async fn probe(upstream: &Upstream) -> Option<(String, String)> {
    let service = &upstream.service;
    let mut reason = "its health checks fail".to_owned();
    if upstream.balance.is_healthy() {
        let probes = service.addresses.iter().map(|address| connect::probe(address, PROBE));
        let mut failed = join_all(probes).await.into_iter();
        reason = failed.try_fold(String::new(), |_, probed| probed.err())?;
    }
    Some((service.name.to_string(), reason))
}
