//! Takes the number of cores and what a mode adds to the configuration; gives all that a measurement needs, running on loopback: nginx
//! as backend (plain, h2c and TLS 1.3, and the issuer's documents), relay, one enrolled agent, tokens. All of it ends, and its directory
//! goes, when the site is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::http::Http;
use postern_tests::pki::{Pki, write_private};
use postern_tests::process::{self, Output, Program, Signal, binary, command};
use postern_tests::wait;
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::issuer::Issuer;

pub(crate) mod audit;
pub(crate) mod config;

use audit::AuditLines;
use config::{Extra, Facts, SCOPE, SECRET};

/// The answer's body.
pub(crate) const BODY: usize = 1024;

pub(crate) struct Site {
    // Fields are dropped in this order: programs first, then their directory.
    pub(crate) agent: Program,
    pub(crate) relay: Program,
    pub(crate) nginx: Vec<Program>,
    pub(crate) audit: AuditLines,
    pub(crate) issuer: Issuer,
    /// A good token, and one without the scope.
    pub(crate) token: String,
    pub(crate) narrow: String,
    pub(crate) http: Http,
    pub(crate) pki: Pki,
    pub(crate) facts: Facts,
    /// Threads, or processes, that each program is to have.
    pub(crate) cores: usize,
    _dir: TempDir,
}

/// What is known before anything runs: the directory, the ports, the certificates. Peers that the configuration names start from here.
pub(crate) struct Ground {
    pub(crate) pki: Pki,
    pub(crate) facts: Facts,
    dir: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postern-bench-").tempdir()?;
        let pki = Pki::create(dir.path())?;
        let facts = Facts {
            dir: dir.path().to_owned(),
            relay: wait::free_port()?,
            plain: wait::free_port()?,
            h2c: wait::free_port()?,
            tls: wait::free_port()?,
            cert: pki.server("site", &[])?,
        };
        Ok(Self { pki, facts, dir })
    }
}

impl Site {
    /// With nothing but the service `files`.
    pub(crate) async fn plain(cores: usize) -> Result<Self> {
        Self::start(Ground::new()?, cores, &Extra::default()).await
    }

    pub(crate) async fn start(ground: Ground, cores: usize, extra: &Extra) -> Result<Self> {
        let Ground { pki, facts, dir } = ground;
        let (html, scope) = (dir.path().join("html"), format!("openid profile {SCOPE}"));
        std::fs::create_dir_all(&html)?;
        std::fs::write(html.join("1k"), "x".repeat(BODY))?;
        let issuer = Issuer::publish(&html, &facts.backend(), &facts.url(), &scope)?;
        write_private(&dir.path().join(SECRET), "relay-secret")?;
        std::fs::write(dir.path().join("relay.toml"), facts.relay_toml(extra))?;
        std::fs::write(dir.path().join("agent.toml"), facts.agent_toml(extra))?;
        let http = Http::h1(pki.roots()?)?;

        let nginx = start_nginx(&facts, cores).await?;
        run(&facts, "postern-relay", &["init"]).await?;
        let relay = start(&facts, "postern-relay", &http).await?;
        let invite = invite(&facts, "dc1").await?;
        std::fs::write(dir.path().join("invite"), invite)?;
        let invite = dir.path().join("invite");
        let invite = invite.to_str().context("the directory's name is not text")?;
        run(&facts, "postern-agent", &["join", &facts.address(), "--invite-file", invite]).await?;
        let agent = start(&facts, "postern-agent", &http).await?;

        Ok(Self {
            agent,
            relay,
            nginx,
            audit: AuditLines::open(&dir.path().join("audit.jsonl"))?,
            token: issuer.token(&scope)?,
            narrow: issuer.token("openid profile")?,
            issuer,
            http,
            pki,
            facts,
            cores,
            _dir: dir,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.facts.dir.join(name)
    }

    /// Where a service's path is, through Postern.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.facts.url())
    }

    /// A caller's TLS that trusts this site, TLS 1.3 alone.
    pub(crate) fn tls(&self) -> Result<ClientConfig> {
        let mut config = postern_tests::http::tls(self.pki.roots()?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A one-time invite for an agent.
    pub(crate) async fn invite(&self, agent: &str) -> Result<String> {
        invite(&self.facts, agent).await
    }

    /// The real agent leaves: the relay has no tunnel of its own making.
    pub(crate) async fn stop_agent(&mut self) -> Result<()> {
        self.agent.stop(Signal::TERM).await.with_context(|| self.agent.tail())?;
        Ok(())
    }

    /// Tells the relay to end, as a service manager does, and starts it again.
    pub(crate) async fn restart_relay(&mut self) -> Result<()> {
        self.relay.stop(Signal::TERM).await.with_context(|| self.relay.tail())?;
        self.relay = start(&self.facts, "postern-relay", &self.http).await?;
        Ok(())
    }
}

async fn invite(facts: &Facts, agent: &str) -> Result<String> {
    let output = run(facts, "postern-relay", &["agent", "invite", agent]).await?;
    Ok(output.stdout.trim().to_owned())
}

fn postern(facts: &Facts, program: &str, args: &[&str]) -> Result<std::process::Command> {
    let file = program.replace("postern-", "") + ".toml";
    let mut command = command(binary(program)?, ["-c"]);
    command.arg(facts.dir.join(file)).args(args).env_remove("POSTERN_LOG");
    Ok(command)
}

/// Runs a command of relay or agent to its end.
async fn run(facts: &Facts, program: &str, args: &[&str]) -> Result<Output> {
    process::run(postern(facts, program, args)?, Duration::from_secs(30)).await?.expect_code(0)
}

/// Starts relay or agent and waits until it is ready.
async fn start(facts: &Facts, program: &str, http: &Http) -> Result<Program> {
    let log = facts.dir.join(format!("{program}.log"));
    let mut started = Program::start(program, postern(facts, program, &["run"])?, &log)?;
    let metrics = started.wait_value("listening metrics=").await?;
    let url = format!("http://{metrics}/readyz");
    let ready = wait::until(&format!("{url} answers 200"), wait::SOON, async || {
        http.get(&url, None).await.ok().filter(|answer| answer.status == 200).map(drop)
    })
    .await;
    ready.with_context(|| started.tail())?;
    Ok(started)
}

/// One process per core, all on the same ports: a master would leave its workers behind when it is killed.
async fn start_nginx(facts: &Facts, cores: usize) -> Result<Vec<Program>> {
    // Debian puts it in /usr/sbin, which is not on everyone's path.
    let binary = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let mut all = Vec::new();
    for index in 0..cores {
        let config = facts.dir.join(format!("nginx-{index}.conf"));
        std::fs::write(&config, facts.nginx_conf(index))?;
        let args = ["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()];
        let log = facts.dir.join(format!("nginx-{index}.log"));
        let mut program = Program::start("nginx", command(binary, args), &log)?;
        // Written when its sockets listen. A connection could not tell: any of the processes may take it.
        let pid = facts.dir.join(format!("nginx-{index}.pid"));
        wait::until("nginx listens", wait::SOON, async || {
            (pid.exists() || !program.is_running()).then_some(())
        })
        .await?;
        anyhow::ensure!(program.is_running(), "nginx ended: {}", program.tail());
        all.push(program);
    }
    Ok(all)
}
