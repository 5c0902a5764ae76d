//! An agent comes in by a one-time invite alone, opens no port, and is gone for good the moment it is removed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, Signal, command};
use postern_tests::stand::{Stand, say};
use postern_tests::{http, wait};
use serde_json::Value;

/// The lines of `ss` for listening and unconnected sockets of one process, as (protocol, local address).
async fn sockets(pid: u32) -> Result<BTreeSet<(String, String)>> {
    let all = process::run(command("ss", ["-ltnupH"]), wait::SOON).await?.expect_code(0)?;
    let owned = format!("pid={pid},");
    let own = all.stdout.lines().filter(|line| line.contains(&owned));
    let field = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or_default().to_owned();
    Ok(own.map(|line| (field(line, 0), field(line, 4))).collect())
}

/// Whether something at a UDP port answers a QUIC handshake.
async fn answers_quic(port: u16, stand: &Stand) -> Result<bool> {
    let tls = http::tls(stand.pki.roots()?)?;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).context("TLS for QUIC")?;
    let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connecting = endpoint.connect(address, "localhost")?;
    let answer = tokio::time::timeout(Duration::from_secs(1), connecting).await;
    // A refusal by the other side is an answer too; silence, or a local time-out, is none.
    Ok(match answer {
        Err(_) | Ok(Err(quinn::ConnectionError::TimedOut)) => false,
        Ok(Ok(_) | Err(_)) => true,
    })
}

fn joins(lines: &[Value], outcome: &str) -> usize {
    lines.iter().filter(|line| line["event"] == "join" && line["outcome"] == outcome).count()
}

#[tokio::test]
async fn invites_are_for_one_use_by_one_agent_in_time() -> Result<()> {
    let mut stand = Stand::relay_only(postern_tests::stand::Extra::default()).await?;
    let good = stand.invite("dc1", &[]).await?;
    ensure!(good.starts_with("pst1.") && good.lines().count() == 1, "{good:?}");
    let parts: Vec<&str> = good.split('.').collect();
    let (pin, secret) = (parts[1], parts[2]);
    let flipped = |text: &str| {
        let first = if text.starts_with('A') { "B" } else { "A" };
        format!("{first}{}", &text[1..])
    };

    say("a forged secret is refused by the relay");
    let forged = stand.join(&format!("pst1.{pin}.{}", flipped(secret))).await?;
    ensure!(forged.code != 0, "{forged:?}");
    ensure!(!stand.path("agent").join("key.pem").exists() || !forged.stdout.contains("joined"));

    say("another root: the agent hangs up before it says the secret");
    let foreign = stand.join(&format!("pst1.{}.{secret}", flipped(pin))).await?;
    ensure!(foreign.code != 0, "{foreign:?}");

    say("text that is no invite");
    for nonsense in ["", "pst1", "pst1..", "hello", "pst2.a.b"] {
        let refused = stand.join(nonsense).await?;
        ensure!(refused.code != 0 && !refused.stderr.contains("panicked"), "{nonsense:?}: {refused:?}");
    }

    say("an expired invite");
    let short = stand.invite("dc1", &["--ttl", "1s"]).await?;
    let made = Instant::now();
    wait::until("a second", wait::SOON, async || {
        (made.elapsed() > Duration::from_millis(1500)).then_some(())
    })
    .await?;
    let late = stand.join(&short).await?;
    ensure!(late.code != 0, "{late:?}");

    say("the good one, which the man in the middle did not get");
    let joined = stand.join(&good).await?.expect_code(0)?;
    ensure!(!joined.stdout.contains(secret) && !joined.stderr.contains(secret), "{joined:?}");
    stand.start_agent().await?;
    let token = stand.issuer.token("ada").await?;
    stand.http.get(&stand.at("/billing/v1/invoices/7"), Some(&token)).await?.expect_status(200)?;

    say("the same again, for another agent");
    stand.edit(
        "agent.toml",
        &stand.path("agent").display().to_string(),
        &stand.path("second").display().to_string(),
    )?;
    let used = stand.join(&good).await?;
    ensure!(used.code != 0, "{used:?}");

    say("all of it is in the audit log: forged, expired and used refused, one granted, no secret");
    let lines = stand.wait_audit(4, |line| line["event"] == "join").await?;
    ensure!(joins(&lines, "refused") == 3 && joins(&lines, "granted") == 1, "{lines:?}");
    let text = std::fs::read_to_string(stand.path("audit.jsonl"))?;
    ensure!(!text.contains(secret), "the audit log has an invite's secret");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_agent_opens_no_port_and_is_removed_for_good() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let path = "/billing/v1/invoices/7";
    stand.http.get(&stand.at(path), Some(&token)).await?.expect_status(200)?;

    say("ss shows no listening port but the metrics on loopback");
    let metrics = stand.agent()?.wait_value("listening metrics=").await?;
    let open = sockets(stand.agent()?.pid()).await?;
    say(&format!("{open:?}"));
    let tcp: Vec<_> = open.iter().filter(|(protocol, _)| protocol == "tcp").collect();
    ensure!(tcp.len() == 1 && tcp[0].1 == metrics && metrics.starts_with("127.0.0.1:"), "{open:?}");
    // QUIC dials from UDP sockets, which `ss` cannot tell from listening ones: nothing answers there.
    for (_, address) in open.iter().filter(|(protocol, _)| protocol == "udp") {
        let port = address.rsplit(':').next().context("no port")?.parse()?;
        ensure!(!answers_quic(port, &stand).await?, "{address} answers a stranger");
    }
    ensure!(
        answers_quic(stand.port, &stand).await?,
        "the relay itself must answer, or the check shows nothing"
    );

    say("removed: what runs is cut at once");
    ensure!(stand.relay_command(&["agent", "ls"]).await?.expect_code(0)?.stdout.contains("dc1"));
    let held = stand.http.clone();
    let (url, bearer) = (stand.at("/echo/hold"), token.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { held.get(&url, Some(&bearer)).await });
    wait::until("it is held", wait::SOON, async || (stand.echo.waiting() == 1).then_some(())).await?;
    let start = Instant::now();
    stand.relay_command(&["agent", "remove", "dc1"]).await?.expect_code(0)?;
    let cut = wait::within("the held request is cut", Duration::from_secs(3), tasks.join_next()).await?;
    let cut = cut.context("no task")??;
    say(&format!("cut {:?} after `agent remove` began", start.elapsed()));
    ensure!(cut.as_ref().map_or(true, |answer| answer.status.is_server_error()), "{cut:?}");
    stand.http.get(&stand.at(path), Some(&token)).await?.expect_status(503)?;
    ensure!(!stand.relay_command(&["agent", "ls"]).await?.stdout.contains("dc1"));

    say("its certificate is still in date, but it does not come back");
    stand.stop_agent(Signal::TERM).await?;
    let attempt = wait::within("a start", wait::SOON * 3, stand.start_agent()).await?;
    ensure!(attempt.is_err(), "a removed agent became ready");
    stand.http.get(&stand.at(path), Some(&token)).await?.expect_status(503)?;

    say("a new invite, and it is back");
    drop(stand.stop_agent(Signal::KILL).await);
    let invite = stand.invite("dc1", &[]).await?;
    std::fs::rename(stand.path("agent"), stand.path("agent-before"))?;
    stand.join(&invite).await?.expect_code(0)?;
    stand.start_agent().await?;
    stand.http.get(&stand.at(path), Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}
