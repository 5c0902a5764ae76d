//! A path as it is between an agent and a relay: three namespaces, `near` (relay and callers), `far` (agent and upstream) and the router
//! between them, on which packets are lost, dropped by kind, or all cut off. Neither end sees its own cable move. Addresses and MTU can
//! be changed while everything runs.
//!
//! Each side has an address of both families, unless only one is asked for. The router's own address on the far side is for a
//! [`crate::shim::Shim`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::Namespace;
use crate::wait;

/// Which addresses there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What happens to packets on the way, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Percent of all packets, each for itself.
    pub loss: u8,
    pub no_udp: bool,
    pub cut: bool,
}

/// The three namespaces and what joins them.
#[derive(Debug)]
pub struct Network {
    pub near: Namespace,
    pub middle: Namespace,
    pub far: Namespace,
    family: Family,
}

const WIRE: [(&str, &str); 2] = [("west", "1"), ("east", "2")];

impl Network {
    /// Everything joined, nothing lost.
    pub async fn create(family: Family) -> Result<Self> {
        let near = Namespace::create("near").await?;
        let middle = Namespace::create("middle").await?;
        let far = Namespace::create("far").await?;
        let network = Self { near, middle, far, family };
        for (end, (wire, side)) in [&network.near, &network.far].into_iter().zip(WIRE) {
            network.join(end, wire, side).await?;
        }
        let forward = match family {
            Family::V4 => "ipv4/ip_forward",
            Family::V6 => "ipv6/conf/all/forwarding",
        };
        network.middle.sysctl(forward, "1")?;
        network.weather(Weather::default()).await?;
        network.whole().await?;
        Ok(network)
    }

    /// Waits until a datagram comes through: wires take a moment to be up.
    async fn whole(&self) -> Result<()> {
        let bound = |at: IpAddr| {
            let socket = std::net::UdpSocket::bind((at, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let near = self.near.within(|| bound(self.relay()))?;
        let far = self.far.within(|| bound(self.agent()))?;
        let to = near.local_addr()?;
        wait::until("the path is whole", wait::SOON, async || {
            // Both fail while there is nothing yet.
            far.send_to(b"?", to).ok();
            near.recv(&mut [0]).ok()
        })
        .await
        .map(drop)
    }

    async fn join(&self, end: &Namespace, wire: &str, side: &str) -> Result<()> {
        let middle = &self.middle;
        let pair = format!("link add wan type veth peer name {wire} netns {}", middle.name());
        end.ip(&pair).await?;
        let (prefix, own, router, more) = match self.family {
            Family::V4 => ("24", format!("10.77.{side}.1"), format!("10.77.{side}.254"), ""),
            // Duplicate detection would take a second, in which nothing else is on the wire anyway.
            Family::V6 => ("64", format!("fd77:{side}::1"), format!("fd77:{side}::{:x}", 254), " nodad"),
        };
        for (place, device, address) in [(end, "wan", &own), (middle, wire, &router)] {
            // Packets go one by one: what is lost is one, not a batch that was to be cut up later.
            place.ip(&format!("link set {device} gso_max_segs 1 up")).await?;
            place.ip(&format!("addr add {address}/{prefix} dev {device}{more}")).await?;
        }
        end.ip(&format!("route add default via {router}")).await
    }

    fn address(&self, side: u8, host: u8) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(10, 77, side, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, side.into(), 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// Where the relay is.
    pub fn relay(&self) -> IpAddr {
        self.address(1, 1)
    }

    /// Where the agent is, until [`Self::move_agent`].
    pub fn agent(&self) -> IpAddr {
        self.address(2, 1)
    }

    /// The router as the agent sees it.
    pub fn router(&self) -> IpAddr {
        self.address(2, 254)
    }

    pub async fn weather(&self, weather: Weather) -> Result<()> {
        let loss = format!("numgen random mod 100 < {} drop; ", weather.loss);
        let rules: String =
            [(weather.cut, "drop; "), (weather.no_udp, "meta l4proto udp drop; "), (weather.loss > 0, &loss)]
                .into_iter()
                .filter_map(|(holds, rule)| holds.then_some(rule))
                .collect();
        // Through the router, and to a shim on it. Neighbours stay known: the wires are whole, it is the path that is not.
        let neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; ";
        let table = format!(
            "table inet path {{ \
             chain through {{ type filter hook forward priority 0; {rules}}}; \
             chain here {{ type filter hook input priority 0; {neighbours}{rules}}}; }}"
        );
        self.middle.filter(&table).await
    }

    /// The largest packet on the agent's wire; the relay's is left as it is and learns of it.
    pub async fn mtu(&self, bytes: u16) -> Result<()> {
        self.middle.ip(&format!("link set east mtu {bytes}")).await?;
        self.far.ip(&format!("link set wan mtu {bytes}")).await
    }

    /// Takes the agent's address away and gives it another one, as a laptop gets in another room.
    pub async fn move_agent(&self, host: u8) -> Result<()> {
        let (next, router) = (self.address(2, host), self.router());
        let (prefix, more) = if self.family == Family::V4 { ("24", "") } else { ("64", " nodad") };
        self.far.ip("addr flush dev wan scope global").await?;
        self.far.ip(&format!("addr add {next}/{prefix} dev wan{more}")).await?;
        self.far.ip(&format!("route replace default via {router}")).await
    }
}
