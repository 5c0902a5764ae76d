//! A well agent and one with everything that can be wrong, as they are seen.

use super::*;
use crate::admin::status::{IssuerStatus, RefusedStatus, ServiceStatus, TunnelStatus};

const NOW: u64 = 1_769_868_300;

fn service(name: &str, upstreams: &[&str]) -> ServiceStatus {
    ServiceStatus {
        name: name.parse().unwrap(),
        kind: "http".to_owned(),
        upstreams: upstreams.iter().map(ToString::to_string).collect(),
        healthy: true,
        checked: true,
        verifies: false,
        last_error: None,
        refused: Vec::new(),
    }
}

fn status() -> Status {
    let tunnel = TunnelStatus {
        relay: "relay.example.com:443".to_owned(),
        link: "quic".to_owned(),
        since: NOW - 7300,
        usable: true,
        round_trip_us: Some(1_234),
    };
    Status {
        version: "1.2.3".to_owned(),
        agent: "dc1".parse().unwrap(),
        instance: "01jc8x".to_owned(),
        trust_domain: "example.com".to_owned(),
        started: NOW - 90_000,
        draining: false,
        suspended: None,
        relays: vec!["relay.example.com:443".to_owned()],
        tunnels_wanted: 2,
        tunnels: vec![
            tunnel.clone(),
            TunnelStatus {
                link: "tcp".to_owned(),
                since: NOW - 3,
                usable: false,
                round_trip_us: None,
                ..tunnel
            },
        ],
        certificate: CertificateStatus {
            not_after: NOW + 50_000,
            next_renewal: Some(NOW + 7000),
            failures: 0,
            last_error: None,
            last_renewal: Some(NOW - 20),
        },
        clock_offset_ms: Some(-240),
        services: vec![
            service("billing", &["10.0.5.11:8443", "10.0.5.12:8443"]),
            service("wiki", &["127.0.0.1:8080"]),
        ],
        issuers: Vec::new(),
        requests_in_flight: 1,
        last_error: None,
    }
}

fn shown(status: &Status) -> String {
    let text = anstream::adapter::strip_str(&super::shown(status, NOW).join("\n")).to_string();
    // As a terminal has it; in a file it is on whole lines.
    let text = console::fold::folded(&text, 80);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    text
}

#[test]
fn a_well_agent_reads_like_this() {
    let expected = "\
agent dc1, instance 01jc8x
  version 1.2.3, up 25 h, 1 of 2 tunnels usable, 1 request under way

RELAY                  LINK  RTT     AGE  STATE
relay.example.com:443  quic  1.2 ms  2 h  usable
relay.example.com:443  tcp   -       3 s  not usable

certificate  until 2026-02-01 03:58Z, for 13 h
  renewed next 2026-01-31 16:01Z, in 116 min
clock        0.2 s behind the relay's

SERVICE  KIND  HEALTH   UPSTREAM
billing  http  healthy  10.0.5.11:8443 10.0.5.12:8443
wiki     http  healthy  127.0.0.1:8080";
    assert_eq!(shown(&status()), expected);
}

#[test]
fn everything_that_is_wrong_is_said_in_80_columns() {
    let mut ill = status();
    let long =
        "connection refused: start the service, or correct its upstream in agent.toml, and look again\x1b[2J";
    let what = Some(Happened { at: NOW - 125, error: long.to_owned() });
    ill.draining = true;
    ill.suspended = Some(NOW - 60);
    ill.tunnels.clear();
    ill.certificate = CertificateStatus {
        not_after: NOW - 1,
        next_renewal: None,
        failures: 3,
        last_error: what.clone(),
        last_renewal: None,
    };
    ill.clock_offset_ms = Some(3_600_000);
    let name = "a-service-with-the-longest-name-that-anybody-would-give-to-one";
    ill.services = vec![service(name, &["a-host-with-a-very-long-name.internal.example.com:8443"; 12])];
    ill.services[0].healthy = false;
    ill.services[0].last_error = what.clone();
    ill.services[0].refused = vec![RefusedStatus {
        relay: "relay.example.com:443".to_owned(),
        reason: "not assigned to agent dc1".to_owned(),
    }];
    ill.issuers = vec![IssuerStatus { name: "corp".to_owned(), usable: false, error: None }];
    ill.last_error = what;
    let text = shown(&ill);
    for part in [
        "! draining",
        "✗ suspended for 60 s",
        "postern-relay agent resume dc1",
        "✗ no tunnel to relay.example.com:443",
        "✗ certificate ended 2026-01-31 14:04Z",
        "made elsewhere",
        "! 3 failed renewals",
        "! last error, 2 min ago: connection refused",
        "✗ clock 3600.0 s ahead of the relay's: let it keep time (NTP)",
        "a-service-with-the-longest-name…  http  down    a-host-with-a-very-long-name.in…",
        "  relay.example.com:443 refuses it: not assigned to agent dc1",
        "✗ issuer corp: its keys were never fetched",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
}
