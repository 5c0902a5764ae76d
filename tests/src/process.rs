//! Takes commands; gives running programs whose output is in a file, who can be waited for, signalled and measured, and who do not
//! outlive the test; and one-off runs with their output. Refuses to wait for ever.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;

use crate::wait;

/// A program of the workspace, such as `postern-relay`: it lies beside the directory of the running test or bench program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut dir = own.parent().context("the test program has no directory")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("deps has no parent")?;
    }
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is missing: run tests/run, or cargo build --workspace", path.display());
    }
    Ok(path)
}

/// A program that runs until it is told to stop, or dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Memory of a process in bytes: resident now, and at its highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Program {
    /// Starts `command` with both outputs going to `log` and nothing to read.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{name} cannot be started: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    pub fn log_text(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for a line that contains `needle`; an early death is an error that shows its last words.
    pub async fn wait_line(&mut self, needle: &str, limit: Duration) -> Result<String> {
        self.wait_lines(needle, 1, limit).await
    }

    /// The same for the `count`-th such line.
    pub async fn wait_lines(&mut self, needle: &str, count: usize, limit: Duration) -> Result<String> {
        let what = format!("{} says {needle:?} {count} times", self.name);
        let found = wait::until(&what, limit, async || {
            let line =
                self.log_text().lines().filter(|l| l.contains(needle)).nth(count - 1).map(str::to_owned);
            line.map(Ok).or_else(|| self.exited().map(Err))
        })
        .await;
        match found {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(status)) => {
                bail!("{} ended ({status}) before it said {needle:?}:\n{}", self.name, self.tail())
            }
            Err(error) => bail!("{error}; its log:\n{}", self.tail()),
        }
    }

    /// What follows `key` up to the next blank, in the first line that has it: `listening https=127.0.0.1:1` and `https=`.
    pub async fn wait_value(&mut self, key: &str) -> Result<String> {
        let line = self.wait_line(key, wait::SOON).await?;
        let value = line.split_once(key).map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        Ok(value.unwrap_or_default().to_owned())
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn is_running(&mut self) -> bool {
        self.exited().is_none()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("no pid")?, signal)
            .with_context(|| format!("{}: {signal:?}", self.name))
    }

    /// Waits until it has ended by itself.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait::until(&what, limit, async || self.exited()).await.with_context(|| self.tail())
    }

    /// Signals and waits.
    pub async fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait_exit(Duration::from_secs(30)).await
    }

    pub fn memory(&self) -> Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let field = |name: &str| -> Result<u64> {
            let line =
                status.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
            Ok(kib * 1024)
        };
        Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field is the name in parentheses and may contain blanks; utime and stime are the 14th and 15th of all.
        let rest = stat.rsplit_once(") ").context("/proc/stat has no name")?.1;
        let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_millis(ticks * 1000 / per_second.max(1)))
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("--- {} ({})\n{last}", self.name, self.log.display())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a finished run left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Itself if the exit code is `code`; else an error that shows everything.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        bail!("exit code {} instead of {code}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr)
    }
}

/// Runs to the end, at most `limit` long; then it is killed and that is an error.
pub async fn run(command: Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| shown.clone())?;
    let output = wait::within(&shown, limit, child.wait_with_output()).await??;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that reads a file, at most `limit` long; gives its exit code and its standard output as bytes.
pub async fn fed(command: Command, input: &Path, limit: Duration) -> Result<(i32, Vec<u8>)> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(File::open(input)?).stdout(Stdio::piped()).kill_on_drop(true);
    let output = wait::within(&shown, limit, command.spawn()?.wait_with_output()).await??;
    Ok((output.status.code().unwrap_or(-1), output.stdout))
}

/// Writes a program of a few lines.
pub fn script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

/// A command with its arguments.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}
