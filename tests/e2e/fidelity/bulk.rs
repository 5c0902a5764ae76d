//! Bodies far larger than any buffer, both ways, of unknown length: every byte in its place, in constant memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::stand::say;
use serde_json::json;

use super::place::{NODE, Place};
use super::{Area, Link, Protocol};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// How much the peak of a program may rise above what 16 MiB needed.
const GROWTH: u64 = 32 * MIB;

async fn each_way(place: &mut Place, protocol: Protocol, bytes: u64) -> Result<()> {
    for job in ["down", "up"] {
        let start = Instant::now();
        let job = json!({ "job": job, "bytes": bytes });
        let limit = Duration::from_mins(30);
        let (report, _) = place.call_patiently("caller.mjs", protocol, NODE, job.clone(), limit).await?;
        ensure!(report["status"] == 200, "{job}: {report}");
        for key in ["bytes", "sha256"] {
            ensure!(report[key] == report["expected"][key], "{job}: {report}");
        }
        say(&format!("{} {job} in {:.1?}", protocol.name(), start.elapsed()));
    }
    Ok(())
}

async fn in_constant_memory(place: &mut Place, protocol: Protocol, bytes: u64) -> Result<()> {
    each_way(place, protocol, 16 * MIB).await?;
    let before = place.peaks()?;
    each_way(place, protocol, bytes).await?;
    let after = place.peaks()?;
    for (who, (before, after)) in ["relay", "agent"].into_iter().zip(before.into_iter().zip(after)) {
        let (was, is) = (before / MIB, after / MIB);
        say(&format!("{who}: peak resident memory {was} MiB after 16 MiB each way, {is} MiB after all"));
        ensure!(after < before + GROWTH, "the {who} grew from {was} to {is} MiB");
    }
    Ok(())
}

pub(super) async fn ordinary(place: &mut Place, protocol: Protocol) -> Result<()> {
    in_constant_memory(place, protocol, 256 * MIB).await
}

async fn ten_gibibytes(protocol: Protocol, link: Link) -> Result<()> {
    let mut place = Place::start(Area::Bulk, link).await?;
    in_constant_memory(&mut place, protocol, 10 * GIB).await?;
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn long_ten_gibibytes_h1_quic() -> Result<()> {
    ten_gibibytes(Protocol::Http1, Link::Quic).await
}

#[tokio::test]
async fn long_ten_gibibytes_h2_quic() -> Result<()> {
    ten_gibibytes(Protocol::Http2, Link::Quic).await
}

#[tokio::test]
async fn long_ten_gibibytes_h1_tcp() -> Result<()> {
    ten_gibibytes(Protocol::Http1, Link::Tcp).await
}

#[tokio::test]
async fn long_ten_gibibytes_h2_tcp() -> Result<()> {
    ten_gibibytes(Protocol::Http2, Link::Tcp).await
}
