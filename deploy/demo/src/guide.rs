//! Takes a stage on which everything runs; gives what a person types next: three commands in a directory, one file to source, and the
//! text that explains them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use postern_base::file::{Access, create_private_dir, write_atomic};

use crate::stage::Stage;

/// Writes `bin/postern`, `bin/postern-relay` and `bin/postern-agent`, and `env` with the settings that lead to this stage.
pub(crate) fn write_environment(stage: &Stage, program: &Path) -> std::io::Result<()> {
    let bin = stage.path("bin");
    create_private_dir(&bin)?;
    for (name, role) in [("postern", "postern"), ("postern-relay", "relay"), ("postern-agent", "agent")] {
        // A proxy cannot reach this machine's loopback.
        let script = format!(
            "#!/bin/sh\nunset HTTPS_PROXY https_proxy ALL_PROXY all_proxy\nexec {} --as {role} \"$@\"\n",
            quoted(program)
        );
        let path = bin.join(name);
        write_atomic(&path, script.as_bytes(), Access::Private)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
    }
    let servers = [
        ("POSTERN_RELAY_CONFIG", stage.path("relay.toml")),
        ("POSTERN_AGENT_CONFIG", stage.path("agent.toml")),
    ];
    let mut settings = format!("export PATH={}:\"$PATH\"\n", quoted(&bin));
    for (name, value) in environment(stage, "client").into_iter().chain(servers) {
        settings.extend(["export ", name, "=", &quoted(&value), "\n"]);
    }
    write_atomic(&stage.path("env"), settings.as_bytes(), Access::Private)
}

/// What the client needs to know: this relay and its certificate, and sessions in `dir` rather than in the person's keyring.
pub(crate) fn environment(stage: &Stage, dir: &str) -> [(&'static str, PathBuf); 4] {
    [
        ("POSTERN_RELAY", stage.relay_url().into()),
        ("POSTERN_CA", stage.ca()),
        ("POSTERN_KEYRING", "file".into()),
        ("POSTERN_CONFIG_DIR", stage.path(dir)),
    ]
}

/// One word for a POSIX shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

pub(crate) fn text(stage: &Stage) -> String {
    let dir = stage.dir().display();
    let (relay, issuer, invoices) = (stage.relay_url(), stage.issuer_url(), stage.invoices_url());
    let (ready, port) = (stage.agent_ready_url(), stage.forward_port());
    format!(
        "
Running, all of it on this machine and reachable from this machine only:

  issuer    {issuer:<25} DEVELOPMENT ONLY: whoever asks may be ada or bob
  invoices  {invoices:<25} the \"legacy\" API: knows nothing of tokens
  relay     {relay:<25} the only address that callers need
  agent     dials the relay; listens nowhere but for its health: {ready}

In another terminal:

  . {dir}/env

  postern login                                   # pick ada, who is in group finance (no browser: --device)
  postern ls                                      # what ada may reach
  postern curl billing/v1/invoices                # allowed: clerks read invoices
  postern curl -X DELETE billing/v1/invoices/7    # denied: and what would be needed
  postern forward {port}:billing                   # stays; meanwhile, from any program:
  curl http://127.0.0.1:{port}/v1/invoices

Become bob, who is in no group:

  postern logout
  postern login                                   # pick bob
  postern curl billing/v1/invoices                # denied
  postern curl wiki/                              # allowed: everyone reads the wiki

Without browser and person, approve a login that shows a code with:

  curl -d user_code=CODE -d person=ada {issuer}/device

Behind it: {dir}/relay.toml, agent.toml, audit.jsonl, logs/
and `postern-relay agent ls`, `postern-relay policy test`.

Ctrl-C ends everything and removes that directory."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_that_sources_the_file_finds_the_commands() {
        let stage = Stage::build(None).unwrap();
        write_environment(&stage, Path::new("/bin/ec'ho")).unwrap();
        let script = std::fs::read_to_string(stage.path("bin/postern-relay")).unwrap();
        assert!(script.ends_with("exec '/bin/ec'\\''ho' --as relay \"$@\"\n"), "{script}");
        write_environment(&stage, Path::new("/bin/echo")).unwrap();
        let told = std::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(format!(". {}/env && postern ls && printf %s \"$POSTERN_RELAY\"", stage.dir().display()))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(told.stdout).unwrap(),
            format!("--as postern ls\n{}", stage.relay_url()),
            "{:?}",
            String::from_utf8_lossy(&told.stderr)
        );
    }
}
