//! Takes a relay and a home of its own; gives runs of the real `postern` command as one user of it: a session file instead of a
//! keyring, and a browser that is a script.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::issuer::Issuer;
use crate::process::{self, Output, Program, binary};
use crate::wait;

/// How long one run of `postern` may take: a login polls the issuer every second or two.
const LIMIT: Duration = Duration::from_secs(40);

/// One person's `postern`, with a home directory of its own.
#[derive(Debug)]
pub struct Cli {
    home: PathBuf,
    /// What is typed after `login`.
    relay: String,
    ca: PathBuf,
    runs: std::cell::Cell<u32>,
}

impl Cli {
    /// `relay` is `127.0.0.1:PORT`; `home` is made.
    pub fn new(home: &Path, relay: &str, ca: &Path) -> Result<Self> {
        std::fs::create_dir_all(home.join("tmp"))?;
        Ok(Self {
            home: home.to_owned(),
            relay: relay.to_owned(),
            ca: ca.to_owned(),
            runs: std::cell::Cell::new(0),
        })
    }

    /// Where its sessions and locks are.
    pub fn state_dir(&self) -> PathBuf {
        self.home.join("state/postern")
    }

    /// The refresh token of its session, where it has one session and no keyring.
    pub fn refresh_token(&self) -> Result<String> {
        let mut files = std::fs::read_dir(self.state_dir())?.filter_map(|entry| Some(entry.ok()?.path()));
        let path = files.find(|path| path.extension().is_some_and(|e| e == "json")).context("no session")?;
        let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        Ok(kept["session"]["refresh_token"].as_str().context("no refresh token")?.to_owned())
    }

    /// `postern ARGS` with nothing in its environment but what is needed.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("postern")?);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").context("no PATH")?)
            .env("HOME", &self.home)
            .env("TMPDIR", self.home.join("tmp"))
            .env("XDG_STATE_HOME", self.home.join("state"))
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("POSTERN_KEYRING", "file")
            .env("POSTERN_CA", &self.ca)
            .env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs it to its end.
    pub async fn run(&self, args: &[&str]) -> Result<Output> {
        process::run(self.command(args)?, LIMIT).await
    }

    /// Starts it and leaves it running, such as `forward`.
    pub fn start(&self, args: &[&str]) -> Result<Program> {
        self.start_command(self.command(args)?, args.first().copied().unwrap_or("postern"))
    }

    /// The same for a command that was changed, for example given more environment.
    pub fn start_command(&self, command: Command, name: &str) -> Result<Program> {
        self.runs.set(self.runs.get() + 1);
        let log = self.home.join(format!("{name}-{}.log", self.runs.get()));
        Program::start(&format!("postern {name}"), command, &log)
    }

    /// Starts a device login and approves its code as `user`; gives the exit code and what it said.
    pub async fn login_device(&self, issuer: &Issuer, user: &str, more: &[&str]) -> Result<Output> {
        let mut args = vec!["login", self.relay.as_str(), "--device"];
        args.extend(more);
        let mut login = self.start(&args)?;
        let code = login.wait_value("Code: ").await?;
        issuer.approve_device(user, &code).await?;
        let status = login.wait_exit(LIMIT).await?;
        Ok(Output { code: status.code().unwrap_or(-1), stdout: String::new(), stderr: login.log_text() })
    }

    /// Logs in through the browser, in which `user` is already waiting; `deny` makes them say no.
    pub async fn login_browser(&self, user: &str, deny: bool) -> Result<Output> {
        let mut command = self.command(&["login", &self.relay])?;
        // A display is what tells the client that there is a browser at all.
        command.env("BROWSER", self.browser(user, deny)?).env("DISPLAY", ":99");
        process::run(command, LIMIT).await
    }

    /// A browser that follows redirects with cookies, down to the client's own loopback address.
    pub fn browser(&self, user: &str, deny: bool) -> Result<PathBuf> {
        let path = self.home.join(format!("browser-{user}"));
        let deny = if deny { "-H 'x-test-deny: 1'" } else { "" };
        let log = self.home.join("browser.log");
        let limit = wait::SOON.as_secs();
        let script = format!(
            "#!/bin/sh\nexec curl -sSL --max-time {limit} --cacert '{}' -b '' -H 'x-test-user: {user}' {deny} \"$1\" >>'{}' 2>&1\n",
            self.ca.display(),
            log.display()
        );
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Starts `forward` of a service on a free local port; gives the program and the base URL it printed.
    pub async fn forward(&self, service: &str, more: &[&str]) -> Result<(Program, String)> {
        let spec = format!("{}:{service}", wait::free_port()?);
        let mut args = vec!["forward", spec.as_str()];
        args.extend(more);
        let mut program = self.start(&args)?;
        let url = program.wait_value("Forwarding ").await?;
        Ok((program, url))
    }
}
