//! Takes what a test wants different; gives all of Postern at work on loopback: issuer, nginx, echo server, relay and one enrolled
//! agent, in a temporary directory with ports of their own. Everything ends when the stand is dropped; unless it was told
//! [`Stand::passed`], it then shows the last words of its programs. `POSTERN_KEEP=1` keeps the directory.

mod config;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

pub use config::{BILLING, Extra};

use crate::client::Cli;
use crate::http::Http;
use crate::issuer::Issuer;
use crate::manager::Sockets;
use crate::pki::Pki;
use crate::process::{self, Output, Program, Signal, binary, command};
use crate::upstream::{Echo, Nginx};
use crate::wait;

/// All of it. The relay answers at `url`.
pub struct Stand {
    dir: TempDir,
    pub pki: Pki,
    pub issuer: Issuer,
    pub nginx: Nginx,
    pub echo: Echo,
    /// `https://127.0.0.1:PORT`, also the audience of its tokens.
    pub url: String,
    pub port: u16,
    /// An HTTP/1.1 caller that trusts the stand's authority.
    pub http: Http,
    /// Held for the relay while it restarts.
    sockets: Option<Sockets>,
    /// The relay's environment.
    pub relay_env: Vec<(&'static str, String)>,
    relay: Option<Program>,
    agent: Option<Program>,
    starts: u32,
    passed: bool,
}

impl Stand {
    /// The usual stand, ready for requests.
    pub async fn start() -> Result<Self> {
        Self::start_with(Extra::default()).await
    }

    /// A stand with more configuration, ready for requests.
    pub async fn start_with(extra: Extra) -> Result<Self> {
        let mut stand = Self::relay_only(extra).await?;
        let invite = stand.invite("dc1", &[]).await?;
        stand.join(&invite).await?.expect_code(0)?;
        stand.start_agent().await?;
        Ok(stand)
    }

    /// Everything but the agent, which has its agent.toml and no enrolment yet.
    pub async fn relay_only(extra: Extra) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postern-stand-").tempdir()?;
        let port = wait::free_port()?;
        let address = format!("127.0.0.1:{port}");
        let url = format!("https://{address}");
        let pki = Pki::create(dir.path())?;
        let cert = pki.server("relay", &["relay.example.com", "*.example.com"])?;
        let nginx = Nginx::start(dir.path()).await?;
        let echo = Echo::start()?;
        let issuer = Issuer::start(dir.path(), &pki, &url).await?;
        let facts = config::Facts {
            dir: dir.path(),
            url: &url,
            address: &address,
            iss: issuer.iss(),
            ca: &pki.ca_file(),
            cert: &cert,
            nginx: &nginx.url(),
            echo: &echo.url(),
            extra: &extra,
        };
        std::fs::write(dir.path().join("relay.toml"), facts.relay_toml())?;
        std::fs::write(dir.path().join("agent.toml"), facts.agent_toml())?;
        let http = Http::h1(pki.roots()?)?;
        let (relay, agent) = (None, None);
        let (sockets, relay_env) = (None, Vec::new());
        let mut stand = Self {
            dir,
            pki,
            issuer,
            nginx,
            echo,
            url,
            port,
            http,
            sockets,
            relay_env,
            relay,
            agent,
            starts: 0,
            passed: false,
        };
        let init = stand.relay_command(&["init"]).await?.expect_code(0)?;
        // The audit log's first key, which is shown this once.
        std::fs::write(stand.path("audit-key.txt"), init.stdout)?;
        stand.start_relay().await?;
        Ok(stand)
    }

    /// Says that the test held: nothing is printed when the stand goes.
    pub fn passed(mut self) {
        self.passed = true;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The public URL of a path, such as `/billing/v1/invoices/7`.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// `PROGRAM -c FILE ARGS`, to be run.
    pub fn with_config(&self, program: &str, file: &str, args: &[&str]) -> Result<std::process::Command> {
        let mut command = command(binary(program)?, ["-c"]);
        command.arg(self.path(file)).args(args).env("NO_COLOR", "1").env_remove("POSTERN_LOG");
        Ok(command)
    }

    /// Runs `postern-relay -c relay.toml ARGS` to its end.
    pub async fn relay_command(&self, args: &[&str]) -> Result<Output> {
        process::run(self.with_config("postern-relay", "relay.toml", args)?, Duration::from_secs(30)).await
    }

    /// Runs `postern-agent -c agent.toml ARGS` to its end.
    pub async fn agent_command(&self, args: &[&str]) -> Result<Output> {
        process::run(self.with_config("postern-agent", "agent.toml", args)?, Duration::from_secs(30)).await
    }

    /// A one-time invite for an agent.
    pub async fn invite(&self, agent: &str, more: &[&str]) -> Result<String> {
        let mut args = vec!["agent", "invite", agent];
        args.extend(more);
        Ok(self.relay_command(&args).await?.expect_code(0)?.stdout.trim().to_owned())
    }

    /// Enrols the agent with an invite; the outcome is the caller's to judge.
    pub async fn join(&self, invite: &str) -> Result<Output> {
        let file = self.path("invite");
        std::fs::write(&file, invite)?;
        let file = file.to_str().context("the directory's name is not text")?;
        // An agent that was removed still holds its old identity, which only --force replaces.
        let relay = format!("127.0.0.1:{}", self.port);
        self.agent_command(&["join", &relay, "--invite-file", file, "--force"]).await
    }

    pub async fn start_relay(&mut self) -> Result<()> {
        let mut command = self.with_config("postern-relay", "relay.toml", &["run"])?;
        command.envs(self.relay_env.iter().map(|(key, value)| (key, value)));
        // Bash replaces itself with the relay: the process is the same.
        let handed = self.sockets.as_ref().map(|sockets| sockets.hand_to(&command)).transpose()?;
        let (command, _held) = handed.map_or((command, None), |(wrapped, held)| (wrapped, Some(held)));
        self.starts += 1;
        let log = self.path(&format!("relay-{}.log", self.starts));
        let mut relay = Program::start("relay", command, &log)?;
        let metrics = relay.wait_value("listening metrics=").await?;
        let listening = relay.wait_value("listening https=").await?;
        anyhow::ensure!(listening.ends_with(&format!(":{}", self.port)), "the relay listens at {listening}");
        self.relay = Some(relay);
        self.wait_ready("relay", &metrics).await
    }

    /// From the next start on the relay's sockets are ours and outlive it. To be called while no relay runs.
    pub fn hold_sockets(&mut self) -> Result<()> {
        self.sockets = Some(Sockets::bind(self.port)?);
        Ok(())
    }

    pub async fn start_agent(&mut self) -> Result<()> {
        let command = self.with_config("postern-agent", "agent.toml", &["run"])?;
        self.starts += 1;
        let log = self.path(&format!("agent-{}.log", self.starts));
        let mut agent = Program::start("agent", command, &log)?;
        let metrics = agent.wait_value("listening metrics=").await?;
        self.agent = Some(agent);
        self.wait_ready("agent", &metrics).await
    }

    async fn wait_ready(&self, who: &str, metrics: &str) -> Result<()> {
        let url = format!("http://{metrics}/readyz");
        let what = format!("the {who} is ready");
        wait::until(&what, wait::SOON, async || {
            self.http.get(&url, None).await.ok().filter(|answer| answer.status == 200).map(drop)
        })
        .await
        .with_context(|| self.last_words())
    }

    /// The running relay.
    ///
    /// # Errors
    /// It was stopped.
    pub fn relay(&mut self) -> Result<&mut Program> {
        self.relay.as_mut().context("the relay is not running")
    }

    /// The running agent.
    ///
    /// # Errors
    /// It was stopped.
    pub fn agent(&mut self) -> Result<&mut Program> {
        self.agent.as_mut().context("the agent is not running")
    }

    pub async fn stop_relay(&mut self, signal: Signal) -> Result<()> {
        let mut relay = self.relay.take().context("the relay is not running")?;
        relay.stop(signal).await.map(drop)
    }

    pub async fn stop_agent(&mut self, signal: Signal) -> Result<()> {
        let mut agent = self.agent.take().context("the agent is not running")?;
        agent.stop(signal).await.map(drop)
    }

    /// The base URL of a program's metrics and health.
    pub async fn metrics_url(program: &mut Program) -> Result<String> {
        Ok(format!("http://{}", program.wait_value("listening metrics=").await?))
    }

    /// Changes one of the two files; the text to be replaced must be there.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.path(file);
        let text = std::fs::read_to_string(&path)?;
        anyhow::ensure!(text.contains(from), "{file} does not contain {from:?}");
        Ok(std::fs::write(path, text.replace(from, to))?)
    }

    /// Waits until a request gives `status`, for at most `limit`.
    pub async fn wait_status(&self, path: &str, token: &str, status: u16, limit: Duration) -> Result<()> {
        let url = self.at(path);
        let what = format!("{path} answers {status}");
        wait::until(&what, limit, async || {
            let answer = self.http.get(&url, Some(token)).await.ok()?;
            (answer.status.as_u16() == status).then_some(())
        })
        .await
    }

    /// One person's `postern` for this relay.
    pub fn cli(&self, name: &str) -> Result<Cli> {
        Cli::new(
            &self.path(&format!("home-{name}")),
            &format!("127.0.0.1:{}", self.port),
            &self.pki.ca_file(),
        )
    }

    /// The audit file so far; a line that is not JSON is an error.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.path("audit.jsonl"))?;
        let lines = text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("audit: {l}")));
        lines.collect()
    }

    /// Waits for audit lines that `pick` accepts, at least `count`.
    pub async fn wait_audit(&self, count: usize, pick: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let found = wait::until("audit lines", wait::SOON, async || {
            let picked: Vec<_> = self.audit().ok()?.into_iter().filter(|line| pick(line)).collect();
            (picked.len() >= count).then_some(picked)
        })
        .await;
        match found {
            Ok(lines) => Ok(lines),
            Err(error) => bail!("{error}; the file:\n{}", std::fs::read_to_string(self.path("audit.jsonl"))?),
        }
    }

    fn last_words(&self) -> String {
        let programs = self.relay.iter().chain(&self.agent);
        let tails = std::iter::once(self.issuer.tail()).chain(programs.map(Program::tail));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// The directory, for files that tests put there.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if !self.passed {
            say(&self.last_words());
        }
        if std::env::var_os("POSTERN_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            say(&format!("kept {}", self.dir.path().display()));
        }
    }
}

/// Prints a line for whoever reads the test's output: steps, figures, last words.
pub fn say(line: &str) {
    use std::io::Write;
    // Nobody can be told that stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
