//! WebSocket: RFC 6455 for callers on HTTP/1.1, RFC 8441 for those on HTTP/2; the upstreams speak RFC 6455 either way.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Protocol;
use super::place::{NODE, Place, SOCKETS, at_once, values};

const MANY: u32 = 10_000;

/// Runs a job for every pair of stacks that never meets itself.
async fn each(
    place: &mut Place,
    protocol: Protocol,
    job: Value,
    check: impl Fn(&Value) -> Result<()>,
) -> Result<()> {
    let pairs = match protocol {
        Protocol::Http1 => [("caller_ws.mjs", SOCKETS), ("caller_ws.py", NODE)],
        Protocol::Http2 => [("caller_ws.mjs", SOCKETS), ("caller_ws.mjs", NODE)],
    };
    for (script, host) in pairs {
        let (report, _) = place.call(script, protocol, host, job.clone()).await?;
        check(&report).map_err(|error| error.context(format!("{script} to {host}: {report}")))?;
    }
    Ok(())
}

pub(super) async fn talk(place: &mut Place, protocol: Protocol) -> Result<()> {
    each(place, protocol, json!({ "job": "talk" }), |report| {
        ensure!(report["wrong"] == json!([]), "these came back changed: {}", report["wrong"]);
        ensure!(
            report["protocol"] == "chat.v1" && report["noted"]["protocol"] == "chat.v1",
            "the subprotocol"
        );
        ensure!(report["extensions"] == report["noted"]["extensions"], "the extensions");
        ensure!(report["pong"] == "are you there", "the upstream's pong");
        ensure!(report["told"] == "pong from-the-upstream", "the caller's pong");
        let offered = values(&report["noted"]["fields"], "sec-websocket-protocol").join(", ");
        ensure!(offered.replace(' ', "") == "chat.v9,chat.v1", "offered: {offered}");
        Ok(())
    })
    .await
}

pub(super) async fn close_codes(place: &mut Place, protocol: Protocol) -> Result<()> {
    each(place, protocol, json!({ "job": "talk" }), |report| {
        let noted = &report["noted"];
        ensure!(noted["code"] == 4001 && noted["reason"] == "enough, danke", "the upstream heard");
        ensure!(report["closed"] == json!({ "code": 4001, "reason": "enough, danke" }), "the caller heard");
        Ok(())
    })
    .await?;
    each(place, protocol, json!({ "job": "closedByUpstream" }), |report| {
        ensure!(*report == json!({ "code": 4002, "reason": "out of stock" }), "the caller heard");
        Ok(())
    })
    .await?;
    each(place, protocol, json!({ "job": "brokenByUpstream" }), |report| {
        ensure!(report["code"] == 1006, "a broken connection has a close code");
        Ok(())
    })
    .await
}

pub(super) async fn flood(place: &mut Place, protocol: Protocol) -> Result<()> {
    each(place, protocol, json!({ "job": "flood", "count": MANY }), |report| {
        ensure!(report["received"] == MANY && report["disorder"].is_null(), "what the caller got");
        ensure!(report["said"] == format!("flooded {MANY}"), "what the upstream got");
        ensure!(
            report["noted"]["disorder"].is_null() && report["noted"]["code"] == 1000,
            "what the upstream noted"
        );
        Ok(())
    })
    .await
}

pub(super) async fn vanish(place: &mut Place, protocol: Protocol) -> Result<()> {
    each(place, protocol, json!({ "job": "vanish" }), |report| {
        ensure!(report["code"] == 1006, "the upstream was told of a close");
        at_once("the end", &report["after"])
    })
    .await
}

pub(super) async fn refused(place: &mut Place, protocol: Protocol) -> Result<()> {
    each(place, protocol, json!({ "job": "refused" }), |report| {
        ensure!(report["status"] == 403 && report["text"] == "no.\n", "the answer");
        ensure!(values(&report["fields"], "x-reason") == ["closed shop"], "its fields");
        Ok(())
    })
    .await
}
