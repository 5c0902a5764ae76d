//! HAProxy (Debian) as the balancer before a relay: takes a port and the relay's, passes TCP on as it is, and says for whom with the PROXY
//! protocol, version 2.

use std::path::Path;

use anyhow::Result;

use crate::process::{self, Program};
use crate::wait;

#[derive(Debug)]
pub struct Balancer {
    pub port: u16,
    _program: Program,
}

impl Balancer {
    /// From 127.0.0.3, which a test can tell apart from everybody else on loopback. Its health checks speak LOCAL.
    pub async fn start(dir: &Path, relay: u16) -> Result<Self> {
        let port = wait::free_port()?;
        let config = dir.join("haproxy.cfg");
        let text = format!(
            "global\n  maxconn 200\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend in\n  bind 127.0.0.1:{port}\n  default_backend relay\n\
             backend relay\n  source 127.0.0.3\n  server relay 127.0.0.1:{relay} send-proxy-v2 check check-send-proxy inter 200ms\n"
        );
        std::fs::write(&config, text)?;
        let mut command = process::command("haproxy", ["-db", "-f"]);
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        command.arg(&config).env("PATH", path);
        let mut program = Program::start("haproxy", command, &dir.join("haproxy.log"))?;
        let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
        wait::until("haproxy listens", wait::SOON, listens).await?;
        anyhow::ensure!(program.is_running(), "{}", program.tail());
        Ok(Self { port, _program: program })
    }
}
