//! What is open through `postern` outlives the token that opened it, though that is bound to a key: TCP and WebSocket connections of a
//! forward, and `connect`, with tokens of seconds; and `long_…`, for ten minutes with tokens of one. What cannot be renewed ends, and that
//! is told.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::counting::Counting;
use postern_tests::process::{Program, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Postgres;
use postern_tests::wait;
use postern_tests::websocket::{self, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A token this short is renewed every two seconds or so.
const SHORT: Duration = Duration::from_secs(5);
/// Between two messages.
const PACE: Duration = Duration::from_millis(100);

struct Place {
    stand: Stand,
    _upstream: Counting,
}

impl Place {
    async fn start(token_life: Duration, database: Option<u16>) -> Result<Self> {
        let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
        let tables = r#"
[services.web]
agent = "dc1"
rules = [{ name = "clerks talk", allow = "role:clerk", to = "GET /**" }]

[services.wire]
kind = "tcp"
agent = "dc1"
rules = [{ name = "clerks connect", allow = "role:clerk", to = "CONNECT" }]

[services.ledger-db]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "role:clerk", to = "CONNECT" }]
"#;
        let database = database.map_or_else(|| upstream.tcp(), |port| format!("tcp://127.0.0.1:{port}"));
        let agent_tables = format!(
            "[services.web]\nupstream = \"{}\"\n[services.wire]\nupstream = \"{}\"\n[services.ledger-db]\nupstream = \"{database}\"\n",
            upstream.url(),
            upstream.tcp()
        );
        let stand =
            Stand::start_with(Extra { tables: tables.to_owned(), agent_tables, ..Extra::default() }).await?;
        stand.issuer.access_ttl(token_life).await?;
        Ok(Self { stand, _upstream: upstream })
    }

    async fn ada(&self) -> Result<Cli> {
        let ada = self.stand.cli("ada")?;
        ada.login_device(&self.stand.issuer, "ada", &[]).await?.expect_code(0)?;
        Ok(ada)
    }
}

/// A conversation over a local port: what is said comes back.
enum Talk {
    Tcp(TcpStream),
    Socket(TcpStream),
}

impl Talk {
    async fn tcp(port: u16) -> Result<Self> {
        Ok(Self::Tcp(TcpStream::connect(("127.0.0.1", port)).await?))
    }

    async fn socket(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let key = websocket::key();
        let head = format!(
            "GET /socket/1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(wait::within("the handshake", wait::SOON, stream.read_u8()).await??);
        }
        let answer = String::from_utf8(answer)?.to_lowercase();
        ensure!(answer.starts_with("http/1.1 101"), "{answer}");
        ensure!(!answer.contains("postern-lease"), "the lease is not the local program's: {answer}");
        Ok(Self::Socket(stream))
    }

    async fn say(&mut self, text: &str) -> Result<()> {
        let exchange = async {
            match self {
                Self::Tcp(stream) => {
                    // The upstream waits for a whole line.
                    let line = format!("{text}\n");
                    stream.write_all(line.as_bytes()).await?;
                    let mut back = vec![0; line.len()];
                    stream.read_exact(&mut back).await?;
                    ensure!(back == line.as_bytes(), "other bytes came back");
                }
                Self::Socket(stream) => {
                    websocket::write(stream, Kind::Text, text.as_bytes(), true).await?;
                    let (_, back) = websocket::read(stream, false).await?;
                    ensure!(back == text.as_bytes(), "another message came back");
                }
            }
            anyhow::Ok(())
        };
        wait::within("an exchange", wait::SOON, exchange).await?
    }
}

/// Every conversation goes on for so long.
async fn all_talk(talks: &mut [Talk], time: Duration) -> Result<u32> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        for (number, talk) in talks.iter_mut().enumerate() {
            let said = talk.say(&format!("message {count}")).await;
            said.with_context(|| format!("conversation {number} broke after {:?}", start.elapsed()))?;
        }
        count += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(count)
}

fn port(url: &str) -> Result<u16> {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).with_context(|| format!("no port in {url}"))
}

/// Forwards of both services in one process, and their ports.
async fn both(cli: &Cli) -> Result<(Program, u16, u16)> {
    let (web, wire) = (wait::free_port()?, wait::free_port()?);
    let (first, second) = (format!("{web}:web"), format!("{wire}:wire"));
    let mut program = cli.start(&["forward", &first, &second])?;
    program.wait_lines("Forwarding ", 2, wait::SOON).await?;
    Ok((program, web, wire))
}

#[tokio::test]
async fn a_forward_outlives_its_tokens() -> Result<()> {
    let place = Place::start(SHORT, None).await?;
    let ada = place.ada().await?;
    let (mut forward, web, wire) = both(&ada).await?;

    say("two TCP connections and a WebSocket, for four lives of a token");
    let mut talks = vec![Talk::tcp(wire).await?, Talk::tcp(wire).await?, Talk::socket(web).await?];
    let before = place.stand.issuer.grant_hits("refresh_token").await?;
    let count = all_talk(&mut talks, SHORT * 4).await?;
    let renewals = place.stand.issuer.grant_hits("refresh_token").await? - before;
    say(&format!("{count} exchanges each, {renewals} new tokens"));
    ensure!((3..=20).contains(&renewals), "{renewals}");

    say("connect, too");
    let mut connect = tokio::process::Command::from(ada.command(&["connect", "wire"])?);
    let mut connect = connect.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (mut input, mut output) =
        (connect.stdin.take().context("no input")?, connect.stdout.take().context("no output")?);
    let start = Instant::now();
    while start.elapsed() < SHORT * 2 {
        input.write_all(b"ping\n").await?;
        let mut back = [0; 5];
        wait::within("the echo", wait::SOON, output.read_exact(&mut back)).await??;
        ensure!(&back == b"ping\n");
        tokio::time::sleep(PACE).await;
    }
    drop(input);
    let status = wait::within("connect ends", wait::SOON, connect.wait()).await??;
    ensure!(status.success(), "{status}");

    say("an issuer that is away for less than a life is borne");
    place.stand.issuer.fault("/token", 503, Duration::ZERO, 1).await?;
    all_talk(&mut talks, SHORT * 2).await?;

    say("one that stays away ends what is open, and that is told");
    place.stand.issuer.fault("/token", 503, Duration::ZERO, 10_000).await?;
    let mut one = Talk::tcp(wire).await?;
    let ended = wait::until("the end", SHORT * 4, async || one.say("still there?").await.err()).await?;
    say(&ended.to_string());
    forward.wait_line("has expired", wait::SOON).await?;
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_is_not_renewed_is_told_by_its_service() -> Result<()> {
    let mut place = Place::start(SHORT, None).await?;
    let ada = place.ada().await?;
    let (mut forward, web, wire) = both(&ada).await?;
    let mut talks = vec![Talk::tcp(wire).await?, Talk::socket(web).await?];
    all_talk(&mut talks, SHORT).await?;

    say("the person logs in anew, with another key: the streams of the old one are not theirs to renew");
    ada.login_device(&place.stand.issuer, "ada", &["--force"]).await?.expect_code(0)?;
    for service in ["wire", "web"] {
        forward
            .wait_line(&format!("{service}: the relay does not renew a live connection"), SHORT * 3)
            .await?;
    }
    for talk in &mut talks {
        wait::until("the end", SHORT * 4, async || talk.say("still there?").await.err()).await?;
    }
    let told = forward.log_text().matches("wire: the relay does not renew").count();
    ensure!(told == 1, "told {told} times:\n{}", forward.log_text());
    let mut again = [Talk::tcp(wire).await?, Talk::socket(web).await?];
    all_talk(&mut again, SHORT * 2).await?;

    say("a logged out session: nothing to renew with");
    ada.run(&["logout"]).await?.expect_code(0)?;
    forward.wait_line("a live connection cannot be renewed and will end", SHORT * 3).await?;
    for talk in &mut again {
        wait::until("the end", SHORT * 4, async || talk.say("still there?").await.err()).await?;
    }
    place.stand.stop_relay(Signal::TERM).await?;
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn long_a_forward_with_tokens_of_a_minute_runs_for_ten() -> Result<()> {
    const TOKEN: Duration = Duration::from_mins(1);
    const TIME: Duration = Duration::from_mins(10);
    let postgres = Postgres::start().await?;
    let place = Place::start(TOKEN, Some(postgres.port)).await?;
    let ada = place.ada().await?;
    let (_forward, web, wire) = both(&ada).await?;
    let (_database, url) = ada.forward("ledger-db", &[]).await?;

    say("psql in one statement for all that time, beside a TCP connection and a WebSocket");
    let seconds = TIME.as_secs();
    let mut psql = tokio::process::Command::from(
        postgres.psql(port(&url)?, &format!("select pg_sleep({seconds}); select 6 * 7")),
    );
    let psql = psql.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut talks = vec![Talk::tcp(wire).await?, Talk::socket(web).await?];
    let count = all_talk(&mut talks, TIME).await?;
    say(&format!("{count} exchanges each"));
    let output = wait::within("psql ends", TOKEN, psql.wait_with_output()).await??;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.trim() == "42", "{:?}: {text}", output.status);
    place.stand.passed();
    Ok(())
}
