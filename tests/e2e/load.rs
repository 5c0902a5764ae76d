//! Ten thousand requests over a hundred connections: every one is answered, reaches the upstream once, and is in the audit log.

use std::time::Instant;

use anyhow::{Result, ensure};
use postern_tests::http::Http;
use postern_tests::stand::{Stand, say};
use tokio::task::JoinSet;

const CONNECTIONS: u64 = 100;
const EACH: u64 = 100;
const ALL: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_over_a_hundred_connections() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let cpu = (stand.relay()?.cpu()?, stand.agent()?.cpu()?);
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CONNECTIONS {
        // A client of its own has a connection of its own; every fifth speaks HTTP/2.
        let roots = stand.pki.roots()?;
        let http = if caller % 5 == 0 { Http::h2(roots)? } else { Http::h1(roots)? };
        let (url, token) = (stand.at("/billing/v1/invoices"), token.clone());
        callers.spawn(async move {
            for n in 0..EACH {
                let url = format!("{url}/{caller}-{n}");
                let answer = http.get(&url, Some(&token)).await?.expect_status(200)?;
                let asked = format!("\"uri\":\"/v1/invoices/{caller}-{n}\"");
                ensure!(answer.text().contains(&asked), "{url} was answered {}", answer.text());
            }
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let took = start.elapsed();
    let (relay, agent) = (stand.relay()?.cpu()?, stand.agent()?.cpu()?);
    let cpu = (relay.saturating_sub(cpu.0), agent.saturating_sub(cpu.1));
    let each = |cpu: std::time::Duration| cpu.as_micros() / ALL as u128;
    say(&format!(
        "{ALL} requests in {took:.1?}; CPU per request: relay {} µs, agent {} µs",
        each(cpu.0),
        each(cpu.1)
    ));

    let mut uris: Vec<String> = stand.nginx.seen().iter().map(|line| line["uri"].to_string()).collect();
    ensure!(uris.len() == ALL, "nginx saw {} requests", uris.len());
    uris.sort();
    uris.dedup();
    ensure!(uris.len() == ALL, "some arrived twice, others never");
    stand.wait_audit(ALL, |line| line["event"] == "end").await?;
    let lines = stand.audit()?;
    let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
    ensure!(count("decision") == ALL && count("end") == ALL, "{} and {}", count("decision"), count("end"));
    stand.passed();
    Ok(())
}
