//! Takes a plan; gives a relay, its issuer and any number of agents, each where it belongs: beside the test or in a network namespace.
//! A [`crate::stand::Stand`] has one agent and every usual part; here relay and agents come and go, and all that they serve counts.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;

use crate::http::Http;
use crate::issuer::Issuer;
use crate::load::Target;
use crate::netns::Namespace;
use crate::pki::{CertFiles, Pki};
use crate::process::{self, Output, Program, Signal, binary, command};
use crate::relay_toml;
use crate::stand::say;
use crate::wait;

/// What a test wants.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where callers, in the namespace of the test, find the relay.
    pub callers: IpAddr,
    /// Where the relay listens: that address, or the unspecified one of its family.
    pub listen: IpAddr,
    /// Tables and keys of relay.toml: at least the services.
    pub relay: String,
}

impl Plan {
    /// Everything beside the test.
    pub fn on_loopback(relay: &str) -> Self {
        let here = Ipv4Addr::LOCALHOST.into();
        Self { callers: here, listen: here, relay: relay.to_owned() }
    }
}

/// One agent: its directory is that of the site, its files are named after it.
#[derive(Debug)]
struct Agent {
    name: String,
    /// The namespace it runs in, if not the test's.
    place: Option<String>,
    program: Option<Program>,
}

/// All of it. Dropped without [`Site::passed`] it shows the last words of its programs.
pub struct Site {
    // Programs go before their directory.
    relay: Option<Program>,
    agents: Vec<Agent>,
    pub issuer: Issuer,
    pub pki: Pki,
    pub http: Http,
    pub port: u16,
    /// The relay as callers see it.
    pub url: String,
    starts: u32,
    passed: bool,
    dir: TempDir,
}

impl Site {
    /// Issuer and relay, running; no agent yet.
    pub async fn start(plan: &Plan) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("postern-site-").tempdir()?;
        let port = wait::free_port()?;
        let url = format!("https://{}", std::net::SocketAddr::new(plan.callers, port));
        let pki = Pki::create(dir.path())?;
        let cert = pki.server("relay", &[&plan.callers.to_string()])?;
        let issuer = Issuer::start(dir.path(), &pki, &url).await?;
        let http = Http::h1(pki.roots()?)?;
        let (relay, agents) = (None, Vec::new());
        let mut site = Self { relay, agents, issuer, pki, http, port, url, starts: 0, passed: false, dir };
        std::fs::write(site.path("relay.toml"), site.relay_toml(plan, &cert))?;
        site.relay_command(&["init"]).await?.expect_code(0)?;
        site.start_relay().await?;
        Ok(site)
    }

    fn relay_toml(&self, plan: &Plan, cert: &CertFiles) -> String {
        let listen = std::net::SocketAddr::new(plan.listen, self.port).to_string();
        format!(
            r#"{begin}{issuers}ca = "{ca}"

[audit]
file = "{dir}/audit.jsonl"

[telemetry]
log = "info"
format = "text"

{more}"#,
            begin = relay_toml::begin(self.dir.path(), &self.url, &listen, cert),
            issuers = relay_toml::issuer(&self.url, self.issuer.iss()),
            dir = self.dir.path().display(),
            ca = self.pki.ca_file().display(),
            more = plan.relay,
        )
    }

    /// Says that the test held: nothing is printed when the site goes.
    pub fn passed(mut self) {
        self.passed = true;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, program: &str, file: &str, args: &[&str]) -> Result<std::process::Command> {
        let mut command = command(binary(program)?, ["-c"]);
        command.arg(self.path(file)).args(args).env("NO_COLOR", "1").env_remove("POSTERN_LOG");
        Ok(command)
    }

    /// Runs `postern-relay -c relay.toml ARGS` to its end.
    pub async fn relay_command(&self, args: &[&str]) -> Result<Output> {
        process::run(self.program("postern-relay", "relay.toml", args)?, Duration::from_secs(30)).await
    }

    pub async fn start_relay(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.path(&format!("relay-{}.log", self.starts));
        let mut relay =
            Program::start("relay", self.program("postern-relay", "relay.toml", &["run"])?, &log)?;
        relay.wait_value("listening https=").await?;
        self.relay = Some(relay);
        Ok(())
    }

    /// The running relay.
    ///
    /// # Errors
    /// It was stopped.
    pub fn relay(&mut self) -> Result<&mut Program> {
        self.relay.as_mut().context("the relay is not running")
    }

    pub async fn stop_relay(&mut self, signal: Signal) -> Result<()> {
        let mut relay = self.relay.take().context("the relay is not running")?;
        relay.stop(signal).await.map(drop)
    }

    /// Enrols an agent that dials `relay` (`host:port`) and has `tables`, at least its services, in its agent.toml. It is not started.
    pub async fn enrol(
        &mut self,
        name: &str,
        relay: &str,
        tables: &str,
        place: Option<&Namespace>,
    ) -> Result<()> {
        let agent = self.enrolled(name, relay, tables, place).await?;
        self.agents.push(agent);
        Ok(())
    }

    /// The same for many agents beside the test, some at once: name and tables of each.
    pub async fn enrol_all(&mut self, agents: &[(String, String)], relay: &str) -> Result<()> {
        let all = agents.iter().map(|(name, tables)| self.enrolled(name, relay, tables, None));
        let enrolled: Vec<_> = stream::iter(all).buffer_unordered(4).try_collect().await?;
        self.agents.extend(enrolled);
        Ok(())
    }

    async fn enrolled(
        &self,
        name: &str,
        relay: &str,
        tables: &str,
        place: Option<&Namespace>,
    ) -> Result<Agent> {
        let (state, config) = (self.path(&format!("{name}-state")), format!("{name}.toml"));
        let text = format!(
            "version = 1\nrelay = \"{relay}\"\nstate = \"{}\"\n\n{tables}\n[telemetry]\nlog = \"info\"\nformat = \"text\"\n\
             metrics = \"127.0.0.1:0\"\n",
            state.display()
        );
        std::fs::write(self.path(&config), text)?;
        let invite = self.relay_command(&["agent", "invite", name]).await?.expect_code(0)?.stdout;
        let file = self.path(&format!("{name}.invite"));
        std::fs::write(&file, invite.trim())?;
        let file = file.to_str().context("the directory's name is not text")?;
        let mut join = self.program("postern-agent", &config, &["join", relay, "--invite-file", file])?;
        if let Some(place) = place {
            join = place.command(&join);
        }
        process::run(join, Duration::from_secs(30)).await?.expect_code(0)?;
        let place = place.map(|place| place.name().to_owned());
        Ok(Agent { name: name.to_owned(), place, program: None })
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.agents.iter().position(|agent| agent.name == name).with_context(|| format!("no agent {name}"))
    }

    /// Starts an agent; whether it reaches the relay is for the caller to see.
    pub async fn start_agent(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        self.starts += 1;
        let log = self.path(&format!("{name}-{}.log", self.starts));
        let mut run = self.program("postern-agent", &format!("{name}.toml"), &["run"])?;
        if let Some(place) = &self.agents[index].place {
            run = Namespace::command_in(place, &run);
        }
        let mut program = Program::start(name, run, &log)?;
        program.wait_value("listening metrics=").await?;
        self.agents[index].program = Some(program);
        Ok(())
    }

    /// The running agent of that name.
    ///
    /// # Errors
    /// It was stopped.
    pub fn agent(&mut self, name: &str) -> Result<&mut Program> {
        let index = self.index(name)?;
        self.agents[index].program.as_mut().with_context(|| format!("agent {name} is not running"))
    }

    pub async fn stop_agent(&mut self, name: &str, signal: Signal) -> Result<()> {
        let index = self.index(name)?;
        let program = self.agents[index].program.take();
        program.with_context(|| format!("agent {name} is not running"))?.stop(signal).await.map(drop)
    }

    /// Where a load goes: `http` and `tcp` are services whose upstreams count.
    pub async fn target(&self, http: &str, tcp: &str) -> Result<Target> {
        // Longer than any test.
        self.issuer.access_ttl(Duration::from_hours(1)).await?;
        Ok(Target {
            relay: self.url.clone(),
            http: http.to_owned(),
            tcp: tcp.to_owned(),
            token: self.issuer.token("ada").await?,
            roots: self.pki.roots()?,
        })
    }

    /// Waits until a request gives `status`, for at most `limit`.
    pub async fn wait_status(&self, url: &str, token: &str, status: u16, limit: Duration) -> Result<()> {
        let what = format!("{url} answers {status}");
        wait::until(&what, limit, async || {
            let answer = self.http.get(url, Some(token)).await.ok()?;
            (answer.status.as_u16() == status).then_some(())
        })
        .await
    }

    fn last_words(&self) -> String {
        let running = self.agents.iter().filter_map(|agent| agent.program.as_ref());
        // Of many agents the first few tell.
        self.relay.iter().chain(running.take(3)).map(Program::tail).collect::<Vec<_>>().join("\n")
    }
}

/// The sum of a gauge or counter over all its labels, as a program tells it now.
pub async fn metric(program: &mut Program, http: &Http, name: &str) -> Result<i64> {
    let address = program.wait_value("listening metrics=").await?;
    let text = http.get(&format!("http://{address}/metrics"), None).await?.expect_status(200)?.text();
    let values = text.lines().filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        (key.split('{').next()? == name).then(|| value.parse::<i64>().ok())?
    });
    let values: Vec<i64> = values.collect();
    anyhow::ensure!(!values.is_empty(), "no metric {name} in\n{text}");
    Ok(values.iter().sum())
}

impl Drop for Site {
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
