//! Never "connected" and dead: the relay restarts or is killed, agents are killed or stand still, and many come back at once. How long
//! each recovery took is measured and bounded; what could not be answered meanwhile was said, and nothing arrived twice.

mod many;
mod silence;
mod standstill;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::counting::Counting;
use postern_tests::load::{Book, Doubles, Kind, Load, Outcome, Target};
use postern_tests::process::Signal;
use postern_tests::site::{Plan, Site};
use postern_tests::stand::say;

/// Requests succeed again within this time.
const BACK: Duration = Duration::from_secs(5);
/// Either end notices that the other is gone within this time (protocol.md, Liveness).
const IDLE: Duration = Duration::from_secs(20);
/// Machines are busy: a bound of the protocol is held to within this.
const SLACK: Duration = Duration::from_secs(2);
const READY: Duration = Duration::from_secs(30);

/// A relay and one agent, both on loopback.
struct Scene {
    site: Site,
    upstream: Counting,
    target: Target,
}

impl Scene {
    async fn start() -> Result<Self> {
        let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
        let mut site = Site::start(&Plan::on_loopback(&Counting::in_relay_toml(&["dc1"], "30s"))).await?;
        let services = upstream.in_agent_toml();
        let relay = format!("127.0.0.1:{}", site.port);
        site.enrol("dc1", &relay, &services, None).await?;
        let target = site.target("count", "wire").await?;
        let mut scene = Self { site, upstream, target };
        scene.site.start_agent("dc1").await?;
        scene.site.relay()?.wait_lines("tunnel open", 2, READY).await?;
        scene.answers(200, READY).await?;
        Ok(scene)
    }

    async fn answers(&self, status: u16, limit: Duration) -> Result<()> {
        self.site.wait_status(&self.target.at("/get/ready"), &self.target.token, status, limit).await
    }

    /// Some of everything, and probes.
    fn load(&self) -> Result<[Load; 2]> {
        let workers =
            [(Kind::Get, 2), (Kind::Upload, 1), (Kind::Duplex, 1), (Kind::Socket, 1), (Kind::Tcp, 1)];
        let load = Load::start(&self.target, &workers, Duration::from_millis(20))?;
        Ok([load, Load::probe(&self.target, Duration::from_millis(100))?])
    }

    /// What became of a load: everything right or reported, nothing doubled, and all well `limit` after `since`.
    async fn outcome(&self, loads: [Load; 2], since: Instant, limit: Duration) -> Result<Book> {
        let book = Load::finish(loads).await?;
        say(&book.summary());
        book.reconcile(&self.upstream.arrived(), Doubles::Idempotent)?;
        let took = book.recovers(since, limit)?;
        say(&format!("requests succeeded again after {took:?}"));
        Ok(book)
    }
}

#[tokio::test]
async fn a_relay_that_restarts_has_its_agent_back() -> Result<()> {
    let mut scene = Scene::start().await?;
    let loads = scene.load()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.site.stop_relay(Signal::TERM).await?;
    scene.site.start_relay().await?;
    let up = Instant::now();
    tokio::time::sleep(BACK + Duration::from_secs(1)).await;
    scene.outcome(loads, up, BACK).await?;
    scene.site.passed();
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_has_its_agent_back() -> Result<()> {
    let mut scene = Scene::start().await?;
    let loads = scene.load()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.site.stop_relay(Signal::KILL).await?;
    scene.site.start_relay().await?;
    let up = Instant::now();
    // Nobody told the agent: it has to notice.
    scene.answers(200, IDLE + BACK).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.outcome(loads, up, IDLE + BACK).await?;
    scene.site.passed();
    Ok(())
}

#[tokio::test]
async fn an_agent_that_is_killed_is_missed_and_taken_back() -> Result<()> {
    let mut scene = Scene::start().await?;
    let loads = scene.load()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.site.stop_agent("dc1", Signal::KILL).await?;
    let killed = Instant::now();
    scene.answers(503, IDLE + SLACK).await?;
    say(&format!("the relay knew after {:?}", killed.elapsed()));
    scene.site.start_agent("dc1").await?;
    let up = Instant::now();
    tokio::time::sleep(BACK + Duration::from_secs(1)).await;
    let book = scene.outcome(loads, up, BACK).await?;
    let broken = book
        .failures()
        .find(|record| record.kind == Kind::Get && matches!(record.outcome, Outcome::Broken(_)));
    ensure!(broken.is_none(), "the relay was there all the time: {broken:#?}");
    scene.site.passed();
    Ok(())
}
