//! The walk of what keeps running for people: `forward`, `proxy` and `connect`; a relay that is lost and comes back, and one that does not.

use anyhow::{Result, ensure};
use postern_tests::process::{self, Signal};
use postern_tests::wait;
use tokio::net::TcpStream;

use super::running::Running;
use super::seen::{Look, Seen, Who};
use super::stage::{settled, walk};
use Who::Ada;

#[tokio::test]
async fn what_is_forwarded() -> Result<()> {
    walk("forwards", async |seen| {
        seen.ada_logs_in().await?;
        seen.run(Ada, "forward nothing", 6).await?;
        seen.run(Ada, "forward billing --bind 0.0.0.0", 2).await?;
        seen.run(Ada, "forward billing -- true", 0).await?;
        seen.run(Ada, "proxy --socks5 0.0.0.0:1080", 2).await?;
        for look in Look::KEPT {
            running(seen, look).await?;
        }
        seen.stand.stop_relay(Signal::TERM).await?;
        without_a_relay(seen).await
    })
    .await
}

/// All at once; each sees the relay go and come.
async fn running(seen: &mut Seen, look: Look) -> Result<()> {
    let (port, other, socks) = (wait::free_port()?, wait::free_port()?, wait::free_port()?);
    let mut forward = Running::start(
        seen,
        look,
        Ada,
        &format!("forward {port}:billing {other}:ledger-db"),
        "forward 8080:billing 5432:ledger-db",
    )?;
    // In this order, which is that of `status`.
    forward.says("ledger-db").await?;
    let mut proxy = Running::start(
        seen,
        look,
        Ada,
        &format!("proxy --socks5 127.0.0.1:{socks}"),
        "proxy --socks5 127.0.0.1:1080",
    )?;
    proxy.says("socks5").await?;
    // One stream, for whoever lists them.
    let stream = TcpStream::connect(("127.0.0.1", other)).await?;
    let listed = async || {
        let listed = seen.stand.relay_command(&["session", "ls", "--json"]).await.ok()?;
        listed.stdout.contains("ledger-db").then_some(())
    };
    wait::until("a stream is listed", wait::SOON, listed).await?;
    if look == Look::Colour {
        seen.run(Who::Relay, "session ls", 0).await?;
        seen.run(Ada, "status", 0).await?;
    }
    drop(stream);
    seen.stand.stop_relay(Signal::TERM).await?;
    // Both are asked for something: idle, they look for the relay only now and then.
    seen.stand.http.get(&format!("http://127.0.0.1:{port}/"), None).await?.expect_status(502)?;
    let through = ["-sS", "--max-time", "20", "--socks5-hostname", &format!("127.0.0.1:{socks}")];
    let asked = [&through[..], &["-o", "/dev/null", "-w", "%{http_code}", "http://billing/"]].concat();
    let away = process::run(process::command("curl", asked), wait::SOON * 2).await?;
    ensure!(away.stdout == "502", "{away:?}");
    forward.says("relay lost").await?;
    proxy.says("relay lost").await?;
    seen.stand.start_relay().await?;
    forward.says("back after").await?;
    proxy.says("back after").await?;
    forward.stop(seen, Signal::TERM, 0, None).await?;
    proxy.stop(seen, Signal::TERM, 0, None).await?;
    settled(&seen.stand).await
}

async fn without_a_relay(seen: &mut Seen) -> Result<()> {
    for line in ["ls", "whoami", "show billing", "can GET billing/", "doctor", "forward billing", "status"] {
        seen.run(Ada, line, 7).await?;
    }
    seen.text(Ada, "curl -sS billing/", 7).await?;
    seen.text(Ada, "connect ledger-db", 7).await
}
