//! The agent is somewhere else at once: another address, another source port.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::load::{Book, Doubles, Load};
use postern_tests::netns::network::Family;
use postern_tests::stand::say;

use super::{BACK, Scene, survived};

impl Scene {
    /// The lines in which the relay said that tunnels were opened, and lost.
    fn tunnels(&mut self) -> Result<(usize, usize)> {
        let log = self.site.relay()?.log_text();
        let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
        Ok((count("tunnel open"), count("tunnel closed")))
    }

    /// Probes and streams while `event` happens; the same tunnels must carry them on.
    async fn moves(&mut self, event: impl AsyncFnOnce(&Self) -> Result<()>) -> Result<Book> {
        let before = self.tunnels()?;
        let live = self.live().await?;
        let (load, probes) = (self.mixed()?, self.probe()?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        event(self).await?;
        let moved = Instant::now();
        tokio::time::sleep(BACK + Duration::from_secs(1)).await;
        let book = Load::finish([load, probes]).await?;
        say(&book.summary());
        survived(live).await?;
        let took = book.recovers(moved, BACK)?;
        say(&format!("requests succeeded {took:?} after the move"));
        let failed: Vec<_> = book.failures().take(5).collect();
        ensure!(failed.is_empty(), "{failed:#?}");
        ensure!(self.tunnels()? == before, "tunnels did not move, they were made anew");
        book.reconcile(&self.upstream.arrived(), Doubles::Never)?;
        Ok(book)
    }
}

#[tokio::test]
async fn an_agent_with_another_address_keeps_its_tunnels() -> Result<()> {
    let mut scene = Scene::start(Family::V4, None).await?;
    // The old address is gone: nothing could come from it.
    scene.moves(async |scene| scene.network.move_agent(9).await).await?;
    scene.site.passed();
    Ok(())
}

#[tokio::test]
async fn a_nat_that_forgets_keeps_no_tunnel_from_working() -> Result<()> {
    let mut scene = Scene::start(Family::V4, Some(Duration::from_millis(5))).await?;
    scene
        .moves(async |scene| {
            scene.shim.as_ref().context("no shim")?.rebind();
            Ok(())
        })
        .await?;
    scene.site.passed();
    Ok(())
}
