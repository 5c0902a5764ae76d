//! The walk of `postern-relay` at work: what changes nothing.

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::wait;

use super::running::Running;
use super::seen::{Look, Seen, Who::Relay};
use super::stage::walk;

#[tokio::test]
async fn a_relay() -> Result<()> {
    walk("relay", async |seen| {
        let token = seen.stand.issuer.token("ada").await?;
        std::fs::write(seen.stand.path("ada.token"), &token)?;
        std::fs::write(seen.stand.path("bob.toml"), "user = \"bob\"\ngroups = [\"staff\"]\n")?;
        at_work(seen).await?;
        issuers_and_rules(seen).await?;
        files(seen).await?;
        log(seen).await
    })
    .await
}

async fn at_work(seen: &mut Seen) -> Result<()> {
    seen.run(Relay, "version", 0).await?;
    seen.run(Relay, "frobnicate", 2).await?;
    for line in ["status", "agent ls", "ca show", "service ls", "session ls", "lock ls"] {
        seen.run(Relay, line, 0).await?;
    }
    seen.run(Relay, "doctor", 1).await?;
    seen.run(Relay, "doctor billing", 1).await?;
    seen.run(Relay, "doctor dead", 1).await?;
    seen.run(Relay, "doctor nothing", 6).await?;
    seen.making("relay.tar.gz", Relay, "doctor --bundle DIR/relay.tar.gz", 1).await
}

async fn issuers_and_rules(seen: &mut Seen) -> Result<()> {
    seen.run(Relay, "issuer test corp", 0).await?;
    seen.run(Relay, "issuer test corp --token-file DIR/ada.token", 0).await?;
    seen.run(Relay, "issuer test corp --token-file DIR/bob.toml", 1).await?;
    seen.run(Relay, "issuer test nobody", 1).await?;
    seen.run(Relay, "policy test", 0).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET billing/v1/invoices/7", 5).await?;
    seen.run(Relay, "policy why --token-file DIR/ada.token GET billing/v1/invoices/7", 0).await?;
    seen.run(Relay, "policy why --as DIR/bob.toml GET nothing/x", 6).await
}

async fn files(seen: &mut Seen) -> Result<()> {
    seen.run(Relay, "config check", 0).await?;
    seen.run(Relay, "config check --expand", 0).await?;
    seen.run(Relay, "config diff", 0).await?;
    let good = std::fs::read_to_string(seen.stand.path("relay.toml"))?;
    std::fs::write(seen.stand.path("bad.toml"), good.replacen("allow =", "alow =", 1))?;
    seen.run(Relay, "-c bad.toml config check", 3).await?;
    seen.run(Relay, "-c bad.toml run", 3).await?;
    let wrong = good.replace("expect = \"deny\"", "expect = \"allow\"");
    std::fs::write(seen.stand.path("wrong.toml"), wrong)?;
    seen.run(Relay, "-c wrong.toml config check", 3).await?;
    seen.run(Relay, "-c wrong.toml policy test", 1).await?;
    seen.run(Relay, "-c none.toml config check", 3).await
}

/// Bob is refused three times: once for `find`, and twice for whoever watches.
async fn log(seen: &mut Seen) -> Result<()> {
    let bob = seen.stand.issuer.token("bob").await?;
    let invoice = seen.stand.at("/billing/v1/invoices/7");
    let refused =
        async |seen: &Seen| seen.stand.http.get(&invoice, Some(&bob)).await?.expect_status(403).map(drop);
    let denied = |line: &serde_json::Value| line["outcome"] == "deny";
    refused(seen).await?;
    seen.stand.wait_audit(1, denied).await?;
    seen.run(Relay, "audit find --user bob --status 403 --since 1h", 0).await?;
    seen.run(Relay, "audit find --user nobody", 0).await?;
    seen.run(Relay, "policy replay --audit DIR/audit.jsonl", 0).await?;
    let mut tails = Vec::new();
    for look in Look::KEPT {
        let mut tail = Running::start(seen, look, Relay, "audit tail --denied", "audit tail --denied")?;
        tail.says("invoices/7").await?;
        tails.push(tail);
    }
    refused(seen).await?;
    for mut tail in tails {
        tail.says_again("invoices/7", 2).await?;
        tail.stop(seen, Signal::INT, 0, None).await?;
    }
    seen.run(Relay, "audit verify DIR/audit.jsonl --key-file DIR/audit-key.txt", 0).await?;
    seen.run(Relay, "audit verify DIR/relay.toml", 1).await?;
    wait::until("the log is whole", wait::SOON, async || seen.stand.audit().ok().map(drop)).await
}
