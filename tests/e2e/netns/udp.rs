//! UDP is dropped while TCP goes through, as many networks do: agents take the TCP link, and QUIC again once it works.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::load::{Doubles, Load};
use postern_tests::netns::network::{Family, Weather};
use postern_tests::stand::say;

use super::{BACK, Scene, TUNNELS, survived};

/// A heartbeat is late after some seconds, QUIC's handshake gets none back, and only then TCP is tried.
const OVER: Duration = Duration::from_secs(30);
/// Between the tries of QUIC, which usually are minutes apart.
const RETRY: &str = "[tunnel]\nretry_quic = \"2s\"\n";

const ON_TCP: &str = "this tunnel runs over TCP now";
const ON_QUIC: &str = "this tunnel runs over QUIC again";

#[tokio::test]
async fn without_udp_agents_use_tcp_and_return_to_quic() -> Result<()> {
    let mut scene = Scene::before_the_agent(Family::V4, None, RETRY).await?.begin().await?;

    say("UDP is dropped under a working tunnel");
    let (load, probes) = (scene.mixed()?, scene.probe()?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.network.weather(Weather { no_udp: true, ..Weather::default() }).await?;
    let dropped = Instant::now();
    scene.site.agent("dc1")?.wait_lines(ON_TCP, TUNNELS, OVER).await?;
    let over = Instant::now();
    say(&format!("over to TCP after {:?}", dropped.elapsed()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let book = Load::finish([load, probes]).await?;
    say(&book.summary());
    book.reconcile(&scene.upstream.arrived(), Doubles::Idempotent)?;
    book.recovers(over, BACK)?;

    say("UDP is back: QUIC is taken, and nothing is lost by it");
    let live = scene.live().await?;
    let (load, probes) = (scene.mixed()?, scene.probe()?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.network.weather(Weather::default()).await?;
    let restored = Instant::now();
    scene.site.agent("dc1")?.wait_lines(ON_QUIC, TUNNELS, OVER).await?;
    say(&format!("back on QUIC after {:?}", restored.elapsed()));
    tokio::time::sleep(BACK).await;
    let book = Load::finish([load, probes]).await?;
    say(&book.summary());
    survived(live).await?;
    let failed: Vec<_> = book.failures().take(5).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    book.reconcile(&scene.upstream.arrived(), Doubles::Never)?;
    scene.site.passed();
    Ok(())
}
