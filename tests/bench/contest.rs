//! Takes a target, the programs between it and its backend, and a load; gives the samples of one measurement: rate, latency, CPU per
//! request of each program, and memory. What went wrong is kept beside them.

use std::time::Duration;

use anyhow::Result;
use postern_tests::process::Program;
use postern_tests::stand::say;

use crate::figures::Samples;
use crate::load::Load;
use crate::load::bulk::Way;
use crate::peers::envoy::Envoy;
use crate::peers::floor::Floor;
use crate::site::audit::AuditLines;
use crate::site::{BODY, Site};

pub(crate) const RATE: &str = "req/s";
pub(crate) const P50: &str = "p50 µs";
pub(crate) const P99: &str = "p99 µs";
/// CPU of all programs between caller and backend, in microseconds per request; then each one's own. A peer's programs stand where ours
/// would: a server on the relay's side, a tunnel's client on the agent's.
pub(crate) const PROXY: &str = "proxy CPU µs/req";
pub(crate) const RELAY: &str = "relay side";
pub(crate) const AGENT: &str = "agent side";
pub(crate) const CLIENT: &str = "caller side";
pub(crate) const BACKEND: &str = "backend";
/// Resident memory of all programs between caller and backend, after the load.
pub(crate) const MEMORY: &str = "RSS MiB";
/// Of large bodies: the rate, and CPU of all programs between in microseconds per MiB.
pub(crate) const DOWN: &str = "down MiB/s";
pub(crate) const UP: &str = "up MiB/s";
pub(crate) const DOWN_CPU: &str = "down CPU µs/MiB";
pub(crate) const UP_CPU: &str = "up CPU µs/MiB";

const MIB: f64 = 1024.0 * 1024.0;

/// A program that has a part in a target, and the figure that its CPU goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a>(pub(crate) &'static str, pub(crate) &'a Program);

/// What stands before nginx.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Before<'a> {
    Nothing,
    Postern,
    Envoy(&'a Envoy),
    Floor(&'a Floor),
}

impl<'a> Before<'a> {
    /// Targets without their peer are left out before they are measured.
    pub(crate) fn envoy(envoy: Option<&'a Envoy>) -> Self {
        envoy.map_or(Self::Nothing, Self::Envoy)
    }
}

/// CPU time of programs from now on.
struct Meter<'a>(Vec<(Part<'a>, Duration)>);

impl<'a> Meter<'a> {
    fn start(parts: &[Part<'a>]) -> Result<Self> {
        Ok(Self(parts.iter().map(|part| Ok((*part, part.1.cpu()?))).collect::<Result<_>>()?))
    }

    /// Microseconds of each program so far.
    fn read(&self) -> Result<Vec<(&'static str, f64)>> {
        let used = |(Part(figure, program), before): &(Part<'a>, Duration)| {
            Ok((*figure, program.cpu()?.saturating_sub(*before).as_secs_f64() * 1e6))
        };
        self.0.iter().map(used).collect()
    }
}

/// What a contest has so far.
#[derive(Debug, Default)]
pub(crate) struct Score {
    pub(crate) samples: Samples,
    pub(crate) notes: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Score {
    /// The same without samples and failures: after a warm-up.
    pub(crate) fn cleared(self) -> Self {
        Self { notes: self.notes, ..Self::default() }
    }

    /// Loads nginx or what stands before it.
    pub(crate) async fn through(
        &mut self,
        site: &mut Site,
        target: &str,
        before: Before<'_>,
        load: impl Future<Output = Result<Load>>,
    ) -> Result<Load> {
        let mut parts: Vec<Part<'_>> = site.nginx.iter().map(|program| Part(BACKEND, program)).collect();
        let mut audit = None;
        match before {
            Before::Nothing => {}
            Before::Postern => {
                parts.extend([Part(RELAY, &site.relay), Part(AGENT, &site.agent)]);
                audit = Some(&mut site.audit);
            }
            Before::Envoy(envoy) => parts.push(Part(RELAY, &envoy.program)),
            Before::Floor(floor) => {
                parts.extend([Part(RELAY, &floor.outer), Part(AGENT, &floor.inner)]);
            }
        }
        self.measure(target, &parts, audit, load).await
    }

    /// Runs `load` and keeps what it cost. `audit` is given where the relay writes down each request: it is done only then.
    pub(crate) async fn measure(
        &mut self,
        target: &str,
        parts: &[Part<'_>],
        mut audit: Option<&mut AuditLines>,
        load: impl Future<Output = Result<Load>>,
    ) -> Result<Load> {
        if let Some(audit) = &mut audit {
            audit.clear()?;
        }
        let meter = Meter::start(parts)?;
        let load = load.await?;
        match load.fault(BODY) {
            Some(fault) => self.fail(format!("{target}: {fault}")),
            None => {
                if let Some(audit) = audit {
                    audit.wait(load.requests).await?;
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "far from 2^53 requests")]
        let requests = load.requests.max(1) as f64;
        let (mut proxy, mut backend) = (None, None);
        for (figure, used) in meter.read()? {
            let each = used / requests;
            if figure == BACKEND {
                *backend.get_or_insert(0.0) += each;
            } else {
                self.samples.add(target, figure, each);
                *proxy.get_or_insert(0.0) += each;
            }
        }
        self.samples.add(target, RATE, load.per_second);
        let memory = proxy.map(|_| resident(parts)).transpose()?;
        let more =
            [(P50, load.p50_us), (P99, load.p99_us), (PROXY, proxy), (BACKEND, backend), (MEMORY, memory)];
        for (figure, value) in more {
            if let Some(value) = value {
                self.samples.add(target, figure, value);
            }
        }
        say(&format!("{target:<24} {:>10.0} {RATE}", load.per_second));
        Ok(load)
    }

    /// Runs a transfer that says how many MiB/s it had; keeps that and the CPU of the programs between, per MiB.
    pub(crate) async fn transfer(
        &mut self,
        target: &str,
        way: Way,
        mib: u64,
        parts: &[Part<'_>],
        transfer: impl Future<Output = Result<f64>>,
    ) -> Result<()> {
        let (rate, cpu) = match way {
            Way::Down => (DOWN, DOWN_CPU),
            Way::Up => (UP, UP_CPU),
        };
        let meter = Meter::start(parts)?;
        let per_second = transfer.await?;
        self.samples.add(target, rate, per_second);
        if !parts.is_empty() {
            let used: f64 = meter.read()?.iter().map(|(_, used)| used).sum();
            #[expect(clippy::cast_precision_loss, reason = "far from 2^53 MiB")]
            self.samples.add(target, cpu, used / mib as f64);
        }
        say(&format!("{target:<24} {per_second:>10.0} {rate}"));
        Ok(())
    }

    pub(crate) fn fail(&mut self, failure: String) {
        say(&failure);
        self.failures.push(failure);
    }
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far from 2^53 bytes")]
    let bytes = bytes as f64;
    bytes / MIB
}

/// Resident memory of all programs between caller and backend.
fn resident(parts: &[Part<'_>]) -> Result<f64> {
    let proxies = parts.iter().filter(|Part(figure, _)| *figure != BACKEND);
    proxies.map(|Part(_, program)| Ok(mib(program.memory()?.now))).sum()
}

/// The targets in the order of one round: each round begins with another, so that none always follows the same.
pub(crate) fn order<T: Copy>(targets: &[T], round: u32) -> Vec<T> {
    let mut order = targets.to_vec();
    let length = order.len().max(1);
    order.rotate_left(round.saturating_sub(1) as usize % length);
    order
}

/// Postern refuses who has no token and who lacks the scope: what is measured is what is promised.
pub(crate) async fn check(site: &Site, path: &str) -> Result<()> {
    let url = site.at(path);
    let body = site.http.get(&url, Some(&site.token)).await?.expect_status(200)?.body;
    anyhow::ensure!(body == "x".repeat(BODY), "{url}: not the body");
    site.http.get(&url, None).await?.expect_status(401)?;
    site.http.get(&url, Some(&site.narrow)).await?.expect_status(403)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_first_in_some_round() {
        let orders: Vec<_> = (1..=3).map(|round| order(&['a', 'b', 'c'], round)).collect();
        assert_eq!(orders, [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'a', 'b']]);
        assert!(order::<u8>(&[], 1).is_empty());
    }
}
