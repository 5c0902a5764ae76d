//! An agent's certificate is renewed over its tunnels before it expires: no request notices, no tunnel closes, and what was renewed is
//! what a restarted agent shows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::MissedTickBehavior;

/// Renewed at half-life: every four seconds.
const TTL: &str = "cert_ttl = \"8s\"";
/// More than two lives: whoever is not renewed is out of date well before the end.
const WATCHED: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(100);

/// The leaf in the agent's identity: key, leaf, issuing CA and root are one file, replaced as a whole.
fn leaf(identity: &Path) -> Result<CertificateDer<'static>> {
    let pem = std::fs::read(identity)?;
    let first = CertificateDer::pem_slice_iter(&pem).next().context("no certificate")?;
    Ok(first?)
}

#[tokio::test]
async fn certificates_are_renewed_over_the_tunnel() -> Result<()> {
    let extra = Extra { agents: TTL.to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let url = stand.at("/billing/v1/invoices/7");
    let identity = stand.path("agent/identity.pem");
    let mut leaves = vec![leaf(&identity)?];
    let events = |event: &'static str| {
        stand.audit().map(|lines| lines.iter().filter(|line| line["event"] == event).count())
    };
    wait::until("both tunnels are open", wait::SOON, async || {
        events("tunnel-open").ok().filter(|open| *open >= 2)
    })
    .await?;

    say("a request every 100 ms, through several lives of the certificate");
    let start = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut calls, mut slowest) = (0, Duration::ZERO);
    while start.elapsed() < WATCHED {
        ticks.tick().await;
        let asked = Instant::now();
        let answer = stand.http.get(&url, Some(&token)).await.and_then(|answer| answer.expect_status(200));
        answer.with_context(|| format!("call {calls}, {:?} after the start", start.elapsed()))?;
        (calls, slowest) = (calls + 1, slowest.max(asked.elapsed()));
        let now = leaf(&identity)?;
        if leaves.last() != Some(&now) {
            say(&format!("a new certificate after {:.1?}", start.elapsed()));
            leaves.push(now);
        }
    }
    say(&format!("{calls} calls, the slowest {slowest:.1?}; {} certificates", leaves.len()));
    ensure!(leaves.len() > 3, "renewed {} times in {WATCHED:?}", leaves.len() - 1);
    ensure!(leaves.len() < 12, "renewed {} times in {WATCHED:?}: at half-life is enough", leaves.len() - 1);

    say("the relay saw the same, and no tunnel came or went");
    let renewals = leaves.len() - 1;
    stand.wait_audit(renewals, |line| line["event"] == "certificate-renewed").await?;
    let opened = events("tunnel-open")?;
    ensure!(events("tunnel-closed")? == 0 && opened == 2, "{opened} tunnels were opened");

    say("a restarted agent comes back with what was renewed: its first certificate is long out of date");
    stand.stop_agent(Signal::TERM).await?;
    let kept = leaf(&identity)?;
    ensure!(kept != leaves[0], "the first certificate is on the disk");
    stand.start_agent().await?;
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.wait_audit(4, |line| line["event"] == "tunnel-open").await?;
    let joins = stand.audit()?.iter().filter(|line| line["event"] == "join").count();
    ensure!(joins == 1, "{joins} joins: it did not come back by itself");

    say("and goes on renewing");
    wait::until("the next certificate", wait::SOON, async || {
        leaf(&identity).ok().filter(|now| *now != kept).map(drop)
    })
    .await?;
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}
