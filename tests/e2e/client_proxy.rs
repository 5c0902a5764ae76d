//! `postern proxy` gives programs that speak SOCKS5 the services by their names, with the session's token, and nothing else: no other
//! name, no address, no lookup. It is its own user's alone.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::process::{self, Output, Program, Signal, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What curl says of a proxy that refuses.
const REFUSED_BY_PROXY: i32 = 97;

/// A service with a host of its own, and a TCP service.
fn services(tcp: u16) -> Extra {
    let tables = r#"
[services.app]
agent = "dc1"
hosts = ["app.example.com"]
rules = [{ allow = "*", to = "* /**" }]

[services.parrot]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "role:clerk", to = "CONNECT" }]
"#;
    let agent_tables = format!(
        "[services.app]\nupstream = \"{{echo}}\"\n[services.parrot]\nupstream = \"tcp://127.0.0.1:{tcp}\"\n"
    );
    Extra { tables: tables.to_owned(), agent_tables, ..Extra::default() }
}

/// Gives back what comes.
async fn parrot(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        });
    }
}

struct Place {
    stand: Stand,
    ada: Cli,
    proxy: Program,
    address: String,
    _parrot: JoinSet<()>,
}

impl Place {
    async fn start(args: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let stand = Stand::start_with(services(listener.local_addr()?.port())).await?;
        let mut serving = JoinSet::new();
        serving.spawn(parrot(listener));
        let ada = logged_in(&stand, "ada").await?;
        let (proxy, address) = proxy(&ada, args).await?;
        Ok(Self { stand, ada, proxy, address, _parrot: serving })
    }

    /// curl through the proxy, which resolves the name.
    async fn curl(&self, args: &[&str]) -> Result<Output> {
        curl(&self.address, "--socks5-hostname", args).await
    }
}

async fn curl(proxy: &str, how: &str, args: &[&str]) -> Result<Output> {
    let all = ["-sS", "--max-time", "20", how, proxy].into_iter().chain(args.iter().copied());
    process::run(command("curl", all), wait::SOON * 2).await
}

async fn logged_in(stand: &Stand, user: &str) -> Result<Cli> {
    let cli = stand.cli(user)?;
    cli.login_device(&stand.issuer, user, &[]).await?.expect_code(0)?;
    Ok(cli)
}

/// A running proxy, and where it is.
async fn proxy(cli: &Cli, args: &[&str]) -> Result<(Program, String)> {
    let address = format!("127.0.0.1:{}", wait::free_port()?);
    let mut program = cli.start(&[&["proxy", "--socks5", &address], args].concat())?;
    let shown = program.wait_value("Proxying ").await?;
    ensure!(shown == format!("socks5h://{address}"), "{shown}");
    Ok((program, address))
}

#[tokio::test]
async fn curl_reaches_services_by_their_names_and_nothing_else() -> Result<()> {
    let mut place = Place::start(&[]).await?;

    say("by its name, with a suffix, and by its own host; with the token, and policy as ever");
    for url in ["http://echo/by-name", "http://echo.postern/by-suffix", "http://app.example.com/by-host"] {
        let answer = place.curl(&[url]).await?.expect_code(0)?;
        let seen: Value = serde_json::from_str(&answer.stdout).with_context(|| answer.stdout.clone())?;
        ensure!(url.ends_with(seen["target"].as_str().unwrap_or("?")), "{url}: {seen}");
    }
    let seen = place.stand.echo.seen_with("/by-name");
    ensure!(seen.len() == 1 && seen[0].header("x-postern-subject") == "ada", "{seen:?}");
    let own = place.stand.echo.seen_with("/by-host");
    ensure!(own[0].header("x-forwarded-host").starts_with("app.example.com"), "{:?}", own[0].headers);
    let code = ["-o", "/dev/null", "-w", "%{http_code}"];
    let status = async |args: &[&str]| -> Result<String> {
        Ok(place.curl(&[&code, args].concat()).await?.expect_code(0)?.stdout)
    };
    ensure!(status(&["http://billing/v1/invoices/7"]).await? == "200");
    ensure!(status(&["http://billing/reports"]).await? == "403");
    ensure!(status(&["-H", "Host: wiki", "http://echo/host"]).await? == "421");

    say("no browser, unless it was started for one; then no page of another origin");
    let browsers =
        ["Origin: http://echo", "Sec-Fetch-Site: none", "Referer: http://echo/", "User-Agent: Mozilla/5.0"];
    for field in browsers {
        ensure!(status(&["-H", field, "http://echo/page"]).await? == "403", "{field}");
    }
    let why = place.curl(&["-A", "Mozilla/5.0", "http://echo/page"]).await?.expect_code(0)?;
    ensure!(why.stdout.contains("postern proxy --browser"), "{why:?}");
    let (_browsed, other) = proxy(&place.ada, &["--browser"]).await?;
    let browsed = async |field: &str, path: &str| -> Result<String> {
        let url = format!("http://echo/{path}");
        let args = [&code[..], &["-H", field, &url]].concat();
        Ok(curl(&other, "--socks5-hostname", &args).await?.expect_code(0)?.stdout)
    };
    for field in browsers {
        ensure!(browsed(field, "own-page").await? == "200", "{field}");
    }
    for field in ["Origin: http://evil.example.com", "Sec-Fetch-Site: cross-site"] {
        ensure!(browsed(field, "page").await? == "403", "{field}");
    }
    ensure!(place.stand.echo.seen_with("/page").is_empty() && place.stand.echo.seen_with("/host").is_empty());

    say("a TCP service is a raw channel");
    // Not curl's telnet: it reads its input for ever once the answer has taken a tenth of a second.
    let netcat = command("nc.openbsd", ["-N", "-X", "5", "-x", &place.address, "parrot", "7000"]);
    let (said, line) = (b"there and back\n", place.stand.dir().join("line"));
    std::fs::write(&line, said)?;
    let (_, heard) = process::fed(netcat, &line, wait::SOON).await?;
    ensure!(heard == said, "{heard:?}");
    for proxy in [&place.address, &other] {
        let posted = curl(proxy, "--socks5-hostname", &["-d", "order", "http://parrot:7000/"]).await?;
        ensure!(posted.code != 0 && !posted.stdout.contains("order"), "{posted:?}");
    }
    place.proxy.wait_line("a connection to parrot was ended", wait::SOON).await?;

    say("nothing else: no other name, no address, no TLS that the proxy would have to see into");
    let elsewhere = TcpListener::bind("127.0.0.1:0").await?;
    let local = format!("http://127.0.0.1:{}/", elsewhere.local_addr()?.port());
    for url in
        ["http://www.example.com/", "http://localhost/", "http://nothing.postern/", "https://echo/", &local]
    {
        let refused = place.curl(&[url]).await?.expect_code(REFUSED_BY_PROXY)?;
        ensure!(refused.stderr.contains("(2)"), "not allowed by ruleset is what it is told: {refused:?}");
    }
    let resolved = curl(&place.address, "--socks5", &["http://localhost/"]).await?;
    ensure!(resolved.code == REFUSED_BY_PROXY, "{resolved:?}");
    let arrived = tokio::time::timeout(Duration::from_millis(1), elsewhere.accept()).await;
    ensure!(arrived.is_err(), "something arrived");
    place.proxy.wait_line("www.example.com is refused", wait::SOON).await?;
    place.proxy.wait_line("socks5h://", wait::SOON).await?;

    say("a web page without the proxy can send HTTP there, and gets nothing");
    let mut page = TcpStream::connect(&place.address).await?;
    page.write_all(b"GET http://echo/http-proxy HTTP/1.1\r\nHost: echo\r\n\r\n").await?;
    let mut answer = Vec::new();
    let _ = wait::within("the end", wait::SOON, page.read_to_end(&mut answer)).await?;
    ensure!(answer.is_empty() && place.stand.echo.seen_with("/http-proxy").is_empty());

    say("another user of this machine");
    let theirs = process::run(as_nobody(&place.address, "http://echo/nobody"), wait::SOON).await?;
    ensure!(theirs.code != 0 && place.stand.echo.seen_with("/nobody").is_empty(), "{theirs:?}");

    say("only loopback, unless shared; Ctrl-C ends it");
    place.ada.run(&["proxy", "--socks5", "0.0.0.0:0"]).await?.expect_code(2)?;
    place.ada.run(&["proxy", "--share"]).await?.expect_code(2)?;
    let status: Value =
        serde_json::from_str(&place.ada.run(&["status", "--json"]).await?.expect_code(0)?.stdout)?;
    let shown = format!("socks5h://{}", place.address);
    ensure!(status["forwards"][0]["serves"][0]["place"] == shown.as_str(), "{status}");
    place.proxy.stop(Signal::INT).await?;
    ensure!(TcpStream::connect(&place.address).await.is_err());
    place.stand.passed();
    Ok(())
}

/// curl as another user, through sudo where the tests do not run as root.
fn as_nobody(proxy: &str, url: &str) -> std::process::Command {
    let drop_rights = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let curl = ["curl", "-sS", "--max-time", "10", "--socks5-hostname", proxy, url];
    if rustix::process::geteuid().is_root() {
        command(drop_rights[0], drop_rights[1..].iter().chain(&curl))
    } else {
        command("sudo", ["-n"].iter().chain(&drop_rights).chain(&curl))
    }
}

#[tokio::test]
async fn a_browser_opens_services_by_their_names() -> Result<()> {
    let place = Place::start(&["--browser"]).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/socks.mjs");
    ensure!(
        script.with_file_name("node_modules").exists(),
        "{} has no node_modules: run tests/run, or npm ci there",
        script.display()
    );
    let profile = tempfile::tempdir_in(place.stand.dir())?;
    let server = format!("socks5://{}", place.address);
    let args = [script.as_os_str(), server.as_ref(), profile.path().as_os_str()];
    let run = process::run(command("node", args), Duration::from_mins(1)).await?.expect_code(0)?;
    let seen: Value =
        serde_json::from_str(run.stdout.lines().last().context("no result")?).context(run.stderr)?;
    say(&format!("{seen:#}"));
    ensure!(seen["typed"]["status"] == 200 && seen["fetched"] == 200 && seen["host"] == "200", "{seen}");
    ensure!(seen["typed"]["text"].as_str().is_some_and(|text| text.contains("\"from\":\"echo\"")), "{seen}");
    let failed = |what: &str| seen[what].as_str().is_some_and(|text| text.starts_with("failed"));
    ensure!(failed("elsewhere"), "{seen}");
    ensure!(place.stand.echo.seen_with("/from-echo").is_empty(), "one service's page used another");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_proxy_looks_nothing_up_and_lives_through_a_restart_of_the_relay() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = logged_in(&stand, "ada").await?;
    let address = format!("127.0.0.1:{}", wait::free_port()?);
    let trace = stand.path("trace");
    let inner = ada.command(&["proxy", "--socks5", &address])?;
    // The tracer is a grandchild: what is started, and signalled, is postern itself.
    let mut traced = command("strace", ["-D", "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o"]);
    traced.arg(&trace).arg(inner.get_program()).args(inner.get_args()).env_clear();
    traced.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut proxy = ada.start_command(traced, "traced")?;
    proxy.wait_value("Proxying ").await?;
    for (url, code) in [
        ("http://echo/x", 0),
        ("http://www.example.com/", REFUSED_BY_PROXY),
        ("http://nowhere/", REFUSED_BY_PROXY),
        ("http://192.0.2.1/", REFUSED_BY_PROXY),
    ] {
        curl(&address, "--socks5-hostname", &[url]).await?.expect_code(code)?;
    }
    let calls = std::fs::read_to_string(&trace)?;
    let away: Vec<_> =
        calls.lines().filter(|line| line.contains("sa_family=AF_") || line.contains("connect(")).collect();
    let relay = format!("sin_port=htons({})", stand.port);
    ensure!(!away.is_empty() && away.iter().all(|line| line.contains(&relay)), "{away:#?}");

    say("the relay goes away and comes back; that is told");
    stand.stop_relay(Signal::TERM).await?;
    // While nobody asks for anything the proxy looks for itself, now and then.
    proxy.wait_line("relay lost, retrying in 1 s ...", wait::SOON * 2).await?;
    let gone =
        curl(&address, "--socks5-hostname", &["-o", "/dev/null", "-w", "%{http_code}", "http://echo/away"])
            .await?;
    ensure!(gone.stdout == "502", "{gone:?}");
    stand.start_relay().await?;
    proxy.wait_line("back after", wait::SOON).await?;
    wait::until("the proxy works again by itself", wait::SOON, async || {
        let again = curl(&address, "--socks5-hostname", &["-f", "http://echo/again"]).await.ok()?;
        (again.code == 0).then_some(())
    })
    .await?;
    ensure!(stand.echo.seen_with("/away").is_empty(), "a call that failed was sent later");
    proxy.stop(Signal::INT).await?;
    stand.passed();
    Ok(())
}
