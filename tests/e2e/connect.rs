//! `postern connect` is a pipe to a TCP service: OpenSSH's own programs use it as their `ProxyCommand`, nothing but the service's bytes is
//! on its standard output, and its exit code says how it ended.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Sshd;
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TABLES: &str = r#"
[services.shell]
kind = "tcp"
agent = "dc1"
rules = [{ name = "clerks have a shell", allow = "role:clerk", to = "CONNECT" }]

[services.dead]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "*", to = "CONNECT" }]
"#;

/// What a command needs for megabytes through a debug build.
const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn ssh_works_through_connect() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut sshd = Sshd::start(dir.path()).await?;
    let doomed = std::net::TcpListener::bind("127.0.0.1:0")?;
    let upstreams = format!(
        "[services.shell]\nupstream = \"tcp://127.0.0.1:{}\"\n[services.dead]\nupstream = \"tcp://127.0.0.1:{}\"\n",
        sshd.port,
        doomed.local_addr()?.port()
    );
    let extra = Extra { tables: TABLES.to_owned(), agent_tables: upstreams, ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    drop(doomed);
    let ada = stand.cli("ada")?;
    let refused = |what: &str, output: Output, code: i32| {
        ensure!(output.stdout.is_empty() && output.stderr.contains("Fix:"), "{what}: {output:?}");
        output.expect_code(code).map(drop)
    };
    refused("nobody is logged in", ada.run(&["connect", "shell", "-r", &stand.url]).await?, 4)?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let proxy = ada.command(&["connect", "shell"])?;
    let ssh = |command: &str| {
        let mut ssh = sshd.client("ssh", &proxy);
        ssh.arg(sshd.address()).arg(command);
        ssh
    };

    say("ssh runs a command, and its exit code comes through");
    let hello = process::run(ssh("echo hello; exit 7"), LONG).await?.expect_code(7)?;
    ensure!(hello.stdout == "hello\n", "{hello:?}");

    say("10 MB each way through ssh's own channel");
    let file = dir.path().join("10m");
    let bytes: Vec<u8> =
        (0..10_000_000u32).flat_map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24)).collect();
    std::fs::write(&file, &bytes)?;
    let (code, back) = process::fed(ssh("cat"), &file, LONG).await?;
    ensure!(code == 0 && back == bytes, "exit code {code}, {} bytes came back", back.len());

    say("scp there and back");
    let there = dir.path().join("there");
    let again = dir.path().join("again");
    let far = format!("{}:{}", sshd.address(), there.display());
    let mut scp = sshd.client("scp", &proxy);
    scp.arg("-q").arg(&file).arg(&far);
    process::run(scp, LONG).await?.expect_code(0)?;
    let mut scp = sshd.client("scp", &proxy);
    scp.arg("-q").arg(&far).arg(&again);
    process::run(scp, LONG).await?.expect_code(0)?;
    ensure!(std::fs::read(&there)? == bytes && std::fs::read(&again)? == bytes);

    say("an end of input is the end of what is sent, not of what comes");
    let banner = dir.path().join("banner");
    std::fs::write(&banner, "this is no ssh client\r\n")?;
    let (code, answer) = process::fed(ada.command(&["connect", "shell"])?, &banner, LONG).await?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(code == 0 && answer.starts_with("SSH-2.0-OpenSSH"), "exit code {code}: {answer}");
    sshd.wait_log("this is no ssh client").await?;

    say("why it does not work");
    let run = async |args: &[&str]| ada.run(args).await;
    refused("an upstream that is not there", run(&["connect", "dead"]).await?, 8)?;
    refused("no such service", run(&["connect", "nothing"]).await?, 6)?;
    refused("an HTTP service", run(&["connect", "echo"]).await?, 1)?;
    refused("curl of a TCP service", run(&["curl", "shell/"]).await?, 1)?;
    let bob = stand.cli("bob")?;
    bob.login_device(&stand.issuer, "bob", &[]).await?.expect_code(0)?;
    let denied = bob.run(&["connect", "shell"]).await?;
    ensure!(denied.stderr.contains("can CONNECT shell"), "{denied:?}");
    refused("not allowed", denied, 5)?;

    say("a connection that breaks is no good end");
    let mut broken = tokio::process::Command::from(ada.command(&["connect", "shell"])?);
    let mut broken = broken.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut output = broken.stdout.take().context("no standard output")?;
    let mut first = [0; 4];
    wait::within("sshd's first word", wait::SOON, output.read_exact(&mut first)).await??;
    ensure!(&first == b"SSH-", "{first:?}");
    let mut input = broken.stdin.take().context("no standard input")?;
    input.write_all(b"SSH-2.0-test\r\n").await?;
    stand.stop_relay(Signal::KILL).await?;
    let ended = wait::within("connect ends", wait::SOON, broken.wait_with_output()).await??;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(1) && said.contains("broke off"), "{:?}: {said}", ended.status);
    refused("no relay", ada.run(&["connect", "shell"]).await?, 7)?;
    stand.passed();
    Ok(())
}
