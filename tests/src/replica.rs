//! Takes a stand and a name; gives one more installation of its agent beside the first: the same agent.toml with a state directory of its
//! own, so that it has its own key, certificate and instance.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Output, Program, binary, command};
use crate::stand::Stand;

/// An agent's files; it runs as long as the [`Program`] that [`Replica::run`] gives.
#[derive(Debug)]
pub struct Replica {
    config: PathBuf,
    relay: String,
    log: PathBuf,
    /// Of every program that is started from here.
    pub env: Vec<(&'static str, String)>,
}

impl Replica {
    pub fn new(stand: &Stand, name: &str) -> Result<Self> {
        let text = std::fs::read_to_string(stand.path("agent.toml"))?;
        let [first, own] = [stand.path("agent"), stand.path(name)].map(|dir| dir.display().to_string());
        anyhow::ensure!(text.contains(&format!("\"{first}\"")), "agent.toml has another state directory");
        let config = stand.path(&format!("{name}.toml"));
        std::fs::write(&config, text.replace(&format!("\"{first}\""), &format!("\"{own}\"")))?;
        let relay = format!("127.0.0.1:{}", stand.port);
        Ok(Self { config, relay, log: stand.path(&format!("{name}.log")), env: Vec::new() })
    }

    /// Runs `postern-agent ARGS` with its files.
    fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        let mut command = command(binary("postern-agent")?, ["-c"]);
        command.arg(&self.config).args(args).env("NO_COLOR", "1").env_remove("POSTERN_LOG");
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Enrols it; the outcome is the caller's to judge.
    pub async fn join(&self, invite: &str) -> Result<Output> {
        let file = self.config.with_extension("invite");
        std::fs::write(&file, invite)?;
        let file = file.to_str().context("the directory's name is not text")?;
        let command = self.command(&["join", &self.relay, "--invite-file", file])?;
        process::run(command, Duration::from_mins(1)).await
    }

    /// Starts it, and does not wait for anything.
    pub fn run(&self) -> Result<Program> {
        Program::start("replica", self.command(&["run"])?, &self.log)
    }
}
