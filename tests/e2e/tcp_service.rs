//! TCP services at the relay: the same walk as for requests, judged as CONNECT; raw bytes over HTTP/1.1 and HTTP/2, each end passed on by
//! itself; a thousand at once; cut when the caller's token expires. Who may not connect, or asks in a wrong way, is told so.

mod refusals;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Request, StatusCode};
use postern_tests::http::switch::{Many, Once, Stream, switched};
use postern_tests::http::{Body, empty, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const TABLES: &str = r#"
[services.echo-tcp]
kind = "tcp"
about = "Bytes come back"
agent = "dc1"
rules = [{ name = "clerks connect", allow = ["role:clerk", "role:batch"], to = "CONNECT" }]

[services.hidden-tcp]
kind = "tcp"
agent = "dc1"
hidden = true
rules = [{ allow = "group:nobody", to = "CONNECT" }]

[[rules]]
name = "no connections from the future"
deny = "group:time-travel"
to = "* /**"

[[tests]]
name = "clerks connect"
as = { groups = "finance" }
call = "CONNECT echo-tcp"
expect = "allow: clerks connect"

[[tests]]
name = "others do not"
as = {}
call = "CONNECT echo-tcp"
expect = "deny"

[[tests]]
name = "what denies everything denies this too"
as = { groups = ["finance", "time-travel"] }
call = "CONNECT echo-tcp"
expect = "deny: no connections from the future"
"#;

/// Of two tunnels with 1,024 streams each.
const SHARE: usize = 1024;
const PATH: &str = "/.postern/tcp/echo-tcp";

/// Answers bytes with the same bytes, and the end with `.` and its own end.
struct EchoTcp {
    port: u16,
    /// Connections that are open, and that ever were.
    open: Arc<(AtomicUsize, AtomicUsize)>,
    _tasks: JoinSet<()>,
}

impl EchoTcp {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let open = Arc::<(AtomicUsize, AtomicUsize)>::default();
        let counts = open.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let counts = counts.clone();
                connections.spawn(async move {
                    counts.0.fetch_add(1, Ordering::SeqCst);
                    counts.1.fetch_add(1, Ordering::SeqCst);
                    let (mut read, mut write) = stream.split();
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        // A connection that broke has no end to be answered.
                        let _ = write.write_all(b".").await;
                        let _ = write.shutdown().await;
                    }
                    counts.0.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { port, open, _tasks: tasks })
    }

    fn open(&self) -> usize {
        self.open.0.load(Ordering::SeqCst)
    }

    fn arrived(&self) -> usize {
        self.open.1.load(Ordering::SeqCst)
    }

    async fn stand(&self) -> Result<Stand> {
        let agent_tables = format!(
            "[services.echo-tcp]\nupstream = \"tcp://127.0.0.1:{0}\"\n[services.hidden-tcp]\nupstream = \"tcp://127.0.0.1:{0}\"\n",
            self.port
        );
        // A thousand connections of one caller come from one address.
        let limits = "per_address = 2048\n".to_owned();
        let tables = TABLES.to_owned();
        Stand::start_with(Extra { tables, agent_tables, limits, ..Extra::default() }).await
    }
}

fn asking(stand: &Stand, token: Option<&str>, path: &str) -> Result<Request<Body>> {
    let builder = request("GET", path, token).header("host", format!("127.0.0.1:{}", stand.port));
    Ok(builder.header("connection", "Upgrade").header("upgrade", "postern-tcp").body(empty())?)
}

async fn h1(stand: &Stand, token: &str) -> Result<Stream> {
    Once::send(stand.port, stand.pki.roots()?, asking(stand, Some(token), PATH)?).await?.stream().await
}

async fn h2(many: &mut Many, token: &str) -> Result<Stream> {
    let authorization = format!("Bearer {token}");
    let answer = many.ask("postern-tcp", PATH, &[("authorization", &authorization)]).await?;
    ensure!(answer.status() == StatusCode::OK, "{answer:?}");
    switched(answer).await
}

/// Bytes there and back, then our end, then theirs.
async fn talk(stream: &mut Stream, bytes: usize) -> Result<()> {
    let sent: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let work = async {
        let upload = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        let mut received = Vec::new();
        tokio::try_join!(upload, read.read_to_end(&mut received))?;
        anyhow::Ok(received)
    };
    let received = wait::within("the echo", wait::SOON * 2, work).await??;
    ensure!(received.len() == bytes + 1, "{} bytes of {}", received.len(), bytes + 1);
    ensure!(received[..bytes] == sent && received[bytes] == b'.', "other bytes came back");
    Ok(())
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() -> Result<()> {
    let echo = EchoTcp::start().await?;
    let stand = echo.stand().await?;
    let token = stand.issuer.token("ada").await?;
    let mut many = Many::connect(stand.port, stand.pki.roots()?).await?;
    for bytes in [0, 1, 3_000_000] {
        say(&format!("{bytes} bytes over HTTP/1.1 and over HTTP/2"));
        talk(&mut h1(&stand, &token).await?, bytes).await?;
        talk(&mut h2(&mut many, &token).await?, bytes).await?;
    }
    let ends = stand.wait_audit(6, |line| line["event"] == "end" && line["service"] == "echo-tcp").await?;
    // Workers write their lines in any order.
    ensure!(ends.iter().filter(|end| end["status"] == 101).count() == 3, "{ends:?}");
    for end in &ends {
        ensure!(end["ended"] == "done", "{end}");
        let (bytes_in, bytes_out) = (end["bytes_in"].as_u64(), end["bytes_out"].as_u64());
        ensure!(bytes_in.map(|n| n + 1) == bytes_out, "{end}");
    }
    let decisions =
        stand.wait_audit(6, |line| line["event"] == "decision" && line["service"] == "echo-tcp").await?;
    ensure!(decisions.iter().all(|line| line["method"] == "CONNECT" && line["rule"] == "clerks connect"));
    wait::until("every connection has ended", wait::SOON, async || (echo.open() == 0).then_some(())).await?;

    say("a caller who leaves in the middle");
    let mut left = h1(&stand, &token).await?;
    left.write_all(b"x").await?;
    left.flush().await?;
    ensure!(left.read_u8().await? == b'x');
    ensure!(echo.open() == 1);
    drop(left);
    wait::until("the upstream is told", wait::SOON, async || (echo.open() == 0).then_some(())).await?;
    let cut = stand.wait_audit(7, |line| line["event"] == "end" && line["service"] == "echo-tcp").await?;
    ensure!(cut[6]["ended"] == "cut" && cut[6]["bytes_in"] == 1, "{}", cut[6]);
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_thousand_connections_at_once() -> Result<()> {
    const CONNECTIONS: usize = 1000;
    let echo = EchoTcp::start().await?;
    let stand = echo.stand().await?;
    let token = stand.issuer.token("ada").await?;
    let roots = stand.pki.roots()?;
    let start = Instant::now();
    let mut opening = JoinSet::new();
    // Half of them over HTTP/1.1, half over HTTP/2, where a connection takes a hundred.
    for _ in 0..CONNECTIONS / 2 {
        let asked = Once::send(stand.port, roots.clone(), asking(&stand, Some(&token), PATH)?);
        opening.spawn(async move { asked.await?.stream().await });
    }
    let mut open = Vec::new();
    while let Some(stream) = opening.join_next().await {
        open.push(stream??);
    }
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS / 200 {
        let mut many = Many::connect(stand.port, roots.clone()).await?;
        for _ in 0..100 {
            open.push(h2(&mut many, &token).await?);
        }
        connections.push(many);
    }
    say(&format!("{} open after {:?}", open.len(), start.elapsed()));
    ensure!(echo.open() == CONNECTIONS, "{} arrived", echo.open());
    for round in 0..3u8 {
        for stream in &mut open {
            stream.write_all(&[round; 100]).await?;
            stream.flush().await?;
        }
        for (number, stream) in open.iter_mut().enumerate() {
            let mut back = [0; 100];
            wait::within("the echo", wait::SOON, stream.read_exact(&mut back)).await??;
            ensure!(back == [round; 100], "connection {number} got another's bytes");
        }
    }

    say("half of what the agent's two tunnels carry is one caller's share");
    let mut more = Many::connect(stand.port, roots.clone()).await?;
    for _ in CONNECTIONS..SHARE {
        open.push(h2(&mut more, &token).await?);
    }
    let authorization = format!("Bearer {token}");
    let refused = more.ask("postern-tcp", PATH, &[("authorization", &authorization)]).await?;
    ensure!(refused.status() == 429 && refused.headers().contains_key("retry-after"), "{refused:?}");
    talk(&mut h2(&mut more, &stand.issuer.batch("invoices:read").await?).await?, 1000).await?;

    drop(open);
    wait::until("all ends are passed on", wait::SOON, async || (echo.open() == 0).then_some(())).await?;
    stand.wait_audit(CONNECTIONS, |line| line["event"] == "end" && line["service"] == "echo-tcp").await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_token() -> Result<()> {
    const LIFE: Duration = Duration::from_secs(6);
    let echo = EchoTcp::start().await?;
    let stand = echo.stand().await?;
    stand.issuer.access_ttl(LIFE).await?;
    let start = Instant::now();
    let token = stand.issuer.token("ada").await?;
    let mut many = Many::connect(stand.port, stand.pki.roots()?).await?;
    let mut streams = [h1(&stand, &token).await?, h2(&mut many, &token).await?];
    for stream in &mut streams {
        stream.write_all(b"x").await?;
        stream.flush().await?;
        ensure!(stream.read_u8().await? == b'x');
    }
    for stream in &mut streams {
        let ended = wait::within("the cut", LIFE + wait::SOON, stream.read_u8()).await?;
        ensure!(ended.is_err(), "{ended:?} instead of the cut");
    }
    let took = start.elapsed();
    // Tokens say their end in whole seconds.
    ensure!(
        took + Duration::from_secs(2) > LIFE && took < LIFE + Duration::from_secs(3),
        "cut after {took:?}"
    );
    wait::until("the upstream is told", wait::SOON, async || (echo.open() == 0).then_some(())).await?;
    let ends = stand.wait_audit(2, |line| line["event"] == "end" && line["service"] == "echo-tcp").await?;
    for end in ends {
        ensure!(end["ended"] == "expired" && end["bytes_in"] == 1 && end["bytes_out"] == 1, "{end}");
    }
    stand.passed();
    Ok(())
}
