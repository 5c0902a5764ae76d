//! The path is bad, or away for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::load::{Book, Doubles, Load, Outcome};
use postern_tests::netns::network::{Family, Weather};
use postern_tests::stand::say;

use super::{BACK, Scene, survived};

/// How long each of the bad paths is used.
const WHILE: Duration = Duration::from_secs(6);

impl Scene {
    /// Uses the path as it is for a while: everything must be right, once.
    async fn works(self, at_least: usize) -> Result<()> {
        let live = self.live().await?;
        let (load, probes) = (self.mixed()?, self.probe()?);
        tokio::time::sleep(WHILE).await;
        let book = Load::finish([load, probes]).await?;
        say(&book.summary());
        survived(live).await?;
        let failed: Vec<_> = book.failures().take(5).collect();
        ensure!(failed.is_empty(), "{failed:#?}");
        ensure!(book.right() >= at_least, "{} acts in {WHILE:?}", book.right());
        book.reconcile(&self.upstream.arrived(), Doubles::Never)?;
        self.site.passed();
        Ok(())
    }

    /// Cuts the path for `away`, under a load and with open streams, which must all live; gives what became of the load, and when the
    /// path came back.
    async fn cut(&self, away: Duration, live: bool, doubles: Doubles) -> Result<(Book, Instant)> {
        let streams = if live { self.live().await? } else { Vec::new() };
        let (load, probes) = (self.mixed()?, self.probe()?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.network.weather(Weather { cut: true, ..Weather::default() }).await?;
        tokio::time::sleep(away).await;
        self.network.weather(Weather::default()).await?;
        let back = Instant::now();
        tokio::time::sleep(BACK + Duration::from_secs(2)).await;
        let book = Load::finish([load, probes]).await?;
        say(&format!("a cut of {away:?}: {}", book.summary()));
        book.reconcile(&self.upstream.arrived(), doubles)?;
        survived(streams).await?;
        Ok((book, back))
    }
}

#[tokio::test]
async fn two_percent_loss_and_fifty_milliseconds_each_way() -> Result<()> {
    let scene = Scene::start(Family::V4, Some(Duration::from_millis(50))).await?;
    scene.network.weather(Weather { loss: 2, ..Weather::default() }).await?;
    // Six seconds are some fifty round trips for each of six workers and the probes.
    scene.works(60).await
}

#[tokio::test]
async fn packets_of_1280_bytes() -> Result<()> {
    let scene = Scene::before_the_agent(Family::V4, None, "").await?;
    scene.network.mtu(1280).await?;
    scene.begin().await?.works(200).await
}

#[tokio::test]
async fn ipv6_alone() -> Result<()> {
    Scene::start(Family::V6, None).await?.works(200).await
}

#[tokio::test]
async fn a_cut_of_five_seconds_ends_nothing() -> Result<()> {
    let scene = Scene::start(Family::V4, None).await?;
    let (book, back) = scene.cut(Duration::from_secs(5), true, Doubles::Never).await?;
    let took = book.recovers(back, BACK)?;
    say(&format!("requests succeeded {took:?} after the path's return"));
    // Shorter than the idle timeout: all that was under way is answered, late.
    let failed: Vec<_> = book.failures().take(5).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    scene.site.passed();
    Ok(())
}

#[tokio::test]
async fn a_cut_of_fifteen_seconds_ends_no_stream() -> Result<()> {
    let scene = Scene::start(Family::V4, None).await?;
    let (book, back) = scene.cut(Duration::from_secs(15), true, Doubles::Idempotent).await?;
    let took = book.recovers(back, BACK)?;
    say(&format!("requests succeeded {took:?} after the path's return"));
    scene.site.passed();
    Ok(())
}

/// The kernel repeats what is lost ever more slowly and nothing hurries it, so only the shorter cut must leave streams alive.
#[tokio::test]
async fn cuts_under_the_tcp_link() -> Result<()> {
    let tcp = "[tunnel]\ntransport = \"tcp\"\n";
    let scene = Scene::before_the_agent(Family::V4, None, tcp).await?.begin().await?;
    let (book, back) = scene.cut(Duration::from_secs(5), true, Doubles::Never).await?;
    let took = book.recovers(back, BACK)?;
    say(&format!("requests succeeded {took:?} after the path's return"));
    let failed: Vec<_> = book.failures().take(5).collect();
    ensure!(failed.is_empty(), "{failed:#?}");

    let (book, back) = scene.cut(Duration::from_secs(12), false, Doubles::Idempotent).await?;
    let took = book.recovers(back, BACK)?;
    say(&format!("requests succeeded {took:?} after the path's return"));
    scene.site.passed();
    Ok(())
}

#[tokio::test]
async fn long_a_cut_of_a_minute_is_told_and_passes() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let scene = Scene::start(family, None).await?;
        let (book, back) = scene.cut(Duration::from_mins(1), false, Doubles::Idempotent).await?;
        let took = book.recovers(back, BACK)?;
        say(&format!("requests succeeded {took:?} after the path's return"));
        let told = book.failures().filter(|record| record.outcome == Outcome::Refused(503)).count();
        ensure!(told > 100, "without a tunnel callers are told so at once: {}", book.summary());
        scene.site.passed();
    }
    Ok(())
}
