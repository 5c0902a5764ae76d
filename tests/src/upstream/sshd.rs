//! Takes a directory; gives a running sshd of Debian's that lets the user of the tests in with a key of this directory, and `ssh` and
//! `scp` commands that use that key, know the host, and go through whatever proxy command they are told.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{Program, command, run};
use crate::wait;

/// What the clients call the host, whatever leads there.
const HOST: &str = "shell.example.com";

/// A running sshd.
pub struct Sshd {
    pub port: u16,
    dir: PathBuf,
    user: String,
    program: Program,
}

impl Sshd {
    pub async fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("sshd");
        std::fs::create_dir_all(&dir)?;
        if rustix::process::geteuid().is_root() {
            // Compiled in; Debian's own service makes it when it starts.
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd")?;
        }
        for key in ["host", "user"] {
            let path = dir.join(key);
            let path = path.to_str().context("the directory's name is not text")?;
            run(command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", path]), wait::SOON)
                .await?
                .expect_code(0)?;
        }
        std::fs::copy(dir.join("user.pub"), dir.join("authorized_keys"))?;
        let host = std::fs::read_to_string(dir.join("host.pub"))?;
        std::fs::write(dir.join("known_hosts"), format!("{HOST} {host}"))?;
        let user = run(command("id", ["-un"]), wait::SOON).await?.expect_code(0)?.stdout.trim().to_owned();
        let port = wait::free_port()?;
        let config = dir.join("sshd_config");
        std::fs::write(&config, config_text(&dir, port))?;
        let mut server = command("/usr/sbin/sshd", ["-D", "-e", "-f"]);
        server.arg(&config);
        let program = Program::start("sshd", server, &dir.join("sshd.log"))?;
        let mut sshd = Self { port, dir, user, program };
        sshd.program.wait_line("Server listening", wait::SOON).await?;
        Ok(sshd)
    }

    /// `ssh` or `scp`, with the environment that `proxy` has and `proxy` in its own words as the way to the host.
    pub fn client(&self, program: &str, proxy: &Command) -> Command {
        let mut words = vec![proxy.get_program().to_string_lossy().into_owned()];
        words.extend(proxy.get_args().map(|arg| arg.to_string_lossy().into_owned()));
        let mut client = command(program, ["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]);
        client.env_clear();
        for (name, value) in proxy.get_envs() {
            if let Some(value) = value {
                client.env(name, value);
            }
        }
        client
            .arg("-i")
            .arg(self.dir.join("user"))
            .args(["-o", "StrictHostKeyChecking=yes", "-o"])
            .arg(format!("UserKnownHostsFile={}", self.dir.join("known_hosts").display()))
            .arg("-o")
            .arg(format!("ProxyCommand={}", words.join(" ")));
        client
    }

    /// The same as a person's `~/.ssh/config` has it, for every host.
    pub fn settings(&self) -> String {
        format!(
            "Host *\n    BatchMode yes\n    HostKeyAlias {HOST}\n    User {}\n    IdentityFile {}\n    UserKnownHostsFile {}\n",
            self.user,
            self.dir.join("user").display(),
            self.dir.join("known_hosts").display()
        )
    }

    /// `user@host` for the command line.
    pub fn address(&self) -> String {
        format!("{}@{HOST}", self.user)
    }

    /// Waits until it has logged this.
    pub async fn wait_log(&mut self, needle: &str) -> Result<()> {
        self.program.wait_line(needle, wait::SOON).await.map(drop)
    }
}

fn config_text(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "Port {port}
ListenAddress 127.0.0.1
HostKey {dir}/host
AuthorizedKeysFile {dir}/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile none
Subsystem sftp internal-sftp
"
    )
}
