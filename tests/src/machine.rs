//! A Debian machine with systemd as its first process, in namespaces of its own (systemd-nspawn). Takes nothing; gives a machine that
//! has the files of this one (what it changes is gone with it), a network of its own with loopback alone, and no services but those that
//! somebody starts there. Refuses, with what to do, where it is not allowed to make one.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::book::ROOT;
use crate::process::{self, Output, Program, binary, command};
use crate::shell::Shell;
use crate::wait;

/// `$1` is a directory of ours, `$2` the name. What is mounted here is gone with the process: it has a view of its own.
const BOOT: &str = r#"
set -e
mount -t tmpfs tmpfs "$1/layers"
mkdir "$1/layers/changed" "$1/layers/work" "$1/layers/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/changed,workdir=$1/layers/work" "$1/layers/root"
exec systemd-nspawn --quiet --directory="$1/layers/root" --machine="$2" --register=no --keep-unit \
    --link-journal=no --private-network --bind="$1/shared" "${@:3}" --boot systemd.unit=basic.target systemd.mask=timers.target
"#;

const LIMIT: Duration = Duration::from_mins(1);

/// How long somebody else's machine may be there. Two would share the groups that nspawn makes below our own.
const OTHERS: Duration = Duration::from_mins(2);

/// A machine that has booted.
pub struct Machine {
    /// Its first process, as it is called here.
    first: i32,
    program: Program,
    dir: TempDir,
    /// Locked as long as this machine is there: it is the only one.
    _only: File,
}

impl Machine {
    pub async fn boot() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "a machine of its own needs root: run this test, or tests/run, as root"
        );
        let only = File::create(std::env::temp_dir().join("postern-test-machine"))?;
        let is_ours = async || only.try_lock().is_ok().then_some(());
        wait::until("no other test has a machine", OTHERS, is_ours).await?;
        let dir = tempfile::Builder::new().prefix("postern-machine-").tempdir()?;
        for name in ["layers", "shared"] {
            // Others of the machine come in here, too.
            std::fs::DirBuilder::new().mode(0o755).create(dir.path().join(name))?;
        }
        let name = format!("postern-test-{}", std::process::id());
        let mut boot =
            command("unshare", ["--mount", "--propagation", "private", "bash", "-c", BOOT, "bash"]);
        boot.arg(dir.path()).arg(name);
        let programs = binary("postern")?;
        let programs = programs.parent().context("the programs have no directory")?;
        for path in [Path::new(ROOT).canonicalize()?, programs.canonicalize()?] {
            boot.arg(format!("--bind-ro={}", path.display()));
        }
        let program = Program::start("a machine", boot, &dir.path().join("console.log"))?;
        let mut machine = Self { first: 0, program, dir, _only: only };
        let booted = wait::until("the machine has booted", LIMIT, async || {
            if !machine.program.is_running() {
                return Some(Err(()));
            }
            machine.first = machine.first_process()?;
            let asked = machine.command("systemctl is-active basic.target");
            let told = process::run(asked, wait::SOON).await.ok()?;
            (told.stdout.trim() == "active").then_some(Ok(()))
        })
        .await;
        ensure!(
            matches!(booted, Ok(Ok(()))),
            "systemd does not boot; it needs the rights to mount and to make namespaces and control groups: {booted:?}\n{}",
            machine.program.tail()
        );
        Ok(machine)
    }

    /// Once it is systemd, and not what starts it.
    fn first_process(&self) -> Option<i32> {
        let pid = self.program.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child: i32 = children.split_whitespace().next()?.parse().ok()?;
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "systemd").then_some(child)
    }

    /// A directory that both machines have, under the same name.
    pub fn shared(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    /// A line of shell, to be run there as root.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.entered();
        command.args(["bash", "-c", &format!("cd '{}' && {line}", self.shared().display())]);
        command
    }

    fn entered(&self) -> Command {
        let mut command = command("nsenter", ["--target", &self.first.to_string(), "--all", "--"]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.current_dir("/").env_clear().env("PATH", path).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a line of shell there to its end.
    pub async fn run(&self, line: &str) -> Result<Output> {
        process::run(self.command(line), LIMIT).await
    }

    /// A shell of root's there, in the directory that both machines have.
    pub async fn shell(&self) -> Result<Shell> {
        let mut bash = self.entered();
        bash.arg("bash");
        let mut shell = Shell::of(bash, self.shared().join(".shell"))?;
        let done = shell.run(&format!("cd '{}'", self.shared().display())).await?;
        ensure!(done.code == 0, "{}", done.printed);
        Ok(shell)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All that runs there ends with its first process, and what started that ends by itself, and leaves nothing.
        let _ = match rustix::process::Pid::from_raw(self.first) {
            Some(first) => {
                rustix::process::kill_process(first, rustix::process::Signal::KILL).map_err(Into::into)
            }
            None => self.program.signal(process::Signal::TERM),
        };
        let end = std::time::Instant::now() + wait::SOON;
        while self.program.is_running() && std::time::Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        for group in own_groups().unwrap_or_default() {
            for made in ["payload", "supervisor"] {
                remove_tree(&group.join(made));
            }
        }
    }
}

/// Our own control groups in the hierarchies that systemd uses.
fn own_groups() -> Result<Vec<PathBuf>> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut groups = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, at, kind, options, ..] = fields[..] else { continue };
        let named = match kind {
            "cgroup2" => "",
            "cgroup" if options.split(',').any(|one| one == "name=systemd") => "name=systemd",
            _ => continue,
        };
        // HIERARCHY:CONTROLLERS:PATH
        let path = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        groups.extend(
            path.filter(|(of, _)| *of == named)
                .map(|(_, path)| Path::new(at).join(path.trim_start_matches('/'))),
        );
    }
    Ok(groups)
}

/// What is empty of it; a group with processes in it stays.
fn remove_tree(group: &Path) {
    for below in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&below.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}
