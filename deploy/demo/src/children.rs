//! Takes programs to run; gives them their own process groups (so that Ctrl-C reaches the demo alone), a log file each and a pipe whose
//! end tells them that the demo is gone; ends them in the reverse of the order in which they were started: SIGTERM, a deadline, SIGKILL.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::Request;
use postern_base::http_client::{HttpClient, HttpClientOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, interval, timeout};

use crate::signals::Signals;
use crate::stage::Stage;

/// Starting takes a second; a busy machine may need more.
const START: Duration = Duration::from_secs(30);
/// How long a program may finish what it is doing after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// How often to look whether something has become true.
const GLANCE: Duration = Duration::from_millis(50);
/// What of a log is shown when something went wrong.
const LOG_LINES: usize = 15;

/// The programs that run, in the order in which they were started.
pub(crate) struct Children {
    program: PathBuf,
    dir: PathBuf,
    http: HttpClient,
    running: Vec<Running>,
}

struct Running {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Nothing is ever written to it: its end is the message.
    _tie: Option<ChildStdin>,
}

impl Children {
    pub(crate) fn new(stage: &Stage) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let http = HttpClient::new(HttpClientOptions::default())?;
        Ok(Self { program, dir: stage.dir().to_owned(), http, running: Vec::new() })
    }

    /// The file that is all of these programs.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// This binary as `role`, with none of the Postern or proxy settings of whoever started the demo.
    pub(crate) fn command(&self, flag: &str, role: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(flag).arg(role).current_dir(&self.dir).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_ascii_uppercase();
            if upper.starts_with("POSTERN_") || upper.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Starts a program that stays; `command` comes from [`Children::command`] with `--tied`.
    pub(crate) fn start(&mut self, name: &'static str, mut command: Command) -> anyhow::Result<()> {
        let log = self.dir.join("logs").join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file).stdin(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let tie = child.stdin.take();
        self.running.push(Running { name, child, log, _tie: tie });
        Ok(())
    }

    /// Waits until `url` answers 200, or the newest program has ended, or the deadline has passed.
    pub(crate) async fn ready(&mut self, url: &str) -> anyhow::Result<()> {
        let newest = self.running.last_mut().context("nothing was started")?;
        let deadline = Instant::now() + START;
        let mut tick = interval(GLANCE);
        loop {
            tick.tick().await;
            if let Some(status) = newest.child.try_wait()? {
                bail!("{} ended by itself: {status}", newest.name);
            }
            let seen = match self.http.send(Request::get(url).body(Bytes::new())?).await {
                Ok(answer) if answer.status() == 200 => return Ok(()),
                Ok(answer) => answer.status().to_string(),
                Err(e) => e.to_string(),
            };
            if Instant::now() > deadline {
                bail!("{} is not ready after {START:?}: {url}: {seen}", newest.name);
            }
        }
    }

    /// Runs a program to its end; `command` comes from [`Children::command`] with `--as`.
    pub(crate) async fn finish<I: AsRef<OsStr>>(
        mut command: Command,
        args: impl IntoIterator<Item = I>,
    ) -> anyhow::Result<Output> {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = timeout(START, command.args(&args).output()).await;
        let told = || args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        output
            .with_context(|| format!("`{}` took more than {START:?}", told()))?
            .context("starting a program")
    }

    /// As [`Children::finish`], for what must succeed; gives what it wrote to stdout.
    pub(crate) async fn succeed<I: AsRef<OsStr>>(
        command: Command,
        args: impl IntoIterator<Item = I>,
    ) -> anyhow::Result<String> {
        let output = Self::finish(command, args).await?;
        if !output.status.success() {
            return Err(unexpected(output.status, &output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Tells of each program that ends by itself, once, and goes on: the others are still worth looking at.
    pub(crate) async fn watch(&mut self) -> anyhow::Result<()> {
        let mut tick = interval(GLANCE * 10);
        loop {
            tick.tick().await;
            // One that was told of has no process id any more.
            for running in self.running.iter_mut().filter(|running| running.child.id().is_some()) {
                if let Some(status) = running.child.try_wait()? {
                    crate::say(&format!(
                        "! {} ended by itself ({status}): see {}",
                        running.name,
                        running.log.display()
                    ));
                }
            }
        }
    }

    /// Ends the newest program; false if it had to be killed.
    pub(crate) async fn stop_newest(&mut self, hurry: impl Future<Output = ()>) -> bool {
        let Some(mut running) = self.running.pop() else { return true };
        // It may have ended already; then there is nothing to tell it and its status is at hand.
        if let Some(pid) = running.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = tokio::select! {
            ended = running.child.wait() => ended.is_ok(),
            () = tokio::time::sleep(GRACE) => false,
            () = hurry => false,
        };
        if !ended {
            crate::say(&format!("✗ {} did not end in time and was killed", running.name));
            // All that could fail here is that it ended in between.
            let _ = running.child.kill().await;
        }
        ended
    }

    /// Ends all programs, the newest first; false if one had to be killed. A signal hurries it.
    pub(crate) async fn stop(&mut self, signals: &mut Signals) -> bool {
        let mut orderly = true;
        while !self.running.is_empty() {
            orderly &= self.stop_newest(signals.next()).await;
        }
        orderly
    }

    /// The ends of all logs, for when something went wrong.
    pub(crate) fn show_logs(&self) {
        for running in &self.running {
            let Ok(text) = std::fs::read_to_string(&running.log) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            crate::say(&format!("--- {}, last lines of its log", running.name));
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
                crate::say(&format!("    {line}"));
            }
        }
    }
}

/// How a program ended, and what it said.
pub(crate) fn unexpected(status: ExitStatus, stderr: &[u8]) -> anyhow::Error {
    anyhow!("{status}: {}", String::from_utf8_lossy(stderr).trim())
}
