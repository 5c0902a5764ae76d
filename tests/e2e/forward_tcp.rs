//! A forward of a TCP service: PostgreSQL's own programs work through it as they do without, each end is passed on by itself, and the
//! relay may go away and come back. Who is refused learns why, once.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::process::{self, Program, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Postgres;
use postern_tests::wait;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Two TCP services that only people in finance may use.
fn services(ledger: u16, halves: u16) -> Extra {
    let tables = r#"
[services.ledger-db]
kind = "tcp"
about = "The ledger"
agent = "dc1"
rules = [{ name = "clerks keep the ledger", allow = "role:clerk", to = "CONNECT" }]

[services.halves]
kind = "tcp"
agent = "dc1"
rules = [{ name = "clerks halve", allow = "role:clerk", to = "CONNECT" }]
"#;
    let agent_tables = format!(
        "[services.ledger-db]\nupstream = \"tcp://127.0.0.1:{ledger}\"\n[services.halves]\nupstream = \"tcp://127.0.0.1:{halves}\"\n"
    );
    let limits = "per_address = 2048\n".to_owned();
    Extra { tables: tables.to_owned(), agent_tables, limits, ..Extra::default() }
}

/// Reads to the end, then says how many bytes came and ends; when the first byte is `!`, it ends at once and reads on; when it is `?`, all
/// that comes goes back.
async fn halves(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let first = stream.read_u8().await?;
            if first == b'?' {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
                return write.shutdown().await;
            }
            if first == b'!' {
                stream.write_all(b"over").await?;
                stream.shutdown().await?;
            }
            let mut count = 1;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    read => count += read,
                }
            }
            if first != b'!' {
                stream.write_all(count.to_string().as_bytes()).await?;
            }
            stream.shutdown().await
        });
    }
}

async fn logged_in(stand: &Stand) -> Result<Cli> {
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    Ok(ada)
}

/// A forward of a TCP service, and its port on loopback.
async fn forward_of(cli: &Cli, service: &str) -> Result<(Program, u16)> {
    let (program, place) = cli.forward(service, &[]).await?;
    let port = place.strip_prefix("127.0.0.1:").and_then(|port| port.parse().ok());
    Ok((program, port.with_context(|| format!("no host and port: {place}"))?))
}

#[tokio::test]
async fn postgresql_works_through_a_forward() -> Result<()> {
    let mut postgres = Some(Postgres::start().await?);
    let ledger = postgres.as_ref().context("no PostgreSQL")?;
    let mut stand = Stand::start_with(services(ledger.port, ledger.port)).await?;
    let ada = logged_in(&stand).await?;

    say("what one may is listed, and can be asked");
    let listed = ada.run(&["ls", "ledger"]).await?.expect_code(0)?.stdout;
    let row = listed.lines().find(|line| line.starts_with("ledger-db")).context("not listed")?;
    ensure!(row.split_whitespace().collect::<Vec<_>>()[..3] == ["ledger-db", "tcp", "CONNECT"], "{listed}");
    ada.run(&["can", "CONNECT", "ledger-db"]).await?.expect_code(0)?;

    let (mut forward, port) = forward_of(&ada, "ledger-db").await?;
    let psql = async |sql: &str| process::run(ledger.psql(port, sql), wait::SOON * 2).await;
    say("psql asks, and gets megabytes");
    ensure!(psql("select 6 * 7").await?.expect_code(0)?.stdout.trim() == "42");
    let rows =
        psql("select repeat(md5(n::text), 500) from generate_series(1, 1000) n").await?.expect_code(0)?;
    ensure!(rows.stdout.len() == 16_001 * 1000, "{} bytes", rows.stdout.len());
    let denied =
        stand.audit()?.into_iter().any(|line| line["service"] == "ledger-db" && line["method"] == "GET");
    ensure!(!denied, "a TCP service is judged as CONNECT");

    say("the same through a unix socket, which no web page reaches");
    let dir = stand.path("");
    let path = dir.join(".s.PGSQL.5432");
    let unix = ada.start(&["forward", "ledger-db", "--unix", &path.display().to_string()])?;
    wait::until("the socket", wait::SOON, async || path.exists().then_some(())).await?;
    let mut by_socket = ledger.psql(5432, "select 6 * 7");
    by_socket.arg("-h").arg(&dir);
    ensure!(process::run(by_socket, wait::SOON).await?.expect_code(0)?.stdout.trim() == "42");
    drop(unix);

    say("pgbench: 200 connections at once through the one forward");
    process::run(ledger.pgbench(port, &["-q", "-i"]), Duration::from_mins(1)).await?.expect_code(0)?;
    let many = ["-n", "-S", "-c", "200", "-j", "20", "-t", "20"];
    let run = process::run(ledger.pgbench(port, &many), Duration::from_mins(2)).await?.expect_code(0)?;
    ensure!(run.stdout.contains("number of transactions actually processed: 4000/4000"), "{run:?}");
    say(run.stdout.trim());

    for signal in [Signal::TERM, Signal::KILL] {
        say(&format!("the relay ends by {signal:?}; a connection made meanwhile waits for it"));
        stand.stop_relay(signal).await?;
        let waiting = psql("select 'waited'");
        let (answer, started) = tokio::join!(waiting, stand.start_relay());
        started?;
        ensure!(answer?.expect_code(0)?.stdout.trim() == "waited");
        ensure!(psql("select 1").await?.expect_code(0)?.stdout.trim() == "1");
    }
    ensure!(forward.is_running());

    say("the database goes away: connections are reset, and the reason told once");
    let gone = ledger.psql(port, "select 1");
    let again = ledger.psql(port, "select 1");
    postgres = None;
    for psql in [gone, again] {
        let refused = process::run(psql, wait::SOON).await?;
        ensure!(refused.code == 2, "{refused:?}");
    }
    forward.wait_line("Refused (502)", wait::SOON).await?;
    let told = forward.log_text().lines().filter(|line| line.contains("Refused (502)")).count();
    ensure!(told == 1, "{}", forward.log_text());
    drop(postgres);

    say("who may not connect is told why");
    let bob = stand.cli("bob")?;
    bob.login_device(&stand.issuer, "bob", &[]).await?.expect_code(0)?;
    let refused = bob.run(&["forward", "ledger-db"]).await?.expect_code(5)?;
    ensure!(refused.stderr.contains("clerks keep the ledger"), "{refused:?}");
    bob.run(&["can", "CONNECT", "ledger-db"]).await?.expect_code(5)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn each_end_of_a_connection_is_passed_on_by_itself() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut serving = JoinSet::new();
    serving.spawn(halves(listener));
    let mut stand = Stand::start_with(services(port, port)).await?;
    let ada = logged_in(&stand).await?;
    let (mut forward, local) = forward_of(&ada, "halves").await?;
    let connect = async || TcpStream::connect(("127.0.0.1", local)).await;

    say("this side ends first: the answer still comes");
    let bytes = vec![b'x'; 3_000_000];
    let mut stream = connect().await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    wait::within("the count", wait::SOON, stream.read_to_string(&mut answer)).await??;
    ensure!(answer == "3000000", "{answer}");

    say("the service ends first: it still gets what is sent");
    let mut stream = connect().await?;
    stream.write_all(b"!").await?;
    answer.clear();
    wait::within("the end", wait::SOON, stream.read_to_string(&mut answer)).await??;
    ensure!(answer == "over", "{answer}");
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    let line = stand
        .wait_audit(2, |line| line["service"] == "halves" && line["event"] != "open")
        .await?
        .pop()
        .context("no audit line")?;
    say(&line.to_string());

    say("a program that breaks off is a broken connection there too, and nothing is left");
    let stream = connect().await?;
    stream.set_zero_linger()?;
    drop(stream);
    let other = ada.run(&["forward", "halves", "--", "sh", "-c", "echo $POSTERN_URL $POSTERN_PORT"]).await?;
    let (url, given) = other.stdout.trim().split_once(' ').context("no URL and port")?;
    ensure!(url == format!("tcp://127.0.0.1:{given}"), "{other:?}");

    say("without its agent a new connection waits, for a while");
    stand.stop_agent(Signal::TERM).await?;
    let waiting = async {
        let mut stream = connect().await?;
        stream.write_all(b"four").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let (answer, started) = tokio::join!(waiting, stand.start_agent());
    started?;
    ensure!(answer.as_ref().is_ok_and(|answer| answer == "4"), "{answer:?}");
    stand.stop_agent(Signal::TERM).await?;
    let mut stream = connect().await?;
    let reset = wait::within("the reset", wait::SOON * 2, stream.read_u8()).await?;
    ensure!(reset.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    forward.wait_line("Refused (503)", wait::SOON).await?;
    stand.start_agent().await?;

    say("a connection ends with the last token that there is for it, and that is told");
    stand.issuer.access_ttl(Duration::from_secs(6)).await?;
    let short = stand.cli("short")?;
    short.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (mut forward, local) = forward_of(&short, "halves").await?;
    let mut stream = TcpStream::connect(("127.0.0.1", local)).await?;
    stream.write_all(b"?x").await?;
    ensure!(wait::within("the echo", wait::SOON, stream.read_u8()).await?? == b'x');
    stand.issuer.fault("/token", 503, Duration::ZERO, 10_000).await?;
    let cut = wait::within("the cut", wait::SOON, stream.read_u8()).await?;
    ensure!(cut.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    forward.wait_line("has expired", wait::SOON).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_thousand_connections_pass_one_forward() -> Result<()> {
    const CONNECTIONS: usize = 1000;
    // Both ends of them are in this process; relay and agent inherit what it may have.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut serving = JoinSet::new();
    serving.spawn(halves(listener));
    let stand = Stand::start_with(services(port, port)).await?;
    let ada = logged_in(&stand).await?;
    let (forward, local) = forward_of(&ada, "halves").await?;

    let (start, before) = (Instant::now(), forward.cpu()?);
    let mut opening = JoinSet::new();
    for number in 0..CONNECTIONS {
        opening.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", local)).await?;
            stream.write_all(format!("?{number:04}").as_bytes()).await?;
            let mut back = [0; 4];
            stream.read_exact(&mut back).await?;
            ensure!(back == format!("{number:04}").as_bytes(), "another's bytes");
            anyhow::Ok(stream)
        });
    }
    let mut open = Vec::new();
    while let Some(stream) = wait::within("a connection", Duration::from_mins(1), opening.join_next()).await?
    {
        open.push(stream??);
    }
    let (took, cpu, memory) = (start.elapsed(), forward.cpu()?.saturating_sub(before), forward.memory()?);
    say(&format!(
        "{} open after {took:?}; the forward took {cpu:?} of CPU and has {} KiB",
        open.len(),
        memory.now / 1024
    ));
    for (number, mut stream) in open.into_iter().enumerate() {
        stream.write_all(b"and more").await?;
        stream.shutdown().await?;
        let mut rest = String::new();
        wait::within("the rest", wait::SOON, stream.read_to_string(&mut rest)).await??;
        ensure!(rest == "and more", "connection {number}: {rest}");
    }
    stand.passed();
    Ok(())
}
