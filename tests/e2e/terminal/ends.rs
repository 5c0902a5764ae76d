//! The walk of a relay from its first file to its last: `init`, a new authority, backup, drain, what is said where none runs, restore.

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::wait;
use tokio::net::TcpStream;

use super::running::Running;
use super::seen::{Look, Seen, Who::Relay};
use super::stage::{deserted, relay_status, settled, walk};

#[tokio::test]
async fn a_relay_begins_and_ends() -> Result<()> {
    walk("ends", async |seen| {
        begins(seen).await?;
        seen.ada_logs_in().await?;
        drains(seen).await?;
        seen.stand.stop_agent(Signal::TERM).await?;
        deserted(&seen.stand).await?;
        seen.run(Relay, "status", 0).await?;
        seen.run(Relay, "doctor billing", 1).await?;
        for look in Look::KEPT {
            seen.look(look, Relay, "ca rotate", 0).await?;
            seen.look(look, Relay, "ca show", 0).await?;
            seen.look(look, Relay, "ca rotate --finish", 1).await?;
        }
        seen.making("relay.backup", Relay, "backup DIR/relay.backup", 0).await?;
        seen.run(Relay, "backup DIR/relay.backup", 1).await?;
        seen.stand.stop_relay(Signal::TERM).await?;
        without(seen).await
    })
    .await
}

/// On a machine that has nothing, and once more.
async fn begins(seen: &mut Seen) -> Result<()> {
    const INIT: &str = "-c new/relay.toml init --url https://relay.example.com --issuer https://id.example.com \
                        --dir DIR/new/state";
    for look in Look::KEPT {
        let new = seen.stand.path("new");
        if new.exists() {
            std::fs::remove_dir_all(&new)?;
        }
        std::fs::create_dir(&new)?;
        seen.look(look, Relay, INIT, 0).await?;
    }
    seen.alone(Relay, INIT, 0).await
}

/// With a stream that lasts until the relay has said so.
async fn drains(seen: &mut Seen) -> Result<()> {
    for look in Look::KEPT {
        let port = wait::free_port()?;
        let mut forward = seen.ada.start(&["forward", &format!("{port}:ledger-db")])?;
        forward.wait_line("Forwarding", wait::SOON).await?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        wait::until("the stream is there", wait::SOON, async || {
            (relay_status(&seen.stand).await?["work"]["streams"] == 1).then_some(())
        })
        .await?;
        let mut drain = Running::start(seen, look, Relay, "drain --wait", "drain --wait")?;
        drain.says("draining;").await?;
        drop(stream);
        forward.stop(Signal::TERM).await?;
        drain.ends(seen, 0).await?;
        seen.stand.relay()?.wait_exit(wait::SOON).await?;
        seen.stand.start_relay().await?;
        settled(&seen.stand).await?;
    }
    Ok(())
}

async fn without(seen: &mut Seen) -> Result<()> {
    std::fs::write(seen.stand.path("bob.toml"), "user = \"bob\"\ngroups = [\"staff\"]\n")?;
    for line in ["status", "drain", "reload", "session ls"] {
        seen.run(Relay, line, 7).await?;
    }
    for line in ["doctor", "agent ls", "lock ls", "ca show", "service ls"] {
        seen.alone(Relay, line, 0).await?;
    }
    seen.run(Relay, "config diff", 2).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET billing/v1/invoices/7", 5).await?;
    for look in Look::KEPT {
        seen.look(look, Relay, "restore DIR/relay.backup", 0).await?;
    }
    Ok(())
}
