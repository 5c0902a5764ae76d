//! Takes a directory; gives the running servers of `tests/stacks`, written by others in Node and Python, and what the callers there saw,
//! as JSON. Refuses to start without what `tests/run` installs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::http::Http;
use crate::process::{self, Program};
use crate::wait;

/// A file of `tests/stacks`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("stacks").join(name)
}

/// The interpreter for a script, by its ending.
fn command(script: &str) -> Result<Command> {
    let script = file(script);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/stacks-venv/bin/python");
    let is_python = script.extension().is_some_and(|ending| ending == "py");
    let needed = if is_python { python.clone() } else { file("node_modules") };
    ensure!(needed.exists(), "{} is missing: run tests/run, which installs it", needed.display());
    let interpreter = if is_python { python } else { PathBuf::from("node") };
    Ok(process::command(interpreter, [script]))
}

/// A running server.
#[derive(Debug)]
pub struct Stack {
    program: Program,
    ready: String,
}

impl Stack {
    /// Starts a script of `tests/stacks` and waits until it has said where it listens.
    pub async fn start(dir: &Path, script: &str) -> Result<Self> {
        let mut program = Program::start(script, command(script)?, &dir.join(format!("{script}.log")))?;
        let ready = program.wait_line("ready ", wait::SOON * 2).await?;
        Ok(Self { program, ready })
    }

    /// Where it listens for `what`: `http`, `h2c`, `control`.
    pub fn address(&self, what: &str) -> Result<&str> {
        let found = self.ready.split(' ').find_map(|word| word.strip_prefix(what)?.strip_prefix('='));
        found.with_context(|| format!("no {what} in {:?}", self.ready))
    }

    /// What arrived under a case's name, asked beside Postern.
    pub async fn seen(&self, http: &Http, case: &str) -> Result<Value> {
        let url = format!("http://{}/seen/{case}", self.address("control")?);
        http.get(&url, None).await?.expect_status(200)?.json()
    }

    pub fn tail(&self) -> String {
        self.program.tail()
    }
}

/// Runs a caller of `tests/stacks` with its job to the end; gives its report.
pub async fn call(script: &str, job: &Value, limit: Duration) -> Result<Value> {
    let mut command = command(script)?;
    command.arg(job.to_string());
    // What Python would say about forks and proxies of the machine is not the test's business.
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    let output = process::run(command, limit).await?.expect_code(0)?;
    serde_json::from_str(output.stdout.trim()).with_context(|| format!("{script}: {}", output.stdout))
}
