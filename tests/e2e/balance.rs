//! A service that several agents serve: the less busy one gets more, one whose upstream is down gets nothing twice; what no upstream has
//! seen moves on, and what one may have seen is repeated only where that does no harm. A service takes as many at once as it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_tests::http::{Answer, Http, empty, full, request};
use postern_tests::site::{Plan, Site};
use postern_tests::stand::say;
use postern_tests::wait;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SERVICES: &str = r#"
[services.pair]
agent = ["dc1", "dc2"]
limit = { concurrent = 40 }
rules = [{ allow = "*", to = "* /**" }]
"#;

const READY: Duration = Duration::from_secs(30);

/// Answers every request with its name, after its pause; counts them by method. While it holds, nothing is answered.
struct Upstream {
    at: SocketAddr,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    gets: AtomicU64,
    others: AtomicU64,
    holds: AtomicBool,
}

impl Counts {
    fn gets(&self) -> u64 {
        self.gets.load(Ordering::SeqCst)
    }

    fn others(&self) -> u64 {
        self.others.load(Ordering::SeqCst)
    }
}

impl Upstream {
    async fn start(name: &'static str, pause: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let at = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let counts = shared.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let counts = counts.clone();
                    async move {
                        let is_get = request.method() == "GET";
                        (if is_get { &counts.gets } else { &counts.others }).fetch_add(1, Ordering::SeqCst);
                        request.into_body().collect().await?;
                        if counts.holds.load(Ordering::SeqCst) {
                            std::future::pending::<()>().await;
                        }
                        tokio::time::sleep(pause).await;
                        Ok::<_, hyper::Error>(Response::new(full(name)))
                    }
                });
                connections.spawn(async move {
                    // A connection that broke is the other side's business.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { at, counts, _tasks: tasks })
    }

    fn url(&self) -> String {
        format!("http://{}", self.at)
    }
}

/// A relay with the agents that are given, each with its upstream's address.
async fn site(agents: &[(&str, String)]) -> Result<(Site, String)> {
    let mut site = Site::start(&Plan::on_loopback(SERVICES)).await?;
    for (agent, upstream) in agents {
        enrol(&mut site, agent, upstream).await?;
        site.start_agent(agent).await?;
    }
    let token = site.issuer.token("ada").await?;
    Ok((site, token))
}

async fn enrol(site: &mut Site, agent: &str, upstream: &str) -> Result<()> {
    let relay = format!("127.0.0.1:{}", site.port);
    site.enrol(agent, &relay, &format!("[services.pair]\nupstream = \"{upstream}\"\n"), None).await
}

/// Waits until both upstreams have been reached. Many ask at once: a request by itself stays on its connection's worker, which may have
/// tunnels of one agent alone and no reason to leave them.
async fn both_ready(site: &Site, token: &str, all: [&Upstream; 2]) -> Result<()> {
    let url = format!("{}/pair/ready", site.url);
    wait::until("both agents serve", READY, async || {
        for answer in join_all((0..32).map(|_| site.http.get(&url, Some(token)))).await {
            answer.ok()?;
        }
        all.iter().all(|upstream| upstream.counts.gets() > 0).then_some(())
    })
    .await
}

/// `workers` callers that each send one request after the other until the deadline; every answer must be 200.
async fn load(site: &Site, token: &str, workers: usize, time: Duration) -> Result<u64> {
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let (http, token) = (site.http.clone(), token.to_owned());
        let url = format!("{}/pair/load/{worker}", site.url);
        tasks.spawn(async move {
            let mut done = 0u64;
            while Instant::now() < until {
                // Bodies in one piece move on too.
                let method = if done.is_multiple_of(2) { "GET" } else { "POST" };
                let body = if method == "GET" { empty() } else { full("x".repeat(1000)) };
                let answer = http.send(request(method, &url, Some(&token)).body(body)?).await?;
                answer.expect_status(200).with_context(|| format!("{method} {url}"))?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(worker) = tasks.join_next().await {
        done += worker??;
    }
    Ok(done)
}

#[tokio::test]
async fn the_less_busy_agent_gets_more() -> Result<()> {
    let fast = Upstream::start("fast", Duration::from_millis(2)).await?;
    let slow = Upstream::start("slow", Duration::from_millis(500)).await?;
    let (site, token) = site(&[("dc1", fast.url()), ("dc2", slow.url())]).await?;
    both_ready(&site, &token, [&fast, &slow]).await?;
    let before = (fast.counts.gets() + fast.counts.others(), slow.counts.gets() + slow.counts.others());
    let done = load(&site, &token, 24, Duration::from_secs(3)).await?;
    let (fast, slow) = (
        fast.counts.gets() + fast.counts.others() - before.0,
        slow.counts.gets() + slow.counts.others() - before.1,
    );
    say(&format!("{done} requests: {fast} to the fast one, {slow} to the slow one"));
    ensure!(fast + slow == done, "{done} sent, {} arrived", fast + slow);
    ensure!(slow > 0 && slow * 3 < fast, "the slow one got its half");
    site.passed();
    Ok(())
}

#[tokio::test]
async fn a_dead_upstream_costs_no_request() -> Result<()> {
    let alive = Upstream::start("alive", Duration::from_millis(1)).await?;
    // Nobody listens there.
    let dead = format!("http://127.0.0.1:{}", wait::free_port()?);
    let (mut site, token) = site(&[("dc1", alive.url()), ("dc2", dead)]).await?;
    site.wait_status(&format!("{}/pair/ready", site.url), &token, 200, READY).await?;
    // Enough to have met both agents, whoever is chosen.
    let done = load(&site, &token, 8, Duration::from_secs(2)).await?;
    let declined = site.agent("dc2")?.log_text().matches("a request failed here").count();
    say(&format!("{done} requests, all answered, {declined} of them by the second agent asked"));
    ensure!(declined > 0, "the dead one was never asked");
    ensure!(alive.counts.others() > 0);
    site.passed();
    Ok(())
}

#[tokio::test]
async fn what_may_have_been_seen_is_repeated_only_where_that_does_no_harm() -> Result<()> {
    let first = Upstream::start("first", Duration::ZERO).await?;
    let second = Upstream::start("second", Duration::ZERO).await?;
    let (mut site, token) = site(&[("dc1", first.url())]).await?;
    site.wait_status(&format!("{}/pair/ready", site.url), &token, 200, READY).await?;
    let before = first.counts.gets();
    first.counts.holds.store(true, Ordering::SeqCst);

    let mut calls = JoinSet::new();
    for method in ["GET", "DELETE", "POST", "PUT"] {
        let (http, token): (Http, String) = (site.http.clone(), token.clone());
        let url = format!("{}/pair/once", site.url);
        calls.spawn(async move {
            let body = if method == "PUT" { full("a body") } else { empty() };
            let answer = http.send(request(method, &url, Some(&token)).body(body)?).await?;
            anyhow::Ok((method, answer))
        });
    }
    wait::until("all four are at the first agent's upstream", wait::SOON, async || {
        (first.counts.gets() == before + 1 && first.counts.others() == 3).then_some(())
    })
    .await?;
    enrol(&mut site, "dc2", &second.url()).await?;
    site.start_agent("dc2").await?;
    let other = format!("{}/pair/other", site.url);
    wait::until("the second agent serves", READY, async || {
        let answer = site.http.get(&other, Some(&token));
        let answer = tokio::time::timeout(Duration::from_millis(300), answer).await.ok()?.ok()?;
        (answer.text() == "second").then_some(())
    })
    .await?;
    let seen = (second.counts.gets(), second.counts.others());
    site.relay_command(&["agent", "remove", "dc1"]).await?.expect_code(0)?;
    let mut statuses = Vec::new();
    while let Some(call) = calls.join_next().await {
        let (method, answer): (_, Answer) = call??;
        statuses.push((method, answer.status.as_u16()));
    }
    statuses.sort_unstable();
    // POST is not idempotent, and a body that was read is not sent twice.
    ensure!(statuses == [("DELETE", 200), ("GET", 200), ("POST", 502), ("PUT", 502)], "{statuses:?}");
    ensure!(second.counts.gets() == seen.0 + 1 && second.counts.others() == seen.1 + 1, "sent too often");
    site.passed();
    Ok(())
}

#[tokio::test]
async fn a_service_takes_so_many_at_once() -> Result<()> {
    let upstream = Upstream::start("only", Duration::ZERO).await?;
    let (site, token) = site(&[("dc1", upstream.url())]).await?;
    let url = format!("{}/pair/x", site.url);
    site.wait_status(&url, &token, 200, READY).await?;
    let before = upstream.counts.gets();
    upstream.counts.holds.store(true, Ordering::SeqCst);
    let mut held = JoinSet::new();
    for _ in 0..40 {
        let (http, url, token) = (site.http.clone(), url.clone(), token.clone());
        held.spawn(async move { http.get(&url, Some(&token)).await });
    }
    wait::until("forty are held", wait::SOON, async || (upstream.counts.gets() == before + 40).then_some(()))
        .await?;
    let refused = site.http.get(&url, Some(&token)).await?.expect_status(503)?;
    ensure!(refused.json()?["type"] == "urn:postern:service-busy", "{}", refused.text());
    ensure!(refused.header("retry-after") == "1", "{:?}", refused.headers);
    ensure!(upstream.counts.gets() == before + 40, "it arrived nevertheless");

    say("callers that leave give their places back");
    upstream.counts.holds.store(false, Ordering::SeqCst);
    held.shutdown().await;
    site.wait_status(&url, &token, 200, wait::SOON).await?;
    site.passed();
    Ok(())
}
