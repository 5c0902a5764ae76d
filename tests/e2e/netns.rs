//! Bad paths between agent and relay, in network namespaces: loss and delay, cuts, no UDP, small packets, IPv6 alone, addresses that
//! change. In each a counting upstream proves that nothing is lost or doubled without its caller being told, requests succeed again
//! within five seconds of the path's return, and streams live through what is shorter than the idle timeout.

mod moves;
mod outages;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use postern_tests::counting::Counting;
use postern_tests::load::live::Live;
use postern_tests::load::{Kind, Load, Target};
use postern_tests::netns::network::{Family, Network};
use postern_tests::shim::Shim;
use postern_tests::site::{Plan, Site};
use postern_tests::stand::say;

/// Requests succeed again within this time of the path's return.
const BACK: Duration = Duration::from_secs(5);
const PROBES: Duration = Duration::from_millis(100);
/// What an agent keeps unless it is told otherwise.
const TUNNELS: usize = 2;
const READY: Duration = Duration::from_secs(30);

/// A relay near, an agent and its upstream far.
struct Scene {
    // The site's programs end before the namespaces go.
    site: Site,
    upstream: Counting,
    target: Target,
    /// The long cable, where there is one.
    shim: Option<Shim>,
    network: Network,
}

impl Scene {
    /// Moves the test to the relay's side and starts everything; with a delay the agent dials the shim on the router.
    async fn start(family: Family, delay: Option<Duration>) -> Result<Self> {
        Self::before_the_agent(family, delay, "").await?.begin().await
    }

    /// Starts the agent and waits until it has both its tunnels and a request succeeds.
    async fn begin(mut self) -> Result<Self> {
        self.site.start_agent("dc1").await?;
        self.site.relay()?.wait_lines("tunnel open", TUNNELS, READY).await?;
        let url = self.target.at("/get/ready");
        self.site.wait_status(&url, &self.target.token, 200, READY).await?;
        Ok(self)
    }

    /// The same with an agent that is enrolled and not yet started, and has `more` in its agent.toml.
    async fn before_the_agent(family: Family, delay: Option<Duration>, more: &str) -> Result<Self> {
        let network = Network::create(family).await?;
        network.near.enter()?;
        let (loopback, any): (IpAddr, IpAddr) = match family {
            Family::V4 => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()),
            Family::V6 => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
        };
        let upstream = network.far.within(|| Counting::start(loopback))?;
        let relay = Counting::in_relay_toml(&["dc1"], "30s");
        let plan = Plan { callers: loopback, listen: any, relay };
        let mut site = Site::start(&plan).await?;
        let relay = SocketAddr::new(network.relay(), site.port);
        let shim = match delay {
            None => None,
            Some(delay) => {
                Some(Shim::start(&network.middle, (network.router(), site.port).into(), relay, delay)?)
            }
        };
        let dialled = shim.as_ref().map_or(relay, Shim::address).to_string();
        let services = upstream.in_agent_toml() + more;
        site.enrol("dc1", &dialled, &services, Some(&network.far)).await?;
        let target = site.target("count", "wire").await?;
        Ok(Self { site, upstream, target, shim, network })
    }

    /// A bit of everything, gently.
    fn mixed(&self) -> Result<Load> {
        let workers =
            [(Kind::Get, 2), (Kind::Upload, 1), (Kind::Duplex, 1), (Kind::Socket, 1), (Kind::Tcp, 1)];
        Load::start(&self.target, &workers, Duration::from_millis(20))
    }

    fn probe(&self) -> Result<Load> {
        Load::probe(&self.target, PROBES)
    }

    /// A stream of each kind that lives.
    async fn live(&self) -> Result<Vec<Live>> {
        Ok(vec![
            Live::download(&self.target).await?,
            Live::talk(Kind::Socket, &self.target).await?,
            Live::talk(Kind::Tcp, &self.target).await?,
        ])
    }
}

/// All of them must have lived; says how.
async fn survived(live: Vec<Live>) -> Result<()> {
    for stream in live {
        let story = stream.finish().await?;
        say(&format!("a stream lived: {story:?}"));
    }
    Ok(())
}
