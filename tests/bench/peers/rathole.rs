//! rathole, as Cargo's registry has it: a TCP tunnel of two processes, as relay and agent are. Takes an upstream; gives a local port that
//! leads to it through a server and a client, over one of its three transports.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use postern_tests::process::{self, Program, command};
use postern_tests::wait;

use super::{get, home};
use crate::site::Site;

const VERSION: &str = "0.5.0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
    Noise,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Tls, Self::Noise];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "rathole plain",
            Self::Tls => "rathole tls",
            Self::Noise => "rathole noise",
        }
    }
}

/// A server, its client, and the ports where callers may come: one for each upstream.
#[derive(Debug)]
pub(crate) struct Rathole {
    pub(crate) server: Program,
    pub(crate) client: Program,
    pub(crate) ports: Vec<SocketAddr>,
}

impl Rathole {
    pub(crate) async fn start(site: &Site, transport: Transport, upstreams: &[SocketAddr]) -> Result<Self> {
        let binary = binary().await?;
        let (server, client) = sections(site, &binary, transport).await?;
        let control = wait::free_port()?;
        let mut server =
            format!("[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n\n{server}");
        let mut client =
            format!("[client]\nremote_addr = \"localhost:{control}\"\ndefault_token = \"bench\"\n\n{client}");
        let mut ports = Vec::new();
        for (index, upstream) in upstreams.iter().enumerate() {
            let port = SocketAddr::from(([127, 0, 0, 1], wait::free_port()?));
            write!(server, "[server.services.s{index}]\nbind_addr = \"{port}\"\n\n")?;
            write!(client, "[client.services.s{index}]\nlocal_addr = \"{upstream}\"\n\n")?;
            ports.push(port);
        }
        let server = run(site, &binary, transport, "server", &server)?;
        let mut client = run(site, &binary, transport, "client", &client)?;
        client
            .wait_lines("Control channel established", upstreams.len(), wait::SOON)
            .await
            .with_context(|| server.tail())?;
        Ok(Self { server, client, ports })
    }
}

async fn binary() -> Result<PathBuf> {
    let binary = home().join("bin/rathole");
    if !binary.exists() {
        // Cargo's own variables would lead the other build astray, so it gets a target directory of its own.
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let mut install =
            command(cargo, ["install", "rathole", "--version", VERSION, "--no-default-features"]);
        install.args(["--features", "server,client,tls,noise", "--root"]).arg(home());
        install.arg("--target-dir").arg(home().join("build")).current_dir(std::env::temp_dir());
        get(&format!("rathole {VERSION}, which takes minutes to build"), install).await?;
    }
    Ok(binary)
}

fn run(site: &Site, binary: &Path, transport: Transport, role: &str, text: &str) -> Result<Program> {
    let name = format!("rathole-{transport:?}-{role}");
    let config = site.path(&format!("{name}.toml"));
    std::fs::write(&config, text)?;
    let mut command = command(binary, [format!("--{role}")]);
    command.arg(config).env("RUST_LOG", "info").env("NO_COLOR", "1");
    Program::start(&name, command, &site.path(&format!("{name}.log")))
}

/// The transport's part of the server's and of the client's file.
async fn sections(site: &Site, binary: &Path, transport: Transport) -> Result<(String, String)> {
    match transport {
        Transport::Plain => Ok((String::new(), String::new())),
        Transport::Tls => {
            // It takes a PKCS #12 file and no other.
            let bundle = site.path("rathole.p12");
            let mut export = command("openssl", ["pkcs12", "-export", "-passout", "pass:bench", "-out"]);
            export.arg(&bundle).arg("-in").arg(&site.facts.cert.cert).arg("-inkey").arg(&site.facts.cert.key);
            process::run(export, wait::SOON).await?.expect_code(0).context("openssl")?;
            let (bundle, root) = (bundle.display(), site.pki.ca_file());
            let server = format!(
                "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{bundle}\"\npkcs12_password = \"bench\"\n\n"
            );
            let client = format!(
                "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"localhost\"\n\n",
                root.display()
            );
            Ok((server, client))
        }
        Transport::Noise => {
            let keys = process::run(command(binary, ["--genkey"]), wait::SOON).await?.expect_code(0)?.stdout;
            // "Private Key:", the key, a blank line, "Public Key:", the key.
            let mut keys = keys.lines().filter(|line| !line.is_empty() && !line.ends_with(':'));
            let (private, public) = (keys.next().context("no key")?, keys.next().context("no public key")?);
            let server = format!(
                "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"\n\n"
            );
            let client = format!(
                "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"\n\n"
            );
            Ok((server, client))
        }
    }
}
