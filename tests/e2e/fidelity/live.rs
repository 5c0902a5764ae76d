//! What happens while a request runs: everything passes at once, both ways; who stops is noticed; who is slow holds the other back.
//! All times are of one clock, read at the ends.

use anyhow::{Result, ensure};
use postern_tests::stand::say;
use serde_json::{Value, json};

use super::Protocol;
use super::place::{NODE, NODE_H2C, Place, all_at_once, at_once};

const HOSTS: [&str; 2] = [NODE, NODE_H2C];
const MIB: u64 = 1 << 20;
/// What is sent to who does not read, and how much of it the sender may get rid of: windows, and what kernels hold on three hops.
const SENT: u64 = 64 * MIB;
const SWALLOWED: u64 = 32 * MIB;
/// How much the peak of a program may rise meanwhile.
const GROWTH: u64 = 24 * MIB;

async fn call(place: &mut Place, protocol: Protocol, host: &str, job: Value) -> Result<Value> {
    Ok(place.call("caller.mjs", protocol, host, job).await?.0)
}

pub(super) async fn events(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let job = json!({ "job": "events", "path": "/events?events=20&gap=25" });
        let report = call(place, protocol, host, job).await?;
        let kind = super::place::values(&report["fields"], "content-type");
        ensure!(report["status"] == 200 && kind == ["text/event-stream"], "{report}");
        ensure!(report["error"].is_null() && report["rest"] == "", "{report}");
        all_at_once("events", &report["late"], 20)?;
        // From the first packet of the connection: TLS and the way there and back.
        ensure!(report["head"].as_f64().is_some_and(|ms| ms < 1000.0), "{report}");
    }
    Ok(())
}

pub(super) async fn duplex(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let report = call(place, protocol, host, json!({ "job": "duplex", "pieces": 20 })).await?;
        ensure!(report["status"] == 200 && report["error"].is_null(), "{report}");
        all_at_once("pieces", &report["trips"], 20)?;
        at_once("the end", &report["end"])?;
        let whole: String = (0..20).map(|i| format!("piece {i};")).chain([".".to_owned()]).collect();
        ensure!(report["text"] == whole, "{report}");
    }
    Ok(())
}

pub(super) async fn early(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let report = call(place, protocol, host, json!({ "job": "early" })).await?;
        ensure!(report["status"] == 200 && report["text"] == "enough", "{host}: {report}");
        ensure!(report["error"].is_null() && report["unfinished"] == true, "{host}: {report}");
    }
    Ok(())
}

pub(super) async fn half_closed(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let report = call(place, protocol, host, json!({ "job": "after" })).await?;
        ensure!(report["text"] == "0123456789" && report["error"].is_null(), "{host}: {report}");
        if protocol == Protocol::Http1 {
            for path in ["/hold", "/drip"] {
                let report = call(place, protocol, host, json!({ "job": "half", "path": path })).await?;
                at_once(path, &report["after"])?;
            }
        }
    }
    Ok(())
}

pub(super) async fn aborted(place: &mut Place, protocol: Protocol) -> Result<()> {
    let mut ways = Vec::new();
    for host in HOSTS {
        for path in ["/hold", "/drip", "/swallow"] {
            // Over HTTP/1.1 a request is left by closing its connection: there is but one way.
            let wholes = if protocol == Protocol::Http1 { &[false][..] } else { &[false, true] };
            for whole in wholes {
                let (id, base) = (place.case(), place.at(host));
                ways.push(json!({ "path": path, "whole": whole, "id": id, "base": base }));
            }
        }
    }
    let report = call(place, protocol, NODE, json!({ "job": "aborts", "ways": ways })).await?;
    all_at_once("cancellations", &report["after"], ways.len())
}

pub(super) async fn broken_off(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let job = json!({ "job": "plain", "method": "GET", "path": "/broken" });
        let report = call(place, protocol, host, job).await?;
        ensure!(!report["error"].is_null(), "{host}: it looks whole: {report:.300}");
        let url = format!("{}/broken", place.at(host));
        let output = place.curl(protocol, "", &["-o", "/dev/null", &url]).await?;
        ensure!(output.code != 0, "{host}: it looks whole to curl");
    }
    Ok(())
}

pub(super) async fn slow_readers(place: &mut Place, protocol: Protocol) -> Result<()> {
    // Once unmeasured, so that what every stream costs is not taken for growth.
    for job in ["slowReader", "slowUpstream"] {
        call(place, protocol, NODE, json!({ "job": job, "bytes": 16 * MIB })).await?;
    }
    let before = place.peaks()?;
    for host in HOSTS {
        for job in ["slowReader", "slowUpstream"] {
            let report = call(place, protocol, host, json!({ "job": job, "bytes": SENT })).await?;
            ensure!(report["status"] == 200 && report["error"].is_null(), "{host} {job}: {report}");
            say(&format!(
                "{host} {job}: held back after {} KiB",
                report["accepted"].as_u64().unwrap_or_default() / 1024
            ));
            ensure!(report["accepted"].as_u64().is_some_and(|n| n < SWALLOWED), "{host} {job}: {report}");
            for key in ["bytes", "sha256"] {
                ensure!(report[key] == report["expected"][key], "{host} {job}: {report}");
            }
        }
    }
    let after = place.peaks()?;
    for (who, (before, after)) in ["relay", "agent"].into_iter().zip(before.into_iter().zip(after)) {
        say(&format!("{who}: peak resident memory {} MiB, then {} MiB", before / MIB, after / MIB));
        ensure!(after < before + GROWTH, "the {who} grew from {} to {} MiB", before / MIB, after / MIB);
    }
    Ok(())
}

pub(super) async fn slow_writers(place: &mut Place, protocol: Protocol) -> Result<()> {
    for host in HOSTS {
        let report =
            call(place, protocol, host, json!({ "job": "trickle", "pieces": 20, "gap": 25 })).await?;
        all_at_once("pieces", &report["late"], 20)?;
        let words: Vec<String> = (0..20).map(|i| format!("[{i}]")).collect();
        ensure!(report["words"] == json!(words), "{report}");
    }
    Ok(())
}
