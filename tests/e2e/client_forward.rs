//! A forward tells what happens to it in one line each: a relay that is away, a sleep, a connection that was cut. Once the session is over
//! it ends with exit code 4; several services are served at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{Signal, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const PARROT: &str = r#"
[services.parrot]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "*", to = "CONNECT" }]
"#;

async fn parrot(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

#[tokio::test]
async fn several_services_are_served_at_once_and_a_program_knows_each() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let agent_tables =
        format!("[services.parrot]\nupstream = \"tcp://127.0.0.1:{}\"\n", listener.local_addr()?.port());
    let stand =
        Stand::start_with(Extra { tables: PARROT.to_owned(), agent_tables, ..Extra::default() }).await?;
    let mut serving = JoinSet::new();
    serving.spawn(parrot(listener));
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let script = "curl -sS $POSTERN_URL_ECHO/several; curl -sS $POSTERN_URL_BILLING/v1/invoices/7 >/dev/null; \
                  echo \" $POSTERN_PORT $POSTERN_PORT_ECHO $POSTERN_URL_PARROT\"";
    let run =
        ada.run(&["forward", "echo", "billing", "parrot", "--", "sh", "-c", script]).await?.expect_code(0)?;
    let (answer, rest) = run.stdout.rsplit_once("} ").context("no answer")?;
    ensure!(answer.contains("\"target\":\"/several\""), "{run:?}");
    let words: Vec<_> = rest.split_whitespace().collect();
    ensure!(
        words.len() == 3 && words[0] == words[1] && words[2].starts_with("tcp://127.0.0.1:"),
        "{words:?}"
    );
    let told = run.stderr.lines().filter(|line| line.starts_with("Forwarding ")).collect::<Vec<_>>();
    ensure!(told.len() == 3 && told.iter().all(|line| line.ends_with("   (Ctrl-C stops)")), "{told:?}");

    say("where one cannot be served, none is, and none is announced");
    let some = ada.run(&["forward", "echo", "nothing"]).await?.expect_code(6)?;
    ensure!(!some.stderr.contains("Forwarding"), "{some:?}");

    say("a connection that an operator cuts is told in one line");
    let (mut forward, local) = ada.forward("parrot", &[]).await?;
    let mut stream = TcpStream::connect(&local).await?;
    stream.write_all(b"x").await?;
    ensure!(wait::within("the echo", wait::SOON, stream.read_u8()).await?? == b'x');
    stand
        .relay_command(&["lock", "add", "--service", "parrot", "--reason", "incident 7"])
        .await?
        .expect_code(0)?;
    ensure!(wait::within("the cut", wait::SOON, stream.read_u8()).await?.is_err());
    forward.wait_line("the relay ended a connection to parrot", wait::SOON).await?;
    let lines = forward.log_text().lines().filter(|line| line.contains("ended a connection")).count();
    ensure!(lines == 1, "{}", forward.log_text());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_forward_ends_with_its_session() -> Result<()> {
    let issuer = "leeway = \"1s\"".to_owned();
    let stand = Stand::start_with(Extra { issuer, ..Extra::default() }).await?;
    let ada = stand.cli("ada")?;
    stand.issuer.access_ttl(Duration::from_secs(4)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;

    say("logged out elsewhere: the next call is refused, and the forward ends");
    let (mut forward, base) = ada.forward("echo", &[]).await?;
    stand.http.get(&format!("{base}/good"), None).await?.expect_status(200)?;
    ada.run(&["logout"]).await?.expect_code(0)?;
    wait::until("the last token ends", wait::SOON, async || {
        let answer = stand.http.get(&format!("{base}/over"), None).await.ok()?;
        (answer.status == 401).then_some(())
    })
    .await?;
    let ended = forward.wait_exit(wait::SOON).await?;
    ensure!(ended.code() == Some(4), "{ended}: {}", forward.log_text());
    let log = forward.log_text();
    ensure!(log.contains("✗ not logged in") && log.contains("Fix: run: postern login"), "{log}");

    say("a token that was given, and nothing renews");
    let token = stand.issuer.token("ada").await?;
    let port = wait::free_port()?;
    let given = |args: &[&str]| -> Result<std::process::Command> {
        let mut command = ada.command(args)?;
        command.env("POSTERN_TOKEN", &token).env("POSTERN_RELAY", &stand.url);
        Ok(command)
    };
    let spec = format!("{port}:echo");
    let mut forward = ada.start_command(given(&["forward", &spec])?, "given")?;
    forward.wait_value("Forwarding ").await?;
    wait::until("the token ends", wait::SOON * 3, async || {
        let answer = stand.http.get(&format!("http://127.0.0.1:{port}/given"), None).await.ok()?;
        (answer.status == 401).then_some(())
    })
    .await?;
    let ended = forward.wait_exit(wait::SOON).await?;
    ensure!(ended.code() == Some(4), "{ended}: {}", forward.log_text());

    say("a program that is run is not ended for it, and has the last word");
    let token = stand.issuer.token("ada").await?;
    let script = "while curl -sSf $POSTERN_URL/child >/dev/null; do sleep 0.2; done; exit 7";
    let mut command = ada.command(&["forward", "echo", "--", "sh", "-c", script])?;
    command.env("POSTERN_TOKEN", &token).env("POSTERN_RELAY", &stand.url);
    let run = postern_tests::process::run(command, wait::SOON * 4).await?.expect_code(7)?;
    let told = run.stderr.lines().filter(|line| line.starts_with("✗ Refused (401): ")).count();
    ensure!(told == 1, "{run:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn on_a_terminal_a_loss_is_one_line_and_a_sleep_another() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let port = wait::free_port()?;
    let inner = ada.command(&["forward", &format!("{port}:echo")])?;
    let words =
        std::iter::once(inner.get_program()).chain(inner.get_args()).map(|word| word.to_string_lossy());
    let line = std::iter::once("exec".into()).chain(words).collect::<Vec<_>>().join(" ");
    let mut terminal = command("script", ["-qefc", &line, "/dev/null"]);
    terminal.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut forward = ada.start_command(terminal, "terminal")?;
    let shown = forward.wait_line("Forwarding http://127.0.0.1", wait::SOON).await?;
    ensure!(
        shown.trim_end() == format!("Forwarding http://127.0.0.1:{port} -> echo   (Ctrl-C stops)"),
        "{shown:?}"
    );

    say("the relay goes away and comes back");
    let calls = |port: u16| format!("http://127.0.0.1:{port}/x");
    stand.stop_relay(Signal::TERM).await?;
    stand.http.get(&calls(port), None).await?.expect_status(502)?;
    forward.wait_line("relay lost, retrying in 1 s ...", wait::SOON).await?;
    stand.start_relay().await?;
    let whole = forward.wait_line("back after", wait::SOON).await?;
    ensure!(whole.starts_with("! relay lost, retrying in 1 s ...  ✓ back after "), "{whole:?}");

    say("the machine sleeps, as far as a process can tell");
    let pid = child_of(forward.pid())?;
    signal(pid, Signal::STOP)?;
    // Not a wait for something: a sleep is what is tried.
    tokio::time::sleep(Duration::from_secs(9)).await;
    signal(pid, Signal::CONT)?;
    // It stopped with its child.
    forward.signal(Signal::CONT)?;
    let awake = forward.wait_line("✓ awake after ", wait::SOON).await?;
    ensure!(awake.contains("the relay is reached"), "{awake:?}");
    let what = "requests pass again";
    wait::until(what, wait::SOON, async || {
        stand.http.get(&calls(port), None).await.ok().filter(|answer| answer.status == 200).map(drop)
    })
    .await?;
    signal(pid, Signal::INT)?;
    ensure!(forward.wait_exit(wait::SOON).await?.code() == Some(130));
    stand.passed();
    Ok(())
}

/// The one child of a process.
fn child_of(pid: u32) -> Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().next().context("no child")?.parse().context("no pid")
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
