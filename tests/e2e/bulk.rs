//! Bodies of a gibibyte pass in constant memory, every byte in its place.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::http::{Http, empty, pattern_body, read_pattern, request};
use postern_tests::stand::{Stand, say};
use postern_tests::wait;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// How much the peak of a program may rise above what smaller transfers needed.
const GROWTH: u64 = 64 * MIB;
const LIMIT: Duration = Duration::from_mins(10);

async fn down(http: &Http, stand: &Stand, token: &str, bytes: u64) -> Result<()> {
    let url = stand.at(&format!("/echo/stream?bytes={bytes}"));
    let answer = http.stream(request("GET", &url, Some(token)).body(empty())?).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let received = wait::within("the download", LIMIT, read_pattern(answer.into_body())).await??;
    ensure!(received == bytes, "{received} of {bytes} bytes came");
    Ok(())
}

async fn up(http: &Http, stand: &Stand, token: &str, bytes: u64) -> Result<()> {
    let body = pattern_body(bytes, 64 * 1024, Duration::ZERO);
    let request = request("POST", &stand.at("/echo/sink"), Some(token)).body(body)?;
    // The answer's head comes when the last byte has arrived.
    let sunk = http.send_patiently(request, LIMIT).await?.expect_status(200)?.json()?;
    ensure!(sunk["received"] == bytes && sunk["fault"].is_null(), "{sunk}");
    Ok(())
}

/// `bytes` down and up over each of the named protocols; then the peaks must be near those of small transfers.
async fn constant_memory(sizes: [(&str, u64); 2]) -> Result<()> {
    let mut stand = Stand::start().await?;
    stand.issuer.access_ttl(Duration::from_mins(30)).await?;
    let token = stand.issuer.token("ada").await?;
    let (h1, h2) = (Http::h1(stand.pki.roots()?)?, Http::h2(stand.pki.roots()?)?);
    let http = |name: &str| if name == "HTTP/2" { &h2 } else { &h1 };
    for (name, _) in sizes {
        down(http(name), &stand, &token, 16 * MIB).await?;
        up(http(name), &stand, &token, 16 * MIB).await?;
    }
    let before = (stand.relay()?.memory()?, stand.agent()?.memory()?);
    for (name, bytes) in sizes {
        let mib = bytes / MIB;
        let start = Instant::now();
        down(http(name), &stand, &token, bytes).await?;
        say(&format!("{name}: {mib} MiB down in {:.1?}", start.elapsed()));
        let start = Instant::now();
        up(http(name), &stand, &token, bytes).await?;
        say(&format!("{name}: {mib} MiB up in {:.1?}", start.elapsed()));
    }
    let after = (stand.relay()?.memory()?, stand.agent()?.memory()?);
    for (name, before, after) in [("relay", before.0, after.0), ("agent", before.1, after.1)] {
        let (was, peak) = (before.peak / MIB, after.peak / MIB);
        say(&format!("{name}: peak resident memory {was} MiB after 16 MiB each way, {peak} MiB after all"));
        ensure!(after.peak < before.peak + GROWTH, "the {name} grew from {was} to {peak} MiB");
    }
    stand.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_each_way_in_constant_memory() -> Result<()> {
    constant_memory([("HTTP/1.1", GIB), ("HTTP/2", GIB / 8)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn long_four_gibibytes_each_way_in_constant_memory() -> Result<()> {
    constant_memory([("HTTP/1.1", 4 * GIB), ("HTTP/2", 4 * GIB)]).await
}
