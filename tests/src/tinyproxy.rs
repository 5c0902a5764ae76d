//! An HTTP proxy by others, as networks have it that let nobody out directly: tinyproxy, with a password.

use anyhow::{Context, Result};

use crate::process::{Program, command};
use crate::stand::Stand;
use crate::wait;

/// Lets `ada` with a password through to `target` alone.
pub async fn start(stand: &Stand, port: u16, target: u16) -> Result<Program> {
    let config = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nBasicAuth ada secret\nConnectPort {target}\n"
    );
    let file = stand.path("tinyproxy.conf");
    std::fs::write(&file, config)?;
    let mut proxy = command("tinyproxy", ["-d", "-c"]);
    proxy.arg(&file);
    let proxy = Program::start("tinyproxy", proxy, &stand.path("tinyproxy.log"))?;
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
    wait::until("tinyproxy listens", wait::SOON, listens).await.with_context(|| proxy.tail())?;
    Ok(proxy)
}
