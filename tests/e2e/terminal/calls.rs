//! The walk of those who call: what one may reach and how, refusals and what they mean, first with an agent and then without; ada is a
//! clerk, and bob is none.

use anyhow::Result;
use postern_tests::process::Signal;

use super::running::Running;
use super::seen::{Look, Seen, Who};
use super::stage::{deserted, walk};
use Who::{Ada, Bob};

#[tokio::test]
async fn who_calls() -> Result<()> {
    walk("calls", async |seen| {
        let bob = seen.bob.login_device(&seen.stand.issuer, "bob", &[]);
        let (ada, bob) = tokio::join!(seen.ada_logs_in(), bob);
        ada?;
        bob?.expect_code(0)?;
        services(seen).await?;
        calls(seen).await?;
        doctors(seen).await?;
        watch(seen).await?;
        seen.stand.stop_agent(Signal::TERM).await?;
        deserted(&seen.stand).await?;
        seen.run(Ada, "ls", 0).await?;
        seen.run(Ada, "show wiki", 0).await?;
        seen.text(Ada, "curl -sS billing/v1/invoices/7", 8).await?;
        seen.run(Ada, "status", 0).await?;
        seen.run(Ada, "doctor billing", 8).await
    })
    .await
}

async fn services(seen: &mut Seen) -> Result<()> {
    for line in ["ls", "ls wiki", "ls zzz", "show billing", "show ledger-db", "show orphan"] {
        seen.run(Ada, line, 0).await?;
    }
    seen.run(Ada, "show nothing", 6).await?;
    seen.run(Bob, "ls", 0).await?;
    seen.run(Ada, "can GET billing/v1/invoices/7", 0).await?;
    seen.run(Ada, "can GET wiki/", 0).await?;
    seen.run(Ada, "can DELETE billing/v1/invoices/7", 5).await?;
    seen.run(Bob, "can GET billing/v1/invoices/7", 5).await?;
    seen.run(Ada, "can CONNECT ledger-db", 0).await?;
    seen.run(Ada, "can GET nothing/x", 6).await
}

async fn calls(seen: &mut Seen) -> Result<()> {
    seen.text(Ada, "curl -sS billing/v1/invoices/7", 0).await?;
    seen.text(Ada, "curl -sS -X DELETE billing/v1/invoices/7", 4).await?;
    seen.text(Bob, "curl -sS billing/v1/invoices/7", 5).await?;
    seen.text(Ada, "curl -sS nothing/", 6).await?;
    seen.look(Look::Piped, Ada, "curl -sS -o /dev/null few/", 0).await?;
    seen.text(Ada, "curl -sS few/", 9).await?;
    seen.text(Ada, "curl -sS orphan/", 8).await?;
    seen.text(Ada, "curl -sS dead/", 8).await?;
    seen.text(Bob, "connect ledger-db", 5).await?;
    seen.text(Ada, "connect billing", 1).await
}

async fn doctors(seen: &mut Seen) -> Result<()> {
    seen.run(Ada, "doctor", 0).await?;
    seen.run(Ada, "doctor billing", 0).await?;
    seen.run(Ada, "doctor dead", 8).await?;
    seen.run(Ada, "doctor orphan", 8).await?;
    seen.run(Ada, "doctor nothing", 6).await?;
    seen.making("ada.tar.gz", Ada, "doctor --bundle DIR/ada.tar.gz", 0).await?;
    seen.run(Ada, "doctor --bundle DIR/ada.tar.gz", 1).await
}

/// It draws again and again, until Ctrl-C.
async fn watch(seen: &mut Seen) -> Result<()> {
    seen.run(Ada, "status", 0).await?;
    for (look, frame) in
        [(Look::Piped, "relay  "), (Look::Colour, "\u{1b}[H\u{1b}[2J"), (Look::Json, "{\"relay\":")]
    {
        let mut watch = Running::start(seen, look, Ada, "status --watch", "status --watch")?;
        watch.says("wiki").await?;
        watch.stop(seen, Signal::INT, 130, Some(frame)).await?;
    }
    Ok(())
}
