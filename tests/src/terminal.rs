//! Takes a command; runs it on a terminal of its own (util-linux's `script`), types what is to be typed once it has asked, and gives what
//! was on the screen, escape sequences and all.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::Output;
use crate::wait;

/// No line is wider than the narrowest terminal once it is folded there. Rows of tables are not to be folded, and are narrow in files as well.
pub fn fits(text: &str) -> Result<()> {
    let folded = postern_base::console::fold::folded(text, 80);
    let rows = text.lines().filter(|line| line.trim().contains("  "));
    let wide = rows.chain(folded.lines()).find(|line| line.chars().count() > 80);
    ensure!(wide.is_none(), "wider than 80 columns: {wide:?}\n{text}");
    Ok(())
}

/// The same command on a terminal of its own, of 80 columns.
pub fn on(command: &Command) -> Result<Command> {
    let quoted: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| shlex::try_quote(&word.to_string_lossy()).map(std::borrow::Cow::into_owned))
        .collect::<Result<_, _>>()?;
    let line = format!("stty cols 80 rows 24; exec {}", quoted.join(" "));
    let mut script = Command::new("script");
    script.args(["-qefc", &line, "/dev/null"]).env_clear().env("TERM", "xterm-256color");
    script.env("PATH", std::env::var_os("PATH").context("no PATH")?);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    Ok(script)
}

/// Runs it to its end, at most `limit` long. `typed` follows each of these questions, in their order.
pub async fn run(command: &Command, typed: &[(&str, &str)], limit: Duration) -> Result<Output> {
    let mut child = tokio::process::Command::from(on(command)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("script (util-linux) cannot be run")?;
    let (mut keys, mut screen) =
        (child.stdin.take().context("no keys")?, child.stdout.take().context("no screen")?);
    let mut questions = typed.iter().peekable();
    let (mut seen, mut answered) = (Vec::new(), 0);
    let session = async {
        loop {
            let mut piece = [0; 4096];
            let read = screen.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            if let Some((question, answer)) = questions.peek()
                && let Some(at) = text.get(answered..).and_then(|rest| rest.find(question))
            {
                answered += at + question.len();
                keys.write_all(answer.as_bytes()).await?;
                keys.flush().await?;
                questions.next();
            }
        }
        anyhow::Ok(child.wait().await?)
    };
    let status = wait::within("a command on a terminal", limit, session).await??;
    let stdout = String::from_utf8_lossy(&seen).replace("\r\n", "\n");
    Ok(Output { code: status.code().unwrap_or(-1), stdout, stderr: String::new() })
}
