//! What a local program speaks to a forward arrives as it does without one: server-sent events, uploads, trailers and cancellation over
//! HTTP/1.1 and HTTP/2 without TLS, WebSocket, gRPC. Callers and servers are written by others (`tests/stacks`); no caller has a token.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::Program;
use postern_tests::stacks::{self, Stack};
use postern_tests::stand::{Extra, Stand, say};
use serde_json::{Value, json};

const NODE: &str = "node";
const NODE_H2C: &str = "node-h2c";
const SOCKETS: &str = "sockets";
const GRPC: &str = "grpc";
const LIMIT: Duration = Duration::from_mins(1);
/// Held back to the end, half of the pieces would be later than this, in milliseconds; a busy machine may delay a few.
const AT_ONCE: f64 = 200.0;
/// For the end of what was given up.
const NOTICED: f64 = 1000.0;
const MANY: u32 = 10_000;
const BULK: u64 = 16 << 20;

/// A forward to each service.
struct Place {
    stand: Stand,
    node: Stack,
    sockets: Stack,
    _grpc: Stack,
    forwards: BTreeMap<&'static str, (Program, String)>,
    cases: u32,
}

impl Place {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let node = Stack::start(dir.path(), "upstream.mjs").await?;
        let sockets = Stack::start(dir.path(), "upstream_ws.py").await?;
        let grpc = Stack::start(dir.path(), "upstream_grpc.py").await?;
        let upstreams = [
            (NODE, format!("http://{}", node.address("http")?)),
            (NODE_H2C, format!("h2c://{}", node.address("h2c")?)),
            (SOCKETS, format!("http://{}", sockets.address("http")?)),
            (GRPC, format!("h2c://{}", grpc.address("http")?)),
        ];
        let mut extra = Extra::default();
        for (name, upstream) in &upstreams {
            write!(
                extra.tables,
                "[services.{name}]\nagent = \"dc1\"\nrules = [{{ allow = \"*\", to = \"* /**\" }}]\n"
            )?;
            write!(extra.agent_tables, "[services.{name}]\nupstream = \"{upstream}\"\n")?;
        }
        let stand = Stand::start_with(extra).await?;
        let ada = stand.cli("ada")?;
        ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
        let mut forwards = BTreeMap::new();
        for (name, _) in upstreams {
            forwards.insert(name, ada.forward(name, &[]).await?);
        }
        Ok(Self { stand, node, sockets, _grpc: grpc, forwards, cases: 0 })
    }

    /// Runs a caller on the forward of a service; gives its report.
    async fn call(&mut self, script: &str, protocol: &str, service: &str, job: &Value) -> Result<Value> {
        self.cases += 1;
        let (_, base) = self.forwards.get(service).context("no such forward")?;
        let asked = if service == SOCKETS { &self.sockets } else { &self.node };
        let mut whole = json!({
            "protocol": protocol, "base": base, "id": format!("case-{}", self.cases), "control": asked.address("control")?,
        });
        for (key, value) in job.as_object().context("a job is an object")? {
            whole[key] = value.clone();
        }
        let what = format!("{script} over {protocol} to {service}: {job}");
        stacks::call(script, &whole, LIMIT).await.with_context(|| format!("{what}\n{}", asked.tail()))
    }
}

/// There are `count` numbers, and their median is below [`AT_ONCE`].
fn at_once(list: &Value, count: usize) -> Result<()> {
    let mut late: Vec<f64> = list.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    late.sort_by(f64::total_cmp);
    ensure!(late.len() == count && late[count / 2] < AT_ONCE, "{count} expected: {list}");
    Ok(())
}

/// The upstream learned of an end in time.
fn noticed(report: &Value) -> Result<()> {
    ensure!(report["after"].as_f64().is_some_and(|after| after < NOTICED), "{report}");
    Ok(())
}

#[tokio::test]
async fn http_passes_a_forward_as_it_is() -> Result<()> {
    let mut place = Place::start().await?;
    for protocol in ["h1", "h2"] {
        for service in [NODE, NODE_H2C] {
            say(&format!("{protocol} to {service}"));
            let mut call = async |job: Value| place.call("caller.mjs", protocol, service, &job).await;
            let events = call(json!({ "job": "events", "path": "/events?events=10&gap=100" })).await?;
            ensure!(events["status"] == 200 && events["error"].is_null(), "{events}");
            at_once(&events["late"], 10)?;
            let duplex = call(json!({ "job": "duplex", "pieces": 20 })).await?;
            ensure!(duplex["status"] == 200 && duplex["error"].is_null(), "{duplex}");
            at_once(&duplex["trips"], 20)?;
            let after = call(json!({ "job": "after" })).await?;
            ensure!(after["text"] == "0123456789" && after["error"].is_null(), "{after}");
            let early = call(json!({ "job": "early" })).await?;
            ensure!(early["status"] == 200 && early["text"] == "enough", "{early}");
            for path in ["/hold", "/drip", "/swallow"] {
                let left = call(json!({ "job": "abort", "path": path, "whole": false })).await?;
                noticed(&left)?;
            }
            for job in ["down", "up"] {
                let bulk = call(json!({ "job": job, "bytes": BULK })).await?;
                let expected = &bulk["expected"];
                ensure!(bulk["status"] == 200 && bulk["bytes"] == BULK, "{bulk}");
                ensure!(bulk["bytes"] == expected["bytes"] && bulk["sha256"] == expected["sha256"], "{bulk}");
            }
        }
    }
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn websockets_pass_a_forward() -> Result<()> {
    let mut place = Place::start().await?;
    for (script, service) in [("caller_ws.mjs", SOCKETS), ("caller_ws.py", NODE)] {
        say(&format!("{script} to {service}"));
        let talk = place.call(script, "h1", service, &json!({ "job": "talk" })).await?;
        ensure!(talk["wrong"] == json!([]) && talk["protocol"] == "chat.v1", "{talk}");
        ensure!(talk["pong"] == "are you there" && talk["told"] == "pong from-the-upstream", "{talk}");
        ensure!(talk["noted"]["code"] == 4001 && talk["closed"]["code"] == 4001, "{talk}");
        let flood = place.call(script, "h1", service, &json!({ "job": "flood", "count": MANY })).await?;
        ensure!(flood["received"] == MANY && flood["disorder"].is_null(), "{flood}");
        ensure!(flood["said"] == format!("flooded {MANY}"), "{flood}");
        let refused = place.call(script, "h1", service, &json!({ "job": "refused" })).await?;
        ensure!(refused["status"] == 403 && refused["text"] == "no.\n", "{refused}");
        let vanished = place.call(script, "h1", service, &json!({ "job": "vanish" })).await?;
        noticed(&vanished)?;
    }
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn grpc_passes_a_forward() -> Result<()> {
    let mut place = Place::start().await?;
    for script in ["caller_grpc.py", "caller_grpc.mjs"] {
        say(script);
        let jobs = ["unary", "down", "up", "both", "errors", "deadline", "cancelUnary", "cancelStream"];
        let report = place.call(script, "h2", GRPC, &json!({ "jobs": jobs })).await?;
        let unary = &report["unary"];
        ensure!(unary["same"] == true && unary["empty"] == true && unary["code"] == 0, "{unary}");
        at_once(&report["down"]["late"], 20)?;
        ensure!(report["up"]["answer"] == "1000 1000000", "{}", report["up"]);
        at_once(&report["both"]["trips"], 20)?;
        let codes = report["errors"]["found"].as_array().context("no list")?;
        ensure!((1u32..=16).zip(codes).all(|(code, found)| found["code"] == code), "{codes:?}");
        ensure!(report["deadline"]["code"] == 4, "{}", report["deadline"]);
        for job in ["cancelUnary", "cancelStream"] {
            noticed(&report[job])?;
        }
    }
    place.stand.passed();
    Ok(())
}
