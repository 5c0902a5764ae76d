//! The walk of `postern-agent`: at work, joining, drained, and without its relay.

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::wait;
use tokio::net::{TcpListener, TcpStream};

use super::running::Running;
use super::seen::{Look, Seen, Who::Agent};
use super::stage::{agent_status, alone, deserted, start_agent, walk};

#[tokio::test]
async fn an_agent() -> Result<()> {
    walk("agent", async |seen| {
        at_work(seen).await?;
        files(seen).await?;
        joins(seen).await?;
        ends(seen).await?;
        without_a_relay(seen).await
    })
    .await
}

async fn at_work(seen: &mut Seen) -> Result<()> {
    seen.run(Agent, "version", 0).await?;
    seen.run(Agent, "frobnicate", 2).await?;
    seen.run(Agent, "status", 0).await?;
    let up = TcpListener::bind(("127.0.0.1", seen.dead)).await?;
    seen.run(Agent, "doctor", 0).await?;
    drop(up);
    seen.run(Agent, "doctor", 1).await?;
    seen.making("agent.tar.gz", Agent, "doctor --bundle DIR/agent.tar.gz", 1).await?;
    seen.run(Agent, "service ls", 0).await?;
    for look in Look::KEPT {
        seen.look(look, Agent, "service add metrics http://127.0.0.1:9090", 0).await?;
        seen.look(look, Agent, "service add metrics http://127.0.0.1:9090", 1).await?;
        seen.look(look, Agent, "service rm metrics", 0).await?;
    }
    seen.run(Agent, "service rm metrics", 6).await?;
    seen.run(Agent, "service add metrics ftp://127.0.0.1", 3).await
}

async fn files(seen: &mut Seen) -> Result<()> {
    seen.run(Agent, "config check", 0).await?;
    let good = std::fs::read_to_string(seen.stand.path("agent.toml"))?;
    std::fs::write(seen.stand.path("bad.toml"), good.replacen("upstream =", "upstraem =", 1))?;
    seen.run(Agent, "-c bad.toml config check", 3).await?;
    seen.run(Agent, "-c none.toml config check", 3).await?;
    seen.run(Agent, "-c bad.toml run", 3).await
}

/// With a good invite on a machine that has nothing, and with what is none.
async fn joins(seen: &mut Seen) -> Result<()> {
    for look in Look::KEPT {
        let invite = seen.stand.invite("dc2", &[]).await?;
        std::fs::write(seen.stand.path("invite"), invite)?;
        let fresh = seen.stand.path("fresh");
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh)?;
        }
        std::fs::create_dir(&fresh)?;
        let line = "-c fresh/agent.toml join RELAY --state DIR/fresh/state --invite-file DIR/invite";
        seen.look(look, Agent, line, 0).await?;
    }
    seen.run(Agent, "join RELAY", 1).await?;
    std::fs::write(seen.stand.path("invite"), "not an invite")?;
    seen.alone(Agent, "join RELAY --invite-file DIR/invite --force", 2).await
}

/// It is drained, with a connection that lasts until it has said so; what each command says then.
async fn ends(seen: &mut Seen) -> Result<()> {
    seen.ada_logs_in().await?;
    for look in Look::KEPT {
        let port = wait::free_port()?;
        let line = format!("forward {port}:ledger-db");
        let mut forward = seen.ada.start(&["forward", &format!("{port}:ledger-db")])?;
        forward.wait_line("Forwarding", wait::SOON).await?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        wait::until("the connection is there", wait::SOON, async || {
            (agent_status(&seen.stand).await?["requests_in_flight"] == 1).then_some(())
        })
        .await?;
        let mut drain = Running::start(seen, look, Agent, "drain", "drain")?;
        drain.says("draining:").await?;
        drop(stream);
        drain.ends(seen, 0).await?;
        seen.stand.agent()?.wait_exit(wait::SOON).await?;
        forward.stop(Signal::TERM).await.map(drop).map_err(|e| e.context(line))?;
        if look != Look::Json {
            deserted(&seen.stand).await?;
            start_agent(seen).await?;
        }
    }
    deserted(&seen.stand).await?;
    for (line, code) in [("status", 8), ("drain", 8), ("doctor", 1), ("service ls", 0)] {
        seen.run(Agent, line, code).await?;
    }
    Ok(())
}

async fn without_a_relay(seen: &mut Seen) -> Result<()> {
    // `run` waits for its relay; what an operator sees of it is in `status`.
    start_agent(seen).await?;
    seen.stand.stop_relay(Signal::TERM).await?;
    alone(&seen.stand).await?;
    seen.run(Agent, "status", 0).await?;
    seen.stand.stop_agent(Signal::TERM).await?;
    seen.run(Agent, "doctor", 1).await?;
    let invite = format!("pst1.{}.{}", "A".repeat(43), "A".repeat(22));
    std::fs::write(seen.stand.path("invite"), invite)?;
    seen.alone(Agent, "join RELAY --invite-file DIR/invite --force", 7).await
}
