//! A forward is a key to its service: local programs of the same user use it without a token; web pages, other hosts' names and other
//! users cannot. It outlives the relay and its tokens.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::http::{empty, raw, request};
use postern_tests::process::{self, Signal, command};
use postern_tests::stand::{Stand, say};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Runs curl as `nobody`, through sudo where the tests do not run as root.
fn curl_as_nobody(url: &str) -> std::process::Command {
    let drop_rights = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let curl = ["curl", "-sS", "--max-time", "10", "-w", "%{http_code}", url];
    if rustix::process::geteuid().is_root() {
        command(drop_rights[0], drop_rights[1..].iter().chain(&curl))
    } else {
        command("sudo", ["-n"].iter().chain(&drop_rights).chain(&curl))
    }
}

/// One plain HTTP/1.1 request to the forward with exactly this head; gives the status.
async fn status(port: u16, head: &str) -> Result<u16> {
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    // A refusal may end in a reset; what was read counts.
    let _ = wait::within(head, wait::SOON, stream.read_to_string(&mut answer)).await?;
    let code = answer.split(' ').nth(1).with_context(|| format!("{head}: no answer"))?;
    Ok(code.parse()?)
}

#[tokio::test]
async fn a_forward_serves_its_own_user_alone() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (mut forward, base) = ada.forward("echo", &[]).await?;
    let port = url::Url::parse(&base)?.port().context("no port")?;

    say("an ordinary program needs no token, and its own is replaced");
    let plain = stand.http.get(&format!("{base}/plain?x=1"), None).await?.expect_status(200)?.json()?;
    ensure!(plain["target"] == "/plain?x=1", "{plain}");
    let own = request("GET", &format!("{base}/own"), Some("junk")).header("dpop", "junk");
    stand.http.send(own.body(empty())?).await?.expect_status(200)?;
    let seen = stand.echo.seen_with("/own");
    ensure!(
        seen.len() == 1 && seen[0].header("authorization").is_empty() && seen[0].header("dpop").is_empty()
    );
    ensure!(seen[0].header("x-postern-subject") == "ada", "{:?}", seen[0].headers);

    say("Host");
    let hosts = [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("LocalHost:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        (format!("127.0.0.1:{}", port - 1), 421),
        (format!("evil.example.com:{port}"), 421),
        ("evil.example.com".to_owned(), 421),
        (format!("127.0.0.1.example.com:{port}"), 421),
        (format!("echo.localhost:{port}"), 421),
    ];
    for (host, expected) in hosts {
        let found = status(port, &format!("GET /host-{expected} HTTP/1.1\r\nHost: {host}")).await?;
        ensure!(found == expected, "Host: {host} gave {found}");
    }
    ensure!(stand.echo.seen_with("/host-421").is_empty());

    say("Origin and Sec-Fetch-Site");
    let fields = [
        (format!("Origin: http://127.0.0.1:{port}"), false),
        (format!("Origin: http://localhost:{port}"), true),
        ("Origin: http://evil.example.com".to_owned(), false),
        ("Origin: null".to_owned(), false),
        (format!("Origin: http://127.0.0.1:{}", port - 1), false),
        (format!("Origin: https://127.0.0.1:{port}"), false),
        ("Sec-Fetch-Site: none".to_owned(), true),
        ("Sec-Fetch-Site: same-origin".to_owned(), true),
        ("Sec-Fetch-Site: same-site".to_owned(), false),
        ("Sec-Fetch-Site: cross-site".to_owned(), false),
    ];
    for (field, allowed) in fields {
        for method in ["GET", "POST", "OPTIONS"] {
            let head = format!(
                "{method} /field-{allowed} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 0\r\n{field}"
            );
            let found = status(port, &head).await?;
            let good = if allowed { found == 200 } else { found == 403 };
            ensure!(good, "{method} with {field}: {found}");
        }
    }
    ensure!(stand.echo.seen_with("/field-false").is_empty());

    say("another user of this machine");
    let theirs = process::run(curl_as_nobody(&format!("{base}/nobody")), wait::SOON).await?;
    say(&format!("nobody gets {:?} (curl exit {})", theirs.stdout, theirs.code));
    ensure!(!theirs.stdout.ends_with("200"), "{theirs:?}");
    ensure!(stand.echo.seen_with("/nobody").is_empty(), "another user's request arrived");

    say("only loopback, unless shared");
    let everywhere = ada.run(&["forward", "echo", "--bind", "0.0.0.0"]).await?;
    ensure!(everywhere.code == 2, "{everywhere:?}");
    let listening =
        process::run(command("ss", ["-ltnH", "sport", "=", &format!(":{port}")]), wait::SOON).await?;
    ensure!(
        listening.stdout.lines().all(|l| l.contains("127.0.0.1") || l.contains("[::1]")),
        "{}",
        listening.stdout
    );

    say("policy's word passes through");
    let (_billing, billing) = ada.forward("billing", &[]).await?;
    stand.http.get(&format!("{billing}/v1/invoices/7"), None).await?.expect_status(200)?;
    let denied = stand.http.get(&format!("{billing}/reports"), None).await?.expect_status(403)?;
    ensure!(denied.text().contains("the office sees reports"), "{}", denied.text());

    say("a unix socket, for its owner alone");
    let socket = stand.path("forward.sock");
    let path = socket.display().to_string();
    let mut unix = ada.start(&["forward", "echo", "--unix", &path])?;
    wait::until("the socket", wait::SOON, async || (socket.exists() || !unix.is_running()).then_some(()))
        .await?;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&socket)?) & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let through = command("curl", ["-sS", "--unix-socket", &path, "http://localhost/through"]);
    process::run(through, wait::SOON).await?.expect_code(0)?;
    ensure!(stand.echo.seen_with("/through").len() == 1);

    say("-- CMD runs with the forward and gives its exit code");
    let script = "curl -sS \"$POSTERN_URL/cmd?port=$POSTERN_PORT\"; exit 7";
    let cmd = ada.run(&["forward", "echo", "--", "sh", "-c", script]).await?.expect_code(7)?;
    ensure!(cmd.stdout.contains("\"target\":\"/cmd?port="), "{cmd:?}");

    say("Ctrl-C ends it");
    forward.stop(Signal::INT).await?;
    ensure!(raw::connect(port, stand.pki.roots()?, "localhost").await.is_err());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_forward_outlives_the_relay_and_its_tokens() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    stand.issuer.access_ttl(Duration::from_secs(3)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (mut forward, base) = ada.forward("echo", &[]).await?;

    say("tokens of three seconds, calls for eight: each has a good one");
    let start = std::time::Instant::now();
    let before = stand.issuer.grant_hits("refresh_token").await?;
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(8) {
        stand.http.get(&format!("{base}/steady"), None).await?.expect_status(200)?;
        calls += 1;
    }
    let refreshes = stand.issuer.grant_hits("refresh_token").await? - before;
    say(&format!("{calls} calls, {refreshes} refreshes"));
    ensure!((2..=20).contains(&refreshes), "{refreshes} refreshes");
    stand.issuer.access_ttl(Duration::from_mins(5)).await?;

    say("the relay goes away and comes back");
    stand.stop_relay(Signal::TERM).await?;
    let away = stand.http.get(&format!("{base}/away"), None).await?;
    ensure!(away.status.is_server_error(), "{}", away.status);
    forward.wait_line("relay lost", wait::SOON).await?;
    stand.start_relay().await?;
    let what = "the forward works again by itself";
    wait::until(what, Duration::from_secs(30), async || {
        let answer = stand.http.get(&format!("{base}/again"), None).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    forward.wait_line("back after", wait::SOON).await?;
    ensure!(stand.echo.seen_with("/away").is_empty(), "a call that failed was sent later");
    stand.passed();
    Ok(())
}
