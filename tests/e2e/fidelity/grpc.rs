//! gRPC: the caller's channel is HTTP/2 over TLS to the relay, with the service's host as its authority; the upstream has no TLS.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Protocol;
use super::place::{GRPC, Place, all_at_once, at_once, values};

/// gRPC's own numbers.
const UNIMPLEMENTED: u32 = 12;
const UNAUTHENTICATED: u32 = 16;
const DEADLINE_EXCEEDED: u32 = 4;

/// Runs a job with either caller.
async fn each(place: &mut Place, job: &str, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    for script in ["caller_grpc.py", "caller_grpc.mjs"] {
        let (report, _) = place.call(script, Protocol::Http2, GRPC, json!({ "jobs": [job] })).await?;
        let report = report.get(job).context("no report")?;
        check(report).with_context(|| format!("{script}: {report}"))?;
    }
    Ok(())
}

/// The binary value of a metadata entry.
fn binary<'a>(metadata: &'a Value, name: &str) -> Option<&'a Value> {
    metadata.as_array()?.iter().find(|pair| pair[0] == name).map(|pair| &pair[1])
}

pub(super) async fn unary(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "unary", |report| {
        ensure!(report["same"] == true && report["empty"] == true && report["code"] == 0, "the messages");
        let before = values(&report["initial"], "x-before").join(", ");
        ensure!(before == "first, second", "the metadata before: {before}");
        ensure!(values(&report["trailing"], "x-after") == ["last"], "the metadata after");
        ensure!(
            binary(&report["trailing"], "x-after-bin") == Some(&json!([0, 1, 255])),
            "the binary metadata"
        );
        let seen = &report["seen"];
        ensure!(values(&seen["metadata"], "x-many") == ["one", "two"], "what the upstream saw");
        ensure!(seen["binary"] == json!([0, 1, 255]), "the binary metadata that the upstream saw");
        Ok(())
    })
    .await
}

pub(super) async fn server_streaming(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "down", |report| {
        ensure!(report["code"] == 0, "the status");
        all_at_once("messages", &report["late"], 20)
    })
    .await
}

pub(super) async fn client_streaming(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "up", |report| {
        ensure!(report["answer"] == "1000 1000000", "the upstream counted");
        Ok(())
    })
    .await
}

pub(super) async fn both(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "both", |report| {
        let words: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        ensure!(report["words"] == json!(words) && report["code"] == 0, "the messages");
        ensure!(values(&report["trailing"], "x-after") == ["the end"], "the metadata after");
        all_at_once("messages", &report["trips"], 20)
    })
    .await
}

pub(super) async fn status(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "errors", |report| {
        let found = report["found"].as_array().context("no list")?;
        ensure!(found.len() == 17, "{} answers", found.len());
        for (code, error) in (1u32..=16).zip(found) {
            ensure!(error["code"] == code, "code {code}: {error}");
            ensure!(error["details"] == "nicht möglich: 100% ausverkauft", "code {code}: {error}");
            ensure!(values(&error["trailing"], "x-why") == ["because"], "code {code}: {error}");
        }
        ensure!(found[16]["code"] == UNIMPLEMENTED, "no such method: {}", found[16]);
        Ok(())
    })
    .await?;
    // A relay's refusal is an HTTP answer; gRPC's own mapping makes the code of its status (401).
    each(place, "denied", |report| {
        ensure!(report["code"] == UNAUTHENTICATED, "without a token");
        Ok(())
    })
    .await
}

pub(super) async fn deadline(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "deadline", |report| {
        ensure!(report["code"] == DEADLINE_EXCEEDED, "the status");
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let (started, seen) = (number(&report["started"]), &report["seen"]);
        // Seconds; none at all would be more than a year.
        ensure!((0.1..=0.45).contains(&number(&seen["remaining"])), "the deadline that the upstream saw");
        let late = number(&seen["cancelled"]) - started - 400.0;
        at_once("the upstream stopped", &json!(late.max(0.0)))
    })
    .await
}

pub(super) async fn cancellation(place: &mut Place, _: Protocol) -> Result<()> {
    each(place, "cancelUnary", |report| at_once("before the answer", &report["after"])).await?;
    each(place, "cancelStream", |report| {
        ensure!(report["first"] == "first", "the stream's first message");
        at_once("in a stream", &report["after"])
    })
    .await
}
