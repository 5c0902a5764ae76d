//! The walk of `postern-agent`.

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::wait;

use super::seen::{Look, Seen, Who::Agent};

pub(super) async fn at_work(seen: &mut Seen) -> Result<()> {
    wait::until("both tunnels, and the relay's clock", wait::SOON, async || {
        let status = seen.stand.agent_command(&["status", "--json"]).await.ok()?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
        let tunnels = status["tunnels"].as_array()?;
        let usable = tunnels.iter().filter(|t| t["usable"] == true && t["round_trip_us"].is_number()).count();
        (usable == 2 && !status["clock_offset_ms"].is_null()).then_some(())
    })
    .await?;
    seen.run(Agent, "version", 0).await?;
    seen.run(Agent, "frobnicate", 2).await?;
    seen.run(Agent, "status", 0).await?;
    seen.run(Agent, "doctor", 1).await?;
    seen.run(Agent, "service ls", 0).await?;
    for look in Look::KEPT {
        seen.look(look, Agent, "service add metrics http://127.0.0.1:9090", 0).await?;
        seen.look(look, Agent, "service add metrics http://127.0.0.1:9090", 1).await?;
        seen.look(look, Agent, "service rm metrics", 0).await?;
    }
    seen.run(Agent, "service rm metrics", 6).await?;
    seen.run(Agent, "service add metrics ftp://127.0.0.1", 3).await?;
    seen.run(Agent, "config check", 0).await?;
    let good = std::fs::read_to_string(seen.stand.path("agent.toml"))?;
    std::fs::write(seen.stand.path("bad.toml"), good.replacen("upstream =", "upstraem =", 1))?;
    seen.run(Agent, "-c bad.toml config check", 3).await?;
    seen.run(Agent, "-c none.toml config check", 3).await?;
    seen.run(Agent, "join RELAY", 1).await?;
    std::fs::write(seen.stand.path("invite"), "not an invite")?;
    seen.alone(Agent, "join RELAY --invite-file DIR/invite --force", 2).await
}

/// It is drained; what each command says then.
pub(super) async fn ends(seen: &mut Seen) -> Result<()> {
    for look in Look::KEPT {
        seen.look(look, Agent, "drain", 0).await?;
        seen.stand.agent()?.wait_exit(wait::SOON).await?;
        if look != Look::Json {
            seen.stand.start_agent().await?;
        }
    }
    for (line, code) in [("status", 8), ("drain", 8), ("doctor", 0), ("service ls", 0)] {
        seen.run(Agent, line, code).await?;
    }
    Ok(())
}

pub(super) async fn without_a_relay(seen: &mut Seen) -> Result<()> {
    seen.run(Agent, "doctor", 1).await?;
    let invite = format!("pst1.{}.{}", "A".repeat(43), "A".repeat(22));
    std::fs::write(seen.stand.path("invite"), invite)?;
    seen.alone(Agent, "join RELAY --invite-file DIR/invite --force", 7).await?;
    // `run` waits for its relay; what an operator sees of it is in `status`.
    seen.stand.start_relay().await?;
    seen.stand.start_agent().await?;
    seen.stand.stop_relay(Signal::TERM).await?;
    wait::until("the loss is noticed", wait::SOON, async || {
        let status = seen.stand.agent_command(&["status", "--json"]).await.ok()?;
        status.stdout.contains("\"tunnels\": []").then_some(())
    })
    .await?;
    seen.run(Agent, "status", 0).await?;
    seen.stand.stop_agent(Signal::TERM).await
}
