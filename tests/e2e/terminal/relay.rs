//! The walk of `postern-relay`.

use anyhow::{Context, Result};
use postern_tests::process::Signal;
use postern_tests::wait;
use serde_json::Value;

use super::seen::{Look, Seen, Who::Relay};

/// What changes nothing.
pub(super) async fn at_work(seen: &mut Seen) -> Result<()> {
    let token = seen.stand.issuer.token("ada").await?;
    std::fs::write(seen.stand.path("ada.token"), &token)?;
    std::fs::write(seen.stand.path("bob.toml"), "user = \"bob\"\ngroups = [\"staff\"]\n")?;
    seen.run(Relay, "version", 0).await?;
    seen.run(Relay, "frobnicate", 2).await?;
    seen.run(Relay, "status", 0).await?;
    seen.run(Relay, "doctor", 1).await?;
    seen.run(Relay, "doctor billing", 1).await?;
    seen.run(Relay, "doctor dead", 1).await?;
    seen.run(Relay, "doctor nothing", 6).await?;
    seen.run(Relay, "agent ls", 0).await?;
    seen.run(Relay, "ca show", 0).await?;
    seen.run(Relay, "service ls", 0).await?;
    seen.run(Relay, "session ls", 0).await?;
    seen.run(Relay, "lock ls", 0).await?;
    seen.run(Relay, "issuer test corp", 0).await?;
    seen.run(Relay, "issuer test corp --token-file DIR/ada.token", 0).await?;
    seen.run(Relay, "issuer test corp --token-file DIR/bob.toml", 1).await?;
    seen.run(Relay, "issuer test nobody", 1).await?;
    seen.run(Relay, "policy test", 0).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET billing/v1/invoices/7", 5).await?;
    seen.run(Relay, "policy why --token-file DIR/ada.token GET billing/v1/invoices/7", 0).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET nothing/x", 6).await?;
    seen.run(Relay, "policy replay --audit DIR/audit.jsonl", 0).await?;
    seen.run(Relay, "config check", 0).await?;
    seen.run(Relay, "config diff", 0).await?;
    let good = std::fs::read_to_string(seen.stand.path("relay.toml"))?;
    std::fs::write(seen.stand.path("bad.toml"), good.replacen("allow =", "alow =", 1))?;
    seen.run(Relay, "-c bad.toml config check", 3).await?;
    let wrong = good.replace("expect = \"deny\"", "expect = \"allow\"");
    std::fs::write(seen.stand.path("wrong.toml"), wrong)?;
    seen.run(Relay, "-c wrong.toml config check", 3).await?;
    seen.run(Relay, "-c wrong.toml policy test", 3).await?;
    seen.run(Relay, "-c none.toml config check", 3).await?;
    seen.run(Relay, "audit find --user ada --status 403 --since 1h", 0).await?;
    seen.run(Relay, "audit find --user nobody", 0).await?;
    seen.run(Relay, "audit verify DIR/audit.jsonl --key-file DIR/audit-key.txt", 0).await?;
    seen.run(Relay, "audit verify DIR/relay.toml", 1).await
}

/// What changes something, once for each look; afterwards all is as it was, but for certificates.
pub(super) async fn changes(seen: &mut Seen) -> Result<()> {
    for look in Look::KEPT {
        seen.look(look, Relay, "service add metrics --agent dc1 --allow role:clerk --to 'GET /**'", 0)
            .await?;
        seen.look(look, Relay, "service add metrics --agent dc1 --allow role:clerk --to 'GET /**'", 1)
            .await?;
        seen.look(look, Relay, "config diff", 0).await?;
        seen.look(look, Relay, "reload", 0).await?;
        seen.look(look, Relay, "service rm metrics --reload", 0).await?;
        seen.look(look, Relay, "service rm metrics", 6).await?;
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
        seen.look(look, Relay, "lock add --user bob --ttl 1h --reason 'a stolen laptop'", 0).await?;
        seen.look(look, Relay, "lock ls", 0).await?;
        let locks = seen.stand.relay_command(&["lock", "ls", "--json"]).await?.expect_code(0)?;
        let locks: Value = serde_json::from_str(&locks.stdout)?;
        let id = locks[0]["id"].as_str().context("no lock")?.to_owned();
        seen.look(look, Relay, &format!("lock rm {id}"), 0).await?;
        seen.look(look, Relay, &format!("lock rm {id}"), 1).await?;
        let file = format!("DIR/{look:?}.backup");
        seen.look(look, Relay, &format!("backup {file}"), 0).await?;
        seen.look(look, Relay, &format!("backup {file}"), 1).await?;
        // Those it was suspended from are asked for again.
        seen.stand.stop_agent(Signal::TERM).await?;
        seen.stand.start_agent().await?;
    }
    Ok(())
}

pub(super) async fn without_an_agent(seen: &mut Seen) -> Result<()> {
    seen.run(Relay, "status", 0).await?;
    seen.run(Relay, "doctor billing", 1).await?;
    for look in Look::KEPT {
        seen.look(look, Relay, "ca rotate", 0).await?;
        seen.look(look, Relay, "ca show", 0).await?;
        seen.look(look, Relay, "ca rotate --finish", 1).await?;
    }
    Ok(())
}

/// It is drained; what each command says then.
pub(super) async fn ends(seen: &mut Seen) -> Result<()> {
    for look in Look::KEPT {
        seen.look(look, Relay, "drain --wait", 0).await?;
        seen.stand.relay()?.wait_exit(wait::SOON).await?;
        if look != Look::Json {
            seen.stand.start_relay().await?;
        }
    }
    for line in ["status", "drain", "reload", "session ls"] {
        seen.run(Relay, line, 7).await?;
    }
    for line in ["doctor", "agent ls", "lock ls", "ca show", "service ls"] {
        seen.alone(Relay, line, 0).await?;
    }
    seen.run(Relay, "config diff", 2).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET billing/v1/invoices/7", 5).await?;
    seen.look(Look::Piped, Relay, "restore DIR/Piped.backup", 0).await?;
    seen.look(Look::Colour, Relay, "restore DIR/Piped.backup", 0).await?;
    seen.look(Look::Json, Relay, "restore DIR/Piped.backup", 0).await?;
    Ok(())
}
