//! Everything at once while everything restarts: small requests, uploads, two-way streams, WebSocket and TCP connections over two
//! agents, which are stopped and killed in turn, as is the relay. Not one answer is wrong, every failure is told, nothing arrives twice
//! that may not; at the end memory has stayed flat and nothing is left behind. A minute; ten with `tests/run --long`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::counting::Counting;
use postern_tests::load::{Book, Doubles, Kind, Load, Outcome, Target};
use postern_tests::process::Signal;
use postern_tests::site::{Plan, Site, metric};
use postern_tests::stand::say;
use postern_tests::wait;

const WORKERS: [(Kind, usize); 5] =
    [(Kind::Get, 6), (Kind::Upload, 2), (Kind::Duplex, 2), (Kind::Socket, 2), (Kind::Tcp, 2)];
const PAUSE: Duration = Duration::from_millis(10);
const READY: Duration = Duration::from_secs(30);
/// Between two restarts: an agent that was killed is missed within the idle timeout of 20 s, the others carry on meanwhile.
const STEP: Duration = Duration::from_secs(6);
/// Connections to a relay that was stopped may be refused until this long after the next one listens.
const AFTER: Duration = Duration::from_secs(1);
/// Memory may move this much while nothing restarts: arenas fill, caches too.
const MARGIN: u64 = 12 << 20;

struct Scene {
    site: Site,
    upstream: Counting,
    target: Target,
    /// When there was no relay.
    away: Vec<(Instant, Instant)>,
    /// When an agent was restarted in order, and nothing else had happened yet.
    orderly: Option<(Instant, Instant)>,
}

impl Scene {
    async fn start() -> Result<Self> {
        let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
        let mut site =
            Site::start(&Plan::on_loopback(&Counting::in_relay_toml(&["dc1", "dc2"], "30s"))).await?;
        let tables = upstream.in_agent_toml();
        let relay = format!("127.0.0.1:{}", site.port);
        for agent in ["dc1", "dc2"] {
            site.enrol(agent, &relay, &tables, None).await?;
            site.start_agent(agent).await?;
        }
        site.relay()?.wait_lines("tunnel open", 4, READY).await?;
        let target = site.target("count", "wire").await?;
        let scene = Self { site, upstream, target, away: Vec::new(), orderly: None };
        let ready = scene.target.at("/get/ready");
        scene.site.wait_status(&ready, &scene.target.token, 200, READY).await?;
        Ok(scene)
    }

    async fn restart_agent(&mut self, name: &str, signal: Signal) -> Result<()> {
        let from = Instant::now();
        self.site.stop_agent(name, signal).await?;
        self.site.start_agent(name).await?;
        tokio::time::sleep(STEP).await;
        if signal == Signal::TERM {
            self.orderly.get_or_insert((from, Instant::now()));
        }
        Ok(())
    }

    async fn restart_relay(&mut self, signal: Signal) -> Result<()> {
        let from = Instant::now();
        self.site.stop_relay(signal).await?;
        self.site.start_relay().await?;
        self.away.push((from, Instant::now() + AFTER));
        // Both agents are back, however they learned of it.
        self.site.relay()?.wait_lines("tunnel open", 4, READY).await?;
        tokio::time::sleep(STEP / 2).await;
        Ok(())
    }

    /// Everything that may restart does.
    async fn round(&mut self) -> Result<()> {
        self.restart_agent("dc1", Signal::TERM).await?;
        self.restart_agent("dc2", Signal::KILL).await?;
        self.restart_relay(Signal::TERM).await?;
        self.restart_agent("dc2", Signal::TERM).await?;
        self.restart_relay(Signal::KILL).await?;
        self.restart_agent("dc1", Signal::KILL).await
    }

    /// Leaves everything alone for a while: resident memory must not grow.
    async fn stays_flat(&mut self, span: Duration) -> Result<()> {
        // What the restarts left is done with first.
        tokio::time::sleep(span / 4).await;
        let before = self.memory()?;
        tokio::time::sleep(span * 3 / 4).await;
        let after = self.memory()?;
        say(&format!("resident, in MiB: {:?}, then {:?}", before.map(|b| b >> 20), after.map(|b| b >> 20)));
        let has_grown = before.iter().zip(after).any(|(before, after)| after > before + before / 10 + MARGIN);
        ensure!(!has_grown, "memory grew from {before:?} to {after:?} bytes");
        Ok(())
    }

    /// Of the relay and both agents.
    fn memory(&mut self) -> Result<[u64; 3]> {
        Ok([
            self.site.relay()?.memory()?.now,
            self.site.agent("dc1")?.memory()?.now,
            self.site.agent("dc2")?.memory()?.now,
        ])
    }

    /// With the load gone, nobody holds anything any more: no request, no stream, no connection but the test's own, no tunnel of before.
    async fn nothing_is_left(&mut self) -> Result<()> {
        let http = self.site.http.clone();
        let mut left = String::new();
        let found = wait::until("nothing is in flight", Duration::from_secs(10), async || {
            let relay = self.site.relay().ok()?;
            let connections = metric(relay, &http, "postern_relay_connections").await.ok()?;
            let tunnels = metric(relay, &http, "postern_relay_tunnels").await.ok()?;
            let mut counts =
                vec![("relay", metric(relay, &http, "postern_relay_requests_in_flight").await.ok()?)];
            for agent in ["dc1", "dc2"] {
                let program = self.site.agent(agent).ok()?;
                counts.push((agent, metric(program, &http, "postern_agent_requests_in_flight").await.ok()?));
            }
            let open = self.upstream.open();
            left =
                format!("{counts:?}, {open} at the upstream, {connections} connections, {tunnels} tunnels");
            let is_idle = open == 0 && counts.iter().all(|(_, count)| *count == 0);
            (is_idle && connections <= 1 && tunnels == 4).then_some(())
        })
        .await;
        found.map_err(|error| error.context(left))
    }

    /// What may be said of all that was done.
    fn judge(&self, book: &Book) -> Result<()> {
        book.reconcile(&self.upstream.arrived(), Doubles::Idempotent)?;
        // A connection may break while there is no relay. What has begun may end early where an agent was killed, and an upload that is
        // refused unread may meet a closed connection; a small request is answered.
        let broken: Vec<_> = book
            .failures()
            .filter(|record| matches!(record.outcome, Outcome::Broken(_)))
            .filter(|record| record.kind == Kind::Get)
            .filter(|record| !self.away.iter().any(|(from, to)| record.overlaps(*from, *to)))
            .take(5)
            .collect();
        ensure!(broken.is_empty(), "broken though the relay was there: {broken:#?}");
        if let Some((from, to)) = self.orderly {
            let failed: Vec<_> = book.failures().filter(|r| r.start >= from && r.end <= to).take(5).collect();
            ensure!(failed.is_empty(), "an agent left in order, and another was there: {failed:#?}");
        }
        Ok(())
    }
}

/// Rounds of restarts for as long as `restarts` says, then quiet for `quiet`.
async fn run(restarts: Duration, quiet: Duration) -> Result<()> {
    let mut scene = Scene::start().await?;
    let start = Instant::now();
    let load = Load::start(&scene.target, &WORKERS, PAUSE)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    loop {
        scene.round().await?;
        if start.elapsed() >= restarts {
            break;
        }
    }
    scene.stays_flat(quiet).await?;
    let (book, took) = (Load::finish([load]).await?, start.elapsed());
    say(&format!("{} acts in {took:.0?}: {}", book.records.len(), book.summary()));
    scene.judge(&book)?;
    scene.nothing_is_left().await?;
    ensure!(book.right() > 1000, "{} acts succeeded", book.right());
    scene.site.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_everything_with_restarts() -> Result<()> {
    run(Duration::from_secs(30), Duration::from_secs(16)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ten_minutes_of_everything_with_restarts() -> Result<()> {
    run(Duration::from_mins(7), Duration::from_mins(3)).await
}
