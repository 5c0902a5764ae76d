//! What the relay counts, in Prometheus' text format, and the small HTTP server for `/metrics`, `/healthz` and `/readyz`.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::audit::Audit;
use crate::enroll::CaReport;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The service, or `-` where none was found.
    pub service: String,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CaLabels {
    certificate: &'static str,
}

/// Every metric of the relay. Cheap to share; counting takes no lock but the family's read lock.
#[derive(Debug)]
pub struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub refusals: Family<ReasonLabels, Counter>,
    pub duration: Histogram,
    pub in_flight: Gauge,
    pub connections: Gauge,
    pub tunnels: Gauge,
    connections_refused: Family<ReasonLabels, Counter>,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub joins: Family<ReasonLabels, Counter>,
    pub renewals: Family<ReasonLabels, Counter>,
    pub reloads: Family<ReasonLabels, Counter>,
    ca_ends: Family<CaLabels, Gauge>,
    audit_dropped: Counter<u64, AtomicU64>,
    audit_room: Gauge,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("postern_relay");
        let requests = Family::default();
        registry.register("requests", "Finished requests by service and status", requests.clone());
        let refusals = Family::default();
        registry.register("refusals", "Requests that the relay refused, by reason", refusals.clone());
        // 0.25 ms to 8 s: from a local hit to a slow legacy report.
        let duration = Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        let text = "From a request's head to the end of its answer";
        registry.register_with_unit("request_duration", text, Unit::Seconds, duration.clone());
        let in_flight = Gauge::default();
        registry.register("requests_in_flight", "Requests being served", in_flight.clone());
        let connections = Gauge::default();
        registry.register("connections", "Callers' connections", connections.clone());
        let tunnels = Gauge::default();
        registry.register("tunnels", "Tunnels that agents hold", tunnels.clone());
        let connections_refused = Family::default();
        let text = "Connections of callers and agents that ended before their handshake was done, by reason";
        registry.register("connections_refused", text, connections_refused.clone());
        let bytes_in: Counter<u64, AtomicU64> = Counter::default();
        registry.register_with_unit("request_body", "Body bytes from callers", Unit::Bytes, bytes_in.clone());
        let bytes_out: Counter<u64, AtomicU64> = Counter::default();
        registry.register_with_unit("response_body", "Body bytes to callers", Unit::Bytes, bytes_out.clone());
        let joins = Family::default();
        registry.register("joins", "Enrolments and recoveries, by outcome", joins.clone());
        let renewals = Family::default();
        registry.register("renewals", "Renewals of agents' certificates, by outcome", renewals.clone());
        let reloads = Family::default();
        registry.register("reloads", "Configuration reloads, by outcome", reloads.clone());
        let ca_ends = Family::default();
        let text = "When a certificate of the agents' authority ends, since 1970";
        registry.register_with_unit("ca_end", text, Unit::Seconds, ca_ends.clone());
        let audit_dropped: Counter<u64, AtomicU64> = Counter::default();
        let text = "Audit lines that found the log full or failing; the log tells their number";
        registry.register("audit_dropped", text, audit_dropped.clone());
        let audit_room = Gauge::default();
        let text = "The audit log's disk: 0 it has room, 1 it is full and the reserve is being used, 2 nothing more fits";
        registry.register("audit_disk", text, audit_room.clone());
        Self {
            requests,
            refusals,
            duration,
            in_flight,
            connections,
            tunnels,
            connections_refused,
            bytes_in,
            bytes_out,
            joins,
            renewals,
            reloads,
            ca_ends,
            audit_dropped,
            audit_room,
            registry,
        }
    }
}

impl Metrics {
    /// A connection was turned away before its handshake was done: over a `limit`, a bad `handshake` or `proxy` header, too many `agents`.
    pub fn refused(&self, reason: &'static str) {
        self.connections_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// What the agents' authority is made of now.
    pub fn authority(&self, report: &CaReport) {
        self.ca_ends.clear();
        for row in &report.certificates {
            let ends = self.ca_ends.get_or_create(&CaLabels { certificate: row.what.label() });
            // Of several roots in a bundle the first to end.
            let end = i64::try_from(row.not_after).unwrap_or(i64::MAX);
            let first = if ends.get() == 0 { end } else { end.min(ends.get()) };
            ends.set(first);
        }
    }

    /// All metrics in the text format.
    pub fn text(&self, audit: &Audit) -> String {
        // Its writer counts by itself.
        self.audit_dropped.inner().store(audit.lost(), Ordering::Relaxed);
        self.audit_room.set(audit.room() as i64);
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
