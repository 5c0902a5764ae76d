//! Many agents lose their relay at the same moment, and come back without falling over each other.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use postern_tests::counting::Counting;
use postern_tests::http::Http;
use postern_tests::process::Signal;
use postern_tests::site::{Plan, Site, metric};
use postern_tests::stand::say;
use postern_tests::wait;

use super::READY;

/// A thousand of them are the benchmark's `scale`.
const AGENTS: u16 = 50;
/// How long the last of them may take, with all programs on a machine of two cores.
const ALL_BACK: Duration = Duration::from_secs(15);

#[tokio::test]
async fn fifty_agents_come_back_at_once() -> Result<()> {
    let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
    let names: Vec<String> = (0..AGENTS).map(|n| format!("agent-{n}")).collect();
    let mut services = String::new();
    for name in &names {
        writeln!(
            services,
            "[services.{name}]\nagent = \"{name}\"\nrules = [{{ allow = \"*\", to = \"* /**\" }}]"
        )?;
    }
    let mut site = Site::start(&Plan::on_loopback(&services)).await?;
    let relay = format!("127.0.0.1:{}", site.port);
    let upstream = upstream.url();
    let tables =
        |name: &str| format!("[services.{name}]\nupstream = \"{upstream}\"\n[tunnel]\nconnections = 1\n");
    let agents: Vec<_> = names.iter().map(|name| (name.clone(), tables(name))).collect();
    site.enrol_all(&agents, &relay).await?;
    for name in &names {
        site.start_agent(name).await?;
    }
    let token = site.target("none", "none").await?.token;
    for name in &names {
        site.wait_status(&format!("{}/{name}/get/ready", site.url), &token, 200, READY).await?;
    }

    site.stop_relay(Signal::TERM).await?;
    site.start_relay().await?;
    let up = Instant::now();
    let urls: Vec<_> = names.iter().map(|name| format!("{}/{name}/get/again", site.url)).collect();
    let mut took = try_join_all(urls.iter().map(|url| back(&site.http, url, &token, up))).await?;
    took.sort_unstable();
    let (first, last) = (took.first().context("none")?, took.last().context("none")?);
    say(&format!(
        "{AGENTS} agents: the first after {first:?}, half after {:?}, the last after {last:?}",
        took[took.len() / 2]
    ));
    ensure!(*last <= ALL_BACK, "the last came after {last:?}");
    // Where both links were tried at once, one of them is let go.
    let http = site.http.clone();
    wait::until("each has one tunnel", ALL_BACK, async || {
        let tunnels = metric(site.relay().ok()?, &http, "postern_relay_tunnels").await.ok()?;
        (tunnels == i64::from(AGENTS)).then_some(())
    })
    .await?;
    site.passed();
    Ok(())
}

/// How long after `up` a service answered.
async fn back(http: &Http, url: &str, token: &str, up: Instant) -> Result<Duration> {
    wait::until(url, ALL_BACK * 2, async || {
        let answer = http.get(url, Some(token)).await.ok()?;
        (answer.status == 200).then(|| up.elapsed())
    })
    .await
}
