//! The arguments of `proxy`.

use std::net::SocketAddr;

use clap::Args;

use super::login::Program;

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// Listen here for SOCKS5; beyond loopback needs --share
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:1080")]
    pub(crate) socks5: SocketAddr,
    /// Let other machines, and other users of this one, use it: needed to listen beyond loopback
    #[arg(long)]
    pub(crate) share: bool,
    #[command(flatten)]
    pub(crate) program: Program,
}
