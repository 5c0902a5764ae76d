//! The walk of an operator who changes something, once for each look; afterwards all is as it was, but for certificates.

use anyhow::{Context, Result};
use postern_tests::process::Signal;
use serde_json::Value;

use super::seen::{Look, Seen, Who::Relay};
use super::stage::{start_agent, walk};

#[tokio::test]
async fn an_operator() -> Result<()> {
    walk("changes", async |seen| {
        for look in Look::KEPT {
            services(seen, look).await?;
            agents(seen, look).await?;
            locks(seen, look).await?;
        }
        Ok(())
    })
    .await
}

async fn services(seen: &mut Seen, look: Look) -> Result<()> {
    const ADD: &str = "service add metrics --agent dc1 --allow role:clerk --to 'GET /**'";
    seen.look(look, Relay, ADD, 0).await?;
    seen.look(look, Relay, ADD, 1).await?;
    seen.look(look, Relay, "config diff", 0).await?;
    seen.look(look, Relay, "reload", 0).await?;
    seen.look(look, Relay, "service rm metrics --reload", 0).await?;
    seen.look(look, Relay, "service rm metrics", 6).await.map(drop)
}

async fn agents(seen: &mut Seen, look: Look) -> Result<()> {
    seen.look(look, Relay, "agent invite dc2 --ttl 1h", 0).await?;
    seen.look(look, Relay, "agent invite dc9 --service wiki", 0).await?;
    seen.look(look, Relay, "agent ls", 0).await?;
    seen.look(look, Relay, "agent remove dc2", 0).await?;
    seen.look(look, Relay, "agent suspend dc1 --reason 'the machine is being looked at'", 0).await?;
    seen.look(look, Relay, "agent ls", 0).await?;
    seen.look(look, Relay, "status", 0).await?;
    seen.look(look, Relay, "agent resume dc1", 0).await?;
    seen.look(look, Relay, "agent resume dc1", 1).await?;
    seen.look(look, Relay, "agent suspend dc7 --reason gone", 1).await?;
    seen.stand.relay_command(&["agent", "remove", "dc9"]).await?.expect_code(0)?;
    // Whoever was suspended asks again only now and then.
    seen.stand.stop_agent(Signal::TERM).await?;
    start_agent(seen).await
}

async fn locks(seen: &mut Seen, look: Look) -> Result<()> {
    seen.look(look, Relay, "lock add --user bob --ttl 1h --reason 'a stolen laptop'", 0).await?;
    seen.look(look, Relay, "lock ls", 0).await?;
    let locks = seen.stand.relay_command(&["lock", "ls", "--json"]).await?.expect_code(0)?;
    let locks: Value = serde_json::from_str(&locks.stdout)?;
    let id = locks[0]["id"].as_str().context("no lock")?.to_owned();
    seen.look(look, Relay, &format!("lock rm {id}"), 0).await?;
    seen.look(look, Relay, &format!("lock rm {id}"), 1).await.map(drop)
}
