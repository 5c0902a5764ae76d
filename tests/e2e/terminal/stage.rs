//! Takes the steps of a walk; gives them a stand that has come to rest, and holds at the end what was seen against its files.

use anyhow::Result;
use postern_tests::stand::{Extra, Stand};
use postern_tests::wait;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::seen::Seen;

const TABLES: &str = r#"
[services.wiki]
about = "What everybody should know, and some things that nobody does"
agent = "dc1"
rules = [{ name = "everybody reads", allow = "*", to = "GET /**", rate = "20/s per user" }]

[services.ledger-db]
kind = "tcp"
agent = "dc1"
rules = [{ name = "clerks connect", allow = "role:clerk", to = "CONNECT" }]

[services.few]
agent = "dc1"
rules = [{ name = "once a day", allow = "*", to = "GET /**", quota = "1/day per user" }]

[services.dead]
agent = "dc1"
rules = [{ name = "anyone", allow = "*", to = "GET /**" }]

[services.orphan]
agent = "dc2"
rules = [{ name = "anyone", allow = "*", to = "GET /**" }]

[[tests]]
name = "clerks cannot delete without a strong login"
as = { issuer = "corp", groups = ["finance"], scope = ["invoices:read"] }
call = "DELETE billing/v1/invoices/7"
expect = "deny"
"#;

/// Walks, on a stand of its own; what is seen belongs into the directory of that name.
pub(super) async fn walk(name: &'static str, steps: impl AsyncFnOnce(&mut Seen) -> Result<()>) -> Result<()> {
    let (_open, database) = database().await?;
    // Nobody listens there, and nobody else will.
    let dead = wait::free_port()?;
    let agent_tables = format!(
        "[services.wiki]\nupstream = \"{{echo}}\"\n[services.few]\nupstream = \"{{echo}}\"\n\
         [services.ledger-db]\nupstream = \"tcp://127.0.0.1:{database}\"\n\
         [services.dead]\nupstream = \"http://127.0.0.1:{dead}\"\n\
         [tunnel]\ntransport = \"quic\"\n",
    );
    let extra = Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() };
    let stand = Stand::relay_only(extra).await?;
    let invite = stand.invite("dc1", &[]).await?;
    stand.join(&invite).await?.expect_code(0)?;
    let mut seen = Seen::new(name, stand, dead)?;
    start_agent(&mut seen).await?;
    let walked = steps(&mut seen).await;
    seen.finish(walked).await
}

/// Starts the agent, which is ready once it has reached all its services; `dead` is down from then on. Gives it when all is known.
pub(super) async fn start_agent(seen: &mut Seen) -> Result<()> {
    let dead = TcpListener::bind(("127.0.0.1", seen.dead)).await?;
    seen.stand.start_agent().await?;
    drop(dead);
    settled(&seen.stand).await
}

/// Takes connections until it is dropped, says nothing, and hangs up when its caller does; gives its port too.
async fn database() -> Result<(JoinSet<()>, u16)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut open = JoinSet::new();
    open.spawn(async move {
        let mut held = JoinSet::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            held.spawn(async move { tokio::io::copy(&mut connection, &mut tokio::io::sink()).await });
        }
    });
    Ok((open, port))
}

/// Both sides know all that they are going to show: two tunnels and how long each takes, the clock, the issuer's keys; and nothing is under
/// way.
pub(super) async fn settled(stand: &Stand) -> Result<()> {
    let measured = |status: &Value| {
        let tunnels = status["tunnels"].as_array().map_or(&[][..], Vec::as_slice);
        tunnels.len() == 2 && tunnels.iter().all(|t| t["usable"] == true && t["round_trip_us"].is_number())
    };
    wait::until("agent and relay are at rest", wait::SOON * 2, async || {
        let (agent, relay) = (agent_status(stand).await?, relay_status(stand).await?);
        let asked = relay["issuers"][0]["usable_until"].is_number();
        let at_rest = relay["work"]["requests"] == 0 && agent["requests_in_flight"] == 0;
        let known = !agent["clock_offset_ms"].is_null() && asked && at_rest;
        (known && measured(&agent) && measured(&relay)).then_some(())
    })
    .await
}

/// The relay has no tunnel any more.
pub(super) async fn deserted(stand: &Stand) -> Result<()> {
    wait::until("the relay has no tunnel", wait::SOON * 2, async || {
        let relay = relay_status(stand).await?;
        (relay["tunnels"] == Value::Array(Vec::new()) && relay["work"]["tunnels"] == 0).then_some(())
    })
    .await
}

/// The agent has no tunnel any more.
pub(super) async fn alone(stand: &Stand) -> Result<()> {
    wait::until("the agent has no tunnel", wait::SOON * 2, async || {
        (agent_status(stand).await?["tunnels"] == Value::Array(Vec::new())).then_some(())
    })
    .await
}

pub(super) async fn agent_status(stand: &Stand) -> Option<Value> {
    serde_json::from_str(&stand.agent_command(&["status", "--json"]).await.ok()?.stdout).ok()
}

pub(super) async fn relay_status(stand: &Stand) -> Option<Value> {
    serde_json::from_str(&stand.relay_command(&["status", "--json"]).await.ok()?.stdout).ok()
}
