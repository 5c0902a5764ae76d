//! A flood of requests without tokens does not fill the audit log: the first ones are written whole, the rest by their number, and none is
//! missing. Good callers have their lines all the while.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::http::Http;
use postern_tests::process::Signal;
use postern_tests::stand::{Stand, say};
use serde_json::Value;
use tokio::task::JoinSet;

/// Of requests without tokens, and of those with bad ones.
const FLOOD: usize = 1500;
const AT_ONCE: usize = 50;
const PATH: &str = "/billing/v1/invoices/7";

/// Sends them, many at once; gives how many were answered.
async fn flood(stand: &Stand, token: Option<&'static str>) -> Result<usize> {
    let (h2, url) = (Http::h2(stand.pki.roots()?)?, stand.at(PATH));
    let mut callers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (h2, url) = (h2.clone(), url.clone());
        callers.spawn(async move {
            for _ in 0..FLOOD / AT_ONCE {
                let status = h2.get(&url, token).await?.status.as_u16();
                ensure!(matches!(status, 401 | 429), "{status}");
            }
            Ok(FLOOD / AT_ONCE)
        });
    }
    let mut answered = 0;
    while let Some(done) = callers.join_next().await {
        answered += done??;
    }
    Ok(answered)
}

fn number(line: &Value) -> usize {
    line["count"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_flood_is_counted_and_good_callers_keep_their_lines() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let before = stand.audit()?.iter().filter(|line| line["event"] == "end").count();

    say("a flood without tokens and with bad ones, and good calls meanwhile");
    let mut answered = flood(&stand, None).await?;
    let mut good = Vec::new();
    for _ in 0..30 {
        let answer = stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(200)?;
        good.push(answer.header("x-request-id").to_owned());
    }
    answered += flood(&stand, Some("a.b.c")).await?;
    say("what was counted is told within seconds");
    let told = tokio::time::timeout(Duration::from_secs(25), async {
        loop {
            if let Ok(lines) = stand.wait_audit(1, |line| line["event"] == "refused-many").await {
                return lines;
            }
        }
    });
    let told = told.await.context("no count")?;
    ensure!(told[0]["address"] == "127.0.0.1" && told[0]["seconds"].as_u64() >= Some(1), "{told:?}");

    say("and at the end all of it: none is missing, and none of the good ones was counted");
    stand.stop_relay(Signal::TERM).await?;
    let lines = stand.audit()?;
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let ends = of("end");
    for id in &good {
        let both = lines.iter().filter(|line| line["request_id"] == **id).count();
        ensure!(both == 2, "{both} lines of {id}");
    }
    let whole = ends.len() - before - good.len();
    let counted: usize = of("refused-many").iter().map(|line| number(line)).sum();
    say(&format!(
        "{answered} refused: {whole} whole, {counted} counted in {} lines",
        of("refused-many").len()
    ));
    ensure!(whole + counted == answered, "{whole} + {counted} of {answered}");
    ensure!(whole >= 600 && whole < answered / 2, "{whole} of {answered} have lines");
    let denied = of("decision").iter().filter(|line| line["outcome"] == "deny").count();
    ensure!(denied <= whole, "{denied} decisions of {whole} requests");
    let reasons = |name: &str| -> u64 {
        of("refused-many").iter().filter_map(|line| line["reasons"][name].as_u64()).sum()
    };
    ensure!(reasons("no-token") > 0 && reasons("too-many-failures") > 0, "{:?}", of("refused-many"));

    say("the log is whole, and what was counted is among what was denied");
    let file = stand.path("audit.jsonl");
    let file = file.to_str().context("the path is not text")?;
    stand.relay_command(&["audit", "verify", file, "--numbers-only"]).await?.expect_code(0)?;
    let found = stand.relay_command(&["audit", "find", "--since", "1h"]).await?.expect_code(0)?;
    ensure!(found.stdout.contains("refused-many"), "{}", found.stdout.len());
    stand.passed();
    Ok(())
}
