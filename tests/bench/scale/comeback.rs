//! The relay is restarted under all its agents: how long until each is usable again, and how evenly they come. Time is counted from when
//! the relay says that it is ready.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::contest::Score;
use crate::fleet::Fleet;
use crate::load::quantile;
use crate::site::Site;

/// In slices of this length arrivals are counted: the fullest one shows how evenly they are spread.
const SLICE: Duration = Duration::from_millis(100);

pub(super) async fn measure(site: &mut Site, fleets: &[Fleet], score: &mut Score) -> Result<()> {
    for fleet in fleets {
        fleet.watch_arrivals();
    }
    let told = Instant::now();
    site.restart_relay().await?;
    let ready = Instant::now();
    for fleet in fleets {
        fleet.all_usable().await?;
    }
    let cpu = site.relay.cpu()?;
    // Some were back before anybody asked whether the relay was ready.
    let late =
        |at: Instant| u32::try_from(at.saturating_duration_since(ready).as_millis()).unwrap_or(u32::MAX);
    let mut arrivals: Vec<u32> = fleets.iter().flat_map(Fleet::arrivals).map(late).collect();
    let count = arrivals.len();
    let [half, most, last] = [0.5, 0.9, 1.0].map(|share| quantile(&mut arrivals, share).unwrap_or_default());
    let fullest = fullest(&arrivals);
    score.notes.push(format!(
        "comeback of {count} agents: relay away {:.2} s; after that half were usable in {:.2} s, nine tenths in {:.2} s, all in {:.2} s; at most {fullest} within {} ms; the relay used {:.2} s of CPU",
        ready.duration_since(told).as_secs_f64(),
        half / 1e3,
        most / 1e3,
        last / 1e3,
        SLICE.as_millis(),
        cpu.as_secs_f64(),
    ));
    Ok(())
}

/// The most arrivals in any slice; `sorted` in milliseconds.
fn fullest(sorted: &[u32]) -> usize {
    let slice = u32::try_from(SLICE.as_millis()).unwrap_or(u32::MAX);
    let within =
        |(index, start): (usize, &u32)| sorted[index..].iter().take_while(|at| **at - start < slice).count();
    sorted.iter().enumerate().map(within).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_slice_may_begin_anywhere() {
        assert_eq!(fullest(&[]), 0);
        assert_eq!(fullest(&[5]), 1);
        assert_eq!(fullest(&[0, 90, 110, 150, 189, 400]), 4);
    }
}
