//! One relay with something of everything, as it is seen: kept under tests/golden/relay.

use std::path::Path;

use serde_json::json;

use super::*;

const NOW: u64 = 1_769_868_300;

/// A relay with one of everything that can be shown, as `status --json` has it.
fn status() -> Status {
    let tunnel = |agent: &str, link: &str, rtt: Option<u64>, address: &str, usable: bool, late: bool| {
        json!({
            "agent": agent, "instance": "01jc8abcdefghjkmnpqrstvwxy", "address": address, "link": link,
            "round_trip_us": rtt, "since": NOW - 300_000, "certificate": { "not_after": NOW + 80_000 },
            "usable": usable, "late": late, "load": 12, "services": ["wiki"],
        })
    };
    serde_json::from_value(json!({
        "version": "1.2.3", "url": "https://relay.example.com", "config": "/etc/postern/relay.toml",
        "started": NOW - 300_000, "ready": true, "draining": false,
        "work": { "requests": 12, "streams": 1, "connections": 40, "tunnels": 4 },
        "tunnels": [
            tunnel("dc1", "quic", Some(1_234), "203.0.113.7:4433", true, false),
            tunnel("dc1", "quic", Some(48_900), "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:1", true, true),
            tunnel("an-agent-with-quite-a-long-name-in-some-far-away-office", "tcp", None, "203.0.113.9:1", false, false),
        ],
        "services": [
            { "name": "wiki", "kind": "http", "up": true, "down_since": null,
              "agents": [{ "agent": "dc1", "missing": null }, { "agent": "dc2", "missing": "no-tunnel" }] },
            { "name": "billing", "kind": "http", "up": false, "down_since": NOW - 90,
              "agents": [{ "agent": "dc2", "missing": "not-offered" }] },
            { "name": "ledger-db", "kind": "tcp", "up": false, "down_since": null,
              "agents": [{ "agent": "dc9", "missing": "not-enrolled" }, { "agent": "dc3", "missing": "locked" },
                         { "agent": "dc4", "missing": "suspended" }] },
        ],
        "issuers": [
            { "name": "corp", "usable": true, "keys": 3, "fetched": NOW - 40, "usable_until": NOW + 86_360, "error": null },
            { "name": "partners", "usable": false, "keys": null, "fetched": null, "usable_until": null,
              "error": "https://partners.example.net/.well-known/openid-configuration: no answer within 5s" },
        ],
        "audit": { "healthy": true, "room": "reserve", "lost": 3, "lines": 123_456 },
        "certificate": { "not_after": NOW + 5 * 86_400 },
        "authority": {
            "source": "ours", "epoch": 2, "certificates": [], "overlap": false,
            "root_key": "/var/lib/postern/ca/root.key", "instances": 2, "behind": [],
            "warnings": ["the root's key lies beside the relay (/var/lib/postern/ca/root.key): move it to a safe place"],
        },
        "locks": 2,
        "last_error": { "time": NOW - 7_300, "is_error": false, "text": "tunnel refused address=203.0.113.9" },
    }))
    .unwrap()
}

#[test]
fn what_is_seen_fits_80_columns_in_colour_and_without() {
    let coloured = shown(&status(), NOW).join("\n") + "\n";
    let plain = anstream::adapter::strip_str(&coloured).to_string();
    for (name, seen) in [("status.txt", &plain), ("status-in-colour.txt", &coloured)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/relay").join(name);
        if std::env::var_os("POSTERN_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, seen).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(*seen, kept, "run the test once with POSTERN_BLESS=1 and look at what changed");
    }
    // As a terminal has it; what is kept in a file is on whole lines.
    let folded = console::fold::folded(&plain, 80);
    let wide: Vec<_> = folded.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:?}");
}

#[test]
fn an_empty_relay_says_what_comes_next() {
    let empty = Status { tunnels: Vec::new(), services: Vec::new(), ready: false, ..status() };
    let seen = shown(&empty, NOW).join("\n");
    for next in ["not ready", "agent ls", "service add"] {
        assert!(seen.contains(next), "no {next} in {seen}");
    }
}
