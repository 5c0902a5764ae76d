//! Takes nothing; gives a running PostgreSQL of Debian's on a port of its own, with the user `ada`, who needs no password. It refuses to
//! run as root, so root's tests run it as the user that Debian made for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Program, command, run};
use crate::wait;

/// A running PostgreSQL.
pub struct Postgres {
    pub port: u16,
    bin: PathBuf,
    /// Its own: the directory of a stand is closed to other users.
    dir: TempDir,
    program: Program,
}

impl Postgres {
    pub async fn start() -> Result<Self> {
        let bin = programs()?;
        let dir = tempfile::Builder::new().prefix("postern-postgres-").tempdir()?;
        if rustix::process::geteuid().is_root() {
            let owner = command("chown", ["postgres:postgres".as_ref(), dir.path().as_os_str()]);
            run(owner, wait::SOON).await?.expect_code(0)?;
        }
        let data = dir.path().join("data");
        let mut init = as_user(&bin.join("initdb"));
        init.arg("-D").arg(&data).args([
            "-U",
            "ada",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        run(init, Duration::from_mins(1)).await?.expect_code(0)?;
        let port = wait::free_port()?;
        let mut server = as_user(&bin.join("postgres"));
        server.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-h", "127.0.0.1", "-p"]);
        server.arg(port.to_string()).args(["-F", "-c", "max_connections=300", "-c", "log_connections=on"]);
        let log = dir.path().join("postgres.log");
        let program = Program::start("postgres", server, &log)?;
        let mut postgres = Self { port, bin, dir, program };
        postgres.program.wait_line("database system is ready", Duration::from_mins(1)).await?;
        Ok(postgres)
    }

    /// `psql` as ada, without a configuration of anybody's, at `port` on loopback.
    pub fn psql(&self, port: u16, sql: &str) -> Command {
        let mut psql = command(self.bin.join("psql"), ["-X", "-A", "-t", "-h", "127.0.0.1", "-U", "ada"]);
        psql.args(["-d", "postgres", "-v", "ON_ERROR_STOP=1", "-p", &port.to_string(), "-c", sql]);
        psql.env("PGCONNECT_TIMEOUT", "20").env("HOME", self.dir.path());
        psql
    }

    /// Waits until it has logged this so often.
    pub async fn wait_log(&mut self, needle: &str, count: usize) -> Result<()> {
        self.program.wait_lines(needle, count, wait::SOON).await.map(drop)
    }

    /// Debian's `pgbench` as ada at `port` on loopback.
    pub fn pgbench(&self, port: u16, args: &[&str]) -> Command {
        let mut pgbench = command(self.bin.join("pgbench"), ["-h", "127.0.0.1", "-U", "ada"]);
        pgbench.args(["-p", &port.to_string()]).args(args).arg("postgres");
        pgbench
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Killed outright it would leave shared memory behind. What it says, or that it has ended already, is nobody's concern.
        let mut stop = as_user(&self.bin.join("pg_ctl"));
        stop.arg("-D").arg(self.dir.path().join("data")).args(["stop", "-s", "-m", "immediate", "-t", "10"]);
        let _ = stop.status();
    }
}

/// The newest of the versions that are there.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("install postgresql")?;
    let mut found: Vec<PathBuf> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().context("install postgresql: there is no initdb")
}

fn as_user(program: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // It starts in a directory that its user may enter.
    command.current_dir("/");
    command
}
