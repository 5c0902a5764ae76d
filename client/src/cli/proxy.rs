//! The arguments of `proxy`.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;

use super::login::Program;

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// Listen here for SOCKS5, a port alone is one of 127.0.0.1; beyond loopback needs --share
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1080", value_parser = place)]
    pub(crate) socks5: SocketAddr,
    /// Let other machines, and other users of this one, use it: needed to listen beyond loopback
    #[arg(long)]
    pub(crate) share: bool,
    /// Serve browsers too: any page that you open can then have yours send GET requests to your services as you, though it cannot read
    /// the answers
    #[arg(long)]
    pub(crate) browser: bool,
    #[command(flatten)]
    pub(crate) program: Program,
}

/// `127.0.0.1:1080`, or `1080` alone.
fn place(text: &str) -> Result<SocketAddr, &'static str> {
    let alone = text.parse().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    alone.or_else(|_| text.parse()).map_err(|_| "write PORT or ADDR:PORT, such as 1080 or [::1]:1080")
}
