//! Network namespaces. Takes a word; gives a namespace of its own that threads can move into and programs can be started in; it goes
//! when it is dropped, and those that killed tests left behind go when the next one is made. Refuses, with what to do, where it is not
//! allowed to make one. [`network`] joins three of them to a path that can be cut.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::LinkNameSpaceType;

use crate::process::{self, Output, command};

pub mod network;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// What the names of ours begin with; the maker's process id follows.
const OURS: &str = "postern-test-";
/// Configuring the kernel is quick, unless the machine is very busy.
const LIMIT: Duration = Duration::from_secs(20);

/// A network namespace with its loopback up and nothing else in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one; `role` is for people who look at `ip netns`.
    pub async fn create(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run this test, or tests/run, as root"
        );
        sweep().await;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{OURS}{}-{number}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]).await.context("a network namespace cannot be made here")?;
        let made = Self { name };
        made.ip("link set lo up").await?;
        Ok(made)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread in, for good: its sockets, and the programs and threads it starts from now on, are here.
    pub fn enter(&self) -> Result<()> {
        let path = Path::new(NAMES).join(&self.name);
        let file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", self.name))
    }

    /// Does `work` on a thread of its own in here, and waits for it: for sockets and for files below `/proc/sys/net`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let done = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
        });
        match done {
            Ok(done) => done,
            Err(_) => bail!("the work in {} panicked", self.name),
        }
    }

    /// The same command, to be run in here. It keeps its process id: nothing stands between it and its signals.
    pub fn command(&self, inner: &Command) -> Command {
        Self::command_in(&self.name, inner)
    }

    /// The same for a namespace by its name.
    pub fn command_in(name: &str, inner: &Command) -> Command {
        let mut outer = command("ip", ["netns", "exec", name]);
        outer.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer
    }

    /// `ip WORDS` in here.
    pub async fn ip(&self, words: &str) -> Result<()> {
        let mut args = vec!["-n", &self.name];
        args.extend(words.split(' '));
        run("ip", &args).await.map(drop)
    }

    /// Replaces all packet filters in here.
    pub async fn filter(&self, rules: &str) -> Result<()> {
        let all = format!("flush ruleset; {rules}");
        run("ip", &["netns", "exec", &self.name, "nft", &all]).await.map(drop)
    }

    /// Sets a value below `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(path);
        self.within(|| std::fs::write(&path, value).with_context(|| path.display().to_string()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Programs that still run in here keep it alive without a name, until they end.
        let _ = command("ip", ["netns", "del", &self.name]).output();
    }
}

/// Removes what tests left that were killed before they could: the names say whose they were.
async fn sweep() {
    let Ok(names) = std::fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(OURS).and_then(|rest| rest.split('-').next());
        let is_stale = pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if is_stale {
            // Another test may have been quicker.
            let _ = run("ip", &["netns", "del", &name]).await;
        }
    }
}

async fn run(program: &str, args: &[&str]) -> Result<Output> {
    let command = command(program, args);
    let shown = format!("{command:?} (tests/run installs what is missing)");
    let output = process::run(command, LIMIT).await.with_context(|| shown.clone())?;
    output.expect_code(0).context(shown)
}
