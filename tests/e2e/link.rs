//! The tunnel's two links: where UDP is blocked agents enrol and serve over TCP within seconds, through an HTTP proxy (Debian tinyproxy)
//! where one is named, and go back to QUIC without losing a request.

mod gate;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use gate::Gate;
use postern_tests::http::{Http, empty, pattern_body, read_pattern, request};
use postern_tests::process::{Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::{tinyproxy, wait};
use tokio_util::sync::CancellationToken;

const PATH: &str = "/billing/v1/invoices/7";
/// From the start to the first answer where UDP is blocked.
const FIRST: Duration = Duration::from_secs(5);
/// Longer than the agent waits before it tries QUIC again, in these tests.
const CHANGE: Duration = Duration::from_secs(15);

/// Everything but a running agent, whose way to the relay leads through a gate; `keys` come before the tables of agent.toml.
async fn behind_a_gate(keys: &str, tunnel: &str) -> Result<(Stand, Gate)> {
    let extra = Extra { agent_tables: format!("[tunnel]\n{tunnel}\n"), ..Extra::default() };
    let stand = Stand::relay_only(extra).await?;
    let gate = Gate::start(stand.port).await?;
    let direct = format!("relay = \"127.0.0.1:{}\"", stand.port);
    stand.edit("agent.toml", &direct, &format!("relay = \"{}\"\n{keys}", gate.address))?;
    Ok((stand, gate))
}

async fn join(stand: &Stand, gate: &Gate) -> Result<Output> {
    let invite = stand.invite("dc1", &[]).await?;
    std::fs::write(stand.path("invite"), invite)?;
    let file = stand.path("invite");
    let file = file.to_str().context("the directory's name is not text")?;
    stand.agent_command(&["join", &gate.address.to_string(), "--invite-file", file]).await
}

/// Starts the agent and waits for the first answer; gives how long that took.
async fn first_answer(stand: &mut Stand, token: &str) -> Result<Duration> {
    let start = Instant::now();
    stand.start_agent().await?;
    stand.wait_status(PATH, token, 200, FIRST).await?;
    Ok(start.elapsed())
}

/// Waits until the agent has `count` usable tunnels over `link`, and none over the other.
async fn wait_links(stand: &mut Stand, link: &str, count: u32) -> Result<()> {
    let url = format!("{}/metrics", Stand::metrics_url(stand.agent()?).await?);
    let http = stand.http.clone();
    let value = |text: &str, link: &str| {
        let name = format!("postern_agent_tunnels{{link=\"{link}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u32>().ok()).unwrap_or_default()
    };
    let other = if link == "quic" { "tcp" } else { "quic" };
    wait::until(&format!("{count} tunnels over {link}"), CHANGE, async || {
        let text = http.get(&url, None).await.ok()?.text();
        (value(&text, link) == count && value(&text, other) == 0).then_some(())
    })
    .await
}

/// Asks without pause until told to stop; every answer must be good. Gives how many there were.
async fn ask(http: Http, url: String, token: String, stop: CancellationToken) -> Result<u32> {
    let mut answers = 0;
    while !stop.is_cancelled() {
        http.get(&url, Some(&token)).await?.expect_status(200).context("under load")?;
        answers += 1;
    }
    Ok(answers)
}

#[tokio::test]
async fn blocked_udp_is_passed_by_over_tcp_and_quic_taken_back_without_a_loss() -> Result<()> {
    let (mut stand, gate) = behind_a_gate("", "retry_quic = \"2s\"").await?;
    let token = stand.issuer.token("ada").await?;

    say("UDP is blocked: enrolment and service over TCP");
    let start = Instant::now();
    join(&stand, &gate).await?.expect_code(0)?;
    say(&format!("joined in {:?}", start.elapsed()));
    ensure!(start.elapsed() < FIRST, "the join took {:?}", start.elapsed());
    let took = first_answer(&mut stand, &token).await?;
    say(&format!("first answer {took:?} after the agent's start"));
    ensure!(took < FIRST, "first answer after {took:?}");
    wait_links(&mut stand, "tcp", 2).await?;

    say("UDP is back under load: QUIC is taken, and no request is lost");
    let stop = CancellationToken::new();
    let (h1, h2) = (Http::h1(stand.pki.roots()?)?, Http::h2(stand.pki.roots()?)?);
    let (url, total) = (stand.at(PATH), 8_u64 << 20);
    // Both take longer than the change.
    let path = format!("/echo/stream?bytes={total}&step={}&pause=60", 64 << 10);
    let download = h1.stream(request("GET", &stand.at(&path), Some(&token)).body(empty())?).await?;
    let body = pattern_body(total, 64 << 10, Duration::from_millis(60));
    let upload = h2.send(request("POST", &stand.at("/echo/sink"), Some(&token)).body(body)?);
    let changed = async {
        gate.pass_udp(true);
        let opened = Instant::now();
        wait_links(&mut stand, "quic", 2).await?;
        say(&format!("back on QUIC after {:?}", opened.elapsed()));
        // Some more over QUIC alone.
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        Ok(())
    };
    let ((), first, second, third, downloaded, uploaded) = tokio::try_join!(
        changed,
        ask(h1.clone(), url.clone(), token.clone(), stop.clone()),
        ask(h1, url.clone(), token.clone(), stop.clone()),
        ask(h2.clone(), url, token.clone(), stop.clone()),
        read_pattern(download.into_body()),
        upload,
    )?;
    say(&format!("{} answers, all good", first + second + third));
    let sunk = uploaded.expect_status(200)?.json()?;
    ensure!(
        downloaded == total && sunk["received"] == total && sunk["fault"].is_null(),
        "{downloaded} {sunk}"
    );
    let log = stand.agent()?.log_text();
    for line in ["runs over TCP now", "runs over QUIC again"] {
        let count = log.lines().filter(|l| l.contains(line)).count();
        ensure!(count == 2, "{count} lines say {line:?} for two tunnels:\n{log}");
    }

    say("UDP is blocked under a working tunnel");
    gate.pass_udp(false);
    let blocked = Instant::now();
    wait_links(&mut stand, "tcp", 2).await?;
    say(&format!("over to TCP after {:?}", blocked.elapsed()));
    stand.wait_status(PATH, &token, 200, FIRST).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_flow_that_a_firewall_forgets_costs_no_stream() -> Result<()> {
    let (mut stand, gate) = behind_a_gate("", "").await?;
    let token = stand.issuer.token("ada").await?;
    gate.pass_udp(true);
    join(&stand, &gate).await?.expect_code(0)?;
    first_answer(&mut stand, &token).await?;
    wait_links(&mut stand, "quic", 2).await?;
    let path = format!("/echo/stream?bytes={}&step={}&pause=60", 12 << 20, 64 << 10);
    let download = stand.http.stream(request("GET", &stand.at(&path), Some(&token)).body(empty())?).await?;

    say("the ports of the tunnels are dead from now on");
    gate.forget_flows();
    let forgotten = Instant::now();
    let bytes = wait::within("the download", wait::SOON * 2, read_pattern(download.into_body())).await??;
    say(&format!("a download of 12 s took {:?}", forgotten.elapsed()));
    ensure!(bytes == 12 << 20, "{bytes}");
    wait_links(&mut stand, "quic", 2).await?;
    let log = stand.agent()?.log_text();
    ensure!(!log.contains("tunnel lost") && !log.contains("over TCP"), "{log}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_agent_that_leaves_has_delivered_what_it_answered() -> Result<()> {
    // More than all sockets on the way hold.
    const BYTES: u64 = 24 << 20;
    let (mut stand, gate) = behind_a_gate("", "transport = \"tcp\"").await?;
    let token = stand.issuer.token("ada").await?;
    gate.pass_udp(true);
    join(&stand, &gate).await?.expect_code(0)?;
    for (link, next) in [("tcp", "quic"), ("quic", "auto")] {
        say(&format!("over {link}"));
        first_answer(&mut stand, &token).await?;
        wait_links(&mut stand, link, 2).await?;
        let path = format!("/echo/stream?bytes={BYTES}&step={}", 64 << 10);
        let url = stand.at(&path);
        let ask = async || stand.http.stream(request("GET", &url, Some(&token)).body(empty())?).await;
        let downloads = futures_util::future::try_join_all((0..4).map(|_| ask())).await?;
        // The callers read nothing until the agent was told to leave: everything on the way is full.
        stand.agent()?.signal(Signal::TERM)?;
        stand.agent()?.wait_line("draining", wait::SOON).await?;
        let reading = downloads.into_iter().map(|download| read_pattern(download.into_body()));
        let read = futures_util::future::try_join_all(reading).await?;
        ensure!(read.iter().all(|bytes| *bytes == BYTES), "{read:?}");
        let start = Instant::now();
        stand.agent()?.wait_exit(wait::SOON).await?;
        say(&format!("the agent ended {:?} after the last byte", start.elapsed()));
        stand.edit("agent.toml", &format!("\"{link}\""), &format!("\"{next}\""))?;
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn more_streams_are_permitted_before_they_run_out() -> Result<()> {
    // Two tunnels begin with 100 each.
    const HELD: u64 = 600;
    let stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let http = Http::h1(stand.pki.roots()?)?;
    let url = stand.at("/echo/hold");
    let mut held = FuturesUnordered::new();
    let start = Instant::now();
    for wanted in (20..=HELD).step_by(20) {
        held.extend((0..20).map(|_| http.get(&url, Some(&token))));
        let what = format!("{wanted} requests wait at the upstream");
        tokio::select! {
            answer = held.next() => bail!("answered with {wanted} under way: {answer:?}"),
            waiting = wait::until(&what, wait::SOON, async || {
                (stand.echo.waiting() >= wanted).then_some(())
            }) => waiting?,
        }
    }
    say(&format!("{HELD} requests at the upstream after {:?}", start.elapsed()));
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn transport_says_what_is_tried() -> Result<()> {
    let (mut stand, gate) = behind_a_gate("", "transport = \"tcp\"").await?;
    let token = stand.issuer.token("ada").await?;
    gate.pass_udp(true);
    join(&stand, &gate).await?.expect_code(0)?;
    first_answer(&mut stand, &token).await?;
    wait_links(&mut stand, "tcp", 2).await?;
    stand.stop_agent(Signal::TERM).await?;

    stand.edit("agent.toml", "\"tcp\"", "\"quic\"")?;
    first_answer(&mut stand, &token).await?;
    wait_links(&mut stand, "quic", 2).await?;
    stand.stop_agent(Signal::TERM).await?;

    gate.pass_udp(false);
    std::fs::remove_dir_all(stand.path("agent"))?;
    let lonely = join(&stand, &gate).await?.expect_code(7)?;
    ensure!(lonely.stderr.contains("UDP"), "{}", lonely.stderr);
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_http_proxy_carries_joins_and_tunnels() -> Result<()> {
    let port = wait::free_port()?;
    let (mut stand, gate) = behind_a_gate(&format!("proxy = \"http://127.0.0.1:{port}\""), "").await?;
    let token = stand.issuer.token("ada").await?;
    let mut proxy = tinyproxy::start(&stand, port, gate.address.port()).await?;

    say("without a password the proxy refuses, and the agent says what to do");
    let refused = join(&stand, &gate).await?.expect_code(7)?;
    ensure!(refused.stderr.contains("USER:PASSWORD"), "{}", refused.stderr);

    say("with one it carries the join and the tunnels");
    stand.edit("agent.toml", "proxy = \"http://", "proxy = \"http://ada:secret@")?;
    join(&stand, &gate).await?.expect_code(0)?;
    let took = first_answer(&mut stand, &token).await?;
    say(&format!("first answer {took:?} after the agent's start"));
    wait_links(&mut stand, "tcp", 2).await?;

    say("the proxy ends: so do the tunnels, which shows that they ran through it");
    proxy.stop(Signal::KILL).await?;
    stand.wait_status(PATH, &token, 503, wait::SOON).await?;
    stand.agent()?.wait_line("check its address (proxy, HTTPS_PROXY)", wait::SOON).await?;
    let log = stand.agent()?.log_text();
    ensure!(!log.contains("secret"), "the password is in the log: {log}");

    say("and is back");
    let _proxy = tinyproxy::start(&stand, port, gate.address.port()).await?;
    stand.wait_status(PATH, &token, 200, FIRST).await?;
    stand.passed();
    Ok(())
}
