//! Takes commands as a page shows them; runs them one after another in one bash, as a reader would type them, and gives what each
//! printed. What they leave running ends with the shell. Refuses to wait for ever.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::binary;
use crate::wait;

/// Longer than anything that a page lets its reader wait for.
const LIMIT: Duration = Duration::from_mins(1);

/// A bash at work in a directory.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    stdin: ChildStdin,
    dir: PathBuf,
    log: PathBuf,
    /// How much of the log belongs to commands that are done.
    read: usize,
    count: u32,
}

/// What one command left.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    /// Both streams, as they came.
    pub printed: String,
}

impl Shell {
    /// A shell in `dir` that finds our programs and has `env`.
    ///
    /// # Errors
    /// There is no bash, or the programs were not built.
    pub fn start(dir: &Path, env: &[(&str, String)]) -> Result<Self> {
        let programs = binary("postern")?;
        let programs = programs.parent().context("the programs have no directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        // Beside the directory, which a page may want empty.
        let own = dir.with_extension("shell");
        let mut command = Command::new("bash");
        command
            .current_dir(dir)
            .env_clear()
            .env("PATH", format!("{}:{path}:/usr/sbin", programs.display()))
            .env("HOME", &own)
            .env("LC_ALL", "C.UTF-8")
            .envs(env.iter().map(|(name, value)| (name, value)));
        Self::of(command, own)
    }

    /// The bash that `command` starts, wherever that is; both of us can read and write `own`.
    pub fn of(mut command: Command, own: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&own)?;
        let log = own.join("log");
        let out = File::create(&log)?;
        command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let mut child = command.spawn().context("bash cannot be started")?;
        let stdin = child.stdin.take().context("bash has no stdin")?;
        Ok(Self { child, stdin, dir: own, log, read: 0, count: 0 })
    }

    /// Its home directory, and what is its own.
    pub fn home(&self) -> &Path {
        &self.dir
    }

    /// Types a command without waiting for its end.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        self.count += 1;
        let file = self.dir.join(format!("{}.sh", self.count));
        std::fs::write(&file, format!("{command}\n"))?;
        // Sourced, so that directories and variables stay; without our stdin, which a command would read on.
        let line =
            format!(". '{}' </dev/null; ended=$?; echo; echo \"@@{} $ended\"", file.display(), self.count);
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    /// What was printed since the last command was done.
    pub fn so_far(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.read..).unwrap_or_default()).into_owned()
    }

    /// Whether what was begun has ended.
    pub fn has_ended(&self) -> bool {
        self.so_far().contains(&format!("@@{} ", self.count))
    }

    /// Waits for the end of what was begun.
    ///
    /// # Errors
    /// It takes longer than a minute.
    pub async fn finish(&mut self) -> Result<Done> {
        let mark = format!("@@{} ", self.count);
        let found = wait::until("the command ends", LIMIT, async || {
            let text = self.so_far();
            let at = text.find(&mark)?;
            let code = text[at + mark.len()..].lines().next()?.parse().ok()?;
            text[at..].contains('\n').then_some((at, code))
        })
        .await;
        let (at, code) = found.with_context(|| self.so_far())?;
        let text = self.so_far();
        let end = text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
        self.read += end;
        Ok(Done { code, printed: text[..at].to_owned() })
    }

    /// Both.
    pub async fn run(&mut self, command: &str) -> Result<Done> {
        self.begin(command)?;
        self.finish().await
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // With all that it left running: they are in its group.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_ends_with_its_own_code() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut shell = Shell::start(dir.path(), &[])?;
        let failed = shell.run("echo said; (exit 3)").await?;
        assert_eq!((failed.code, failed.printed.trim()), (3, "said"));
        assert_eq!(shell.run("true").await?.code, 0);
        Ok(())
    }
}
