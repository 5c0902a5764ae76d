//! A process that stands still (SIGSTOP: a suspended machine, a closed laptop) is half-open for whoever talks to it: over QUIC nothing
//! comes any more, over TCP the kernel goes on saying yes.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::Result;
use postern_tests::counting::Counting;
use postern_tests::process::Signal;
use postern_tests::site::{Plan, Site, metric};
use postern_tests::stand::say;
use postern_tests::wait;

use super::{BACK, IDLE, READY, SLACK};

const SERVICES: &str = r#"
[services.quic]
agent = "dc1"
rules = [{ allow = "*", to = "* /**" }]

[services.tcp]
agent = "dc2"
rules = [{ allow = "*", to = "* /**" }]
"#;

#[tokio::test]
async fn agents_that_stand_still_are_missed_over_either_link() -> Result<()> {
    let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
    let mut site = Site::start(&Plan::on_loopback(SERVICES)).await?;
    let relay = format!("127.0.0.1:{}", site.port);
    let agents = [("dc1", "quic"), ("dc2", "tcp")];
    for (agent, link) in agents {
        let tables = format!(
            "[services.{link}]\nupstream = \"{}\"\n[tunnel]\ntransport = \"{link}\"\n",
            upstream.url()
        );
        site.enrol(agent, &relay, &tables, None).await?;
        site.start_agent(agent).await?;
    }
    let token = site.target("quic", "none").await?.token;
    let at = |link: &str| format!("{}/{link}/get/ready", site.url);
    let urls = [at("quic"), at("tcp")];
    for url in &urls {
        site.wait_status(url, &token, 200, READY).await?;
    }

    for (agent, _) in agents {
        site.agent(agent)?.signal(Signal::STOP)?;
    }
    let stopped = Instant::now();
    for (url, (_, link)) in urls.iter().zip(agents) {
        let left = (IDLE + SLACK).saturating_sub(stopped.elapsed());
        site.wait_status(url, &token, 503, left).await?;
        say(&format!("over {link} the relay knew after {:?}", stopped.elapsed()));
    }
    let http = site.http.clone();
    wait::until("the relay has let go of every tunnel", SLACK, async || {
        let left = metric(site.relay().ok()?, &http, "postern_relay_tunnels").await.ok()?;
        (left == 0).then_some(())
    })
    .await?;

    for (agent, _) in agents {
        site.agent(agent)?.signal(Signal::CONT)?;
    }
    let resumed = Instant::now();
    for (url, (_, link)) in urls.iter().zip(agents) {
        let left = BACK.saturating_sub(resumed.elapsed());
        site.wait_status(url, &token, 200, left).await?;
        say(&format!("over {link} it was back after {:?}", resumed.elapsed()));
    }
    site.passed();
    Ok(())
}

/// The other end: the relay stands still, and its agent must not call itself ready.
#[tokio::test]
async fn a_relay_that_stands_still_is_missed() -> Result<()> {
    let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
    let mut site = Site::start(&Plan::on_loopback(SERVICES)).await?;
    let relay = format!("127.0.0.1:{}", site.port);
    let agents = [("dc1", "quic"), ("dc2", "tcp")];
    let mut ready = Vec::new();
    for (agent, link) in agents {
        let tables = format!(
            "[services.{link}]\nupstream = \"{}\"\n[tunnel]\ntransport = \"{link}\"\n",
            upstream.url()
        );
        site.enrol(agent, &relay, &tables, None).await?;
        site.start_agent(agent).await?;
        ready.push(format!("http://{}/readyz", site.agent(agent)?.wait_value("listening metrics=").await?));
    }
    for url in &ready {
        site.wait_status(url, "", 200, READY).await?;
    }
    site.relay()?.signal(Signal::STOP)?;
    let stopped = Instant::now();
    for (url, (_, link)) in ready.iter().zip(agents) {
        let left = (IDLE + SLACK).saturating_sub(stopped.elapsed());
        site.wait_status(url, "", 503, left).await?;
        say(&format!("over {link} the agent knew after {:?}", stopped.elapsed()));
    }
    site.relay()?.signal(Signal::CONT)?;
    let resumed = Instant::now();
    for (url, (_, link)) in ready.iter().zip(agents) {
        let left = BACK.saturating_sub(resumed.elapsed());
        site.wait_status(url, "", 200, left).await?;
        say(&format!("over {link} it was back after {:?}", resumed.elapsed()));
    }
    site.passed();
    Ok(())
}
