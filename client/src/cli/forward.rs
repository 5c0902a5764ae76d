//! The arguments of `forward`.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::login::Program;
use crate::forward::spec::Spec;

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// SERVICE, PORT:SERVICE or BIND:PORT:SERVICE
    #[arg(required = true, value_name = "SPEC")]
    pub(crate) specs: Vec<Spec>,
    /// Listen here [default: 127.0.0.1]; beyond loopback needs --share
    #[arg(long, value_name = "ADDR")]
    pub(crate) bind: Option<IpAddr>,
    /// Let other machines, and other users of this one, use it: needed to listen beyond loopback
    #[arg(long)]
    pub(crate) share: bool,
    /// Listen on a unix socket (0600) instead of a port
    #[arg(long, value_name = "PATH", conflicts_with_all = ["bind", "share"])]
    pub(crate) unix: Option<PathBuf>,
    /// End when the first connection that was of use is closed
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) program: Program,
    /// Run this with `POSTERN_PORT` and `POSTERN_URL` set, and exit with its code
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}
