//! Takes a port or none; gives a private temporary directory with the configuration of every program in it, and starts them in order,
//! each only when the one before it is ready.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context;
use postern_base::file::{Access, create_private_dir, write_atomic};
use tempfile::TempDir;

use crate::children::Children;

/// From the first port on: relay, its metrics, issuer, invoices, wiki, the agent's metrics, the port for `forward`.
const PORTS: u16 = 7;
/// Where random ports are looked for: below what Linux hands out by itself, so that no other program's outgoing connection can take
/// one between this look and the start of the program that is to have it.
const RANDOM: std::ops::Range<u16> = 20_000..32_000;
/// A machine on which so many places in a row are taken has another problem.
const TRIES: usize = 100;

/// Where everything is.
pub(crate) struct Stage {
    dir: TempDir,
    first_port: u16,
}

impl Stage {
    pub(crate) fn build(port: Option<u16>) -> anyhow::Result<Self> {
        let first_port = match port {
            Some(port) => {
                are_free(port).with_context(|| format!("ports {port} to {}", port + PORTS - 1))?;
                port
            }
            None => (0..TRIES)
                .map(|_| rand::random_range(RANDOM))
                .find(|port| are_free(*port).is_ok())
                .with_context(|| format!("no {PORTS} free ports in a row: give one with --port"))?,
        };
        let stage = Self { dir: TempDir::with_prefix("postern-demo-")?, first_port };
        create_private_dir(&stage.path("logs"))?;
        for (name, template) in [
            ("relay.toml", include_str!("stage/relay.toml")),
            ("agent.toml", include_str!("stage/agent.toml")),
        ] {
            write_atomic(&stage.path(name), stage.fill_in(template).as_bytes(), Access::Private)?;
        }
        Ok(stage)
    }

    fn fill_in(&self, template: &str) -> String {
        template
            .replace("DIRECTORY", &self.dir().display().to_string())
            .replace("RELAY_URL", &self.relay_url())
            .replace("RELAY_ADDRESS", &self.relay().to_string())
            .replace("RELAY_METRICS", &self.address(1).to_string())
            .replace("ISSUER_URL", &self.issuer_url())
            .replace("INVOICES_URL", &self.invoices_url())
            .replace("WIKI_URL", &format!("http://{}", self.address(4)))
            .replace("AGENT_METRICS", &self.address(5).to_string())
    }

    /// Starts issuer, services, relay and agent, enrolling the agent on the way.
    pub(crate) async fn start(&self, children: &mut Children) -> anyhow::Result<()> {
        let mut issuer = children.command("--tied", "issuer");
        issuer.args([self.issuer().to_string(), self.relay_url()]);
        children.start("issuer", issuer)?;
        children.ready(&format!("{}/.well-known/openid-configuration", self.issuer_url())).await?;

        let mut legacy = children.command("--tied", "legacy");
        legacy.args([self.address(3).to_string(), self.address(4).to_string()]);
        children.start("legacy", legacy)?;
        children.ready(&format!("{}/v1/invoices", self.invoices_url())).await?;

        let relay = |children: &Children, flag| {
            let mut command = children.command(flag, "relay");
            command.arg("-c").arg(self.path("relay.toml"));
            command
        };
        Children::succeed(relay(children, "--as"), ["init"]).await.context("postern-relay init")?;
        let mut run = relay(children, "--tied");
        run.arg("run");
        children.start("relay", run)?;
        children.ready(&format!("http://{}/readyz", self.address(1))).await?;

        let agent = |children: &Children, flag| {
            let mut command = children.command(flag, "agent");
            command.arg("-c").arg(self.path("agent.toml"));
            command
        };
        let invite = Children::succeed(relay(children, "--as"), ["agent", "invite", "dc1"])
            .await
            .context("postern-relay agent invite dc1")?;
        let invite_file = self.path("invite");
        write_atomic(&invite_file, invite.as_bytes(), Access::Private)?;
        let mut join = agent(children, "--as");
        join.arg("join").arg(self.relay().to_string()).arg("--invite-file").arg(&invite_file);
        Children::succeed(join, [] as [&str; 0]).await.context("postern-agent join")?;
        // It worked once and never will again.
        std::fs::remove_file(invite_file)?;
        let mut run = agent(children, "--tied");
        run.arg("run");
        children.start("agent", run)?;
        children.ready(&self.agent_ready_url()).await
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The relay's certificate, for `--ca`.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("relay/tls/cert.pem")
    }

    fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.first_port + offset))
    }

    pub(crate) fn relay(&self) -> SocketAddr {
        self.address(0)
    }

    pub(crate) fn relay_url(&self) -> String {
        format!("https://{}", self.relay())
    }

    fn issuer(&self) -> SocketAddr {
        self.address(2)
    }

    pub(crate) fn issuer_url(&self) -> String {
        format!("http://{}", self.issuer())
    }

    pub(crate) fn invoices_url(&self) -> String {
        format!("http://{}", self.address(3))
    }

    pub(crate) fn agent_ready_url(&self) -> String {
        format!("http://{}/readyz", self.address(5))
    }

    pub(crate) fn forward_port(&self) -> u16 {
        self.first_port + 6
    }

    pub(crate) fn remove(self) -> std::io::Result<()> {
        self.dir.close()
    }
}

/// Whether all ports from `first` on are free on loopback, for TCP and for UDP.
fn are_free(first: u16) -> std::io::Result<()> {
    for port in first..first + PORTS {
        TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port))?;
        UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, port))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_filled_in_and_taken_ports_refused() {
        let stage = Stage::build(None).unwrap();
        for name in ["relay.toml", "agent.toml"] {
            let text = std::fs::read_to_string(stage.path(name)).unwrap();
            // Its random name may look like a placeholder.
            toml_has_no_placeholder(&text.replace(&stage.dir().display().to_string(), ""));
        }
        let _taken = TcpListener::bind(stage.address(3)).unwrap();
        assert!(Stage::build(Some(stage.first_port)).is_err());
        let dir = stage.dir().to_owned();
        stage.remove().unwrap();
        assert!(!dir.exists());
    }

    fn toml_has_no_placeholder(text: &str) {
        for word in text.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
            let known = ["GET", "POST", "DELETE", "API"].contains(&word);
            assert!(word.len() < 3 || known, "{word} was not filled in");
        }
    }
}
