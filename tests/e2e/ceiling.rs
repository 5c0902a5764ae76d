//! What the agent and the upstream have the last word on: the agent's own ceiling holds whatever the relay allows, and an upstream that
//! is down, silent or deaf ends the request in time, with an answer that says who failed.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::http::{Answer, Http, empty, full, pattern_body, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Echo;
use postern_tests::{pattern, wait};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// The relay allows everything everywhere.
fn service(name: &str, more: &str) -> String {
    format!("[services.{name}]\nagent = \"dc1\"\n{more}\nrules = [{{ allow = \"*\", to = \"* /**\" }}]\n")
}

/// A refusal of ours, of this type, that says which hop failed and names no address.
fn expect_problem(answer: Answer, status: u16, kind: &str, hop: &str, secret: &str) -> Result<Answer> {
    let answer = answer.expect_status(status)?;
    ensure!(answer.header("content-type") == "application/problem+json", "{:?}", answer.headers);
    let problem = answer.json()?;
    ensure!(problem["type"] == kind && problem["status"] == status, "{problem}");
    ensure!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    ensure!(answer.header("proxy-status").starts_with(hop), "{:?}", answer.headers);
    ensure!(!format!("{problem}{:?}", answer.headers).contains(secret), "names an upstream: {problem}");
    Ok(answer)
}

#[tokio::test]
async fn the_agents_own_ceiling_holds() -> Result<()> {
    let extra = Extra {
        tables: service("capped", ""),
        agent_tables: "[services.capped]\nupstream = \"{echo}\"\nonly = \"GET /v1/**\"\n".to_owned(),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let upstream = format!(":{}", stand.echo.port);
    for http in [&stand.http, &Http::h2(stand.pki.roots()?)?] {
        for (method, path) in
            [("GET", "/capped/v1/under"), ("HEAD", "/capped/v1/under"), ("GET", "/capped/v1")]
        {
            http.call(method, &stand.at(path), Some(&token)).await?.expect_status(200)?;
        }
        for (method, path) in [
            ("DELETE", "/capped/v1/over"),
            ("POST", "/capped/v1/over"),
            ("get", "/capped/v1/over"),
            ("GET", "/capped/v2/over"),
            ("GET", "/capped/V1/over"),
            ("GET", "/capped/v1/../over"),
            ("GET", "/capped/v1%2e/over"),
            ("GET", "/capped/over"),
        ] {
            say(&format!("{method} {path}"));
            let answer = http.call(method, &stand.at(path), Some(&token)).await?;
            expect_problem(answer, 403, "urn:postern:agent-denied", "agent", &upstream)?;
        }
        let body = request("PUT", &stand.at("/capped/v1/over"), Some(&token)).body(full("x".repeat(4096)))?;
        expect_problem(http.send(body).await?, 403, "urn:postern:agent-denied", "agent", &upstream)?;
    }
    ensure!(stand.echo.seen_with("/under").len() == 4, "{:?}", stand.echo.seen());
    ensure!(stand.echo.seen_with("over").is_empty(), "{:?}", stand.echo.seen_with("over"));
    let ends = stand.wait_audit(18, |line| line["event"] == "end" && line["status"] == 403).await?;
    ensure!(ends.iter().all(|end| end["agent"] == "dc1" && end["service"] == "capped"), "{ends:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn upstreams_that_are_down_or_silent_are_told_apart() -> Result<()> {
    // Up while the stand starts: an agent is ready only when its upstreams are.
    let doomed = Echo::start()?;
    let dead = doomed.port;
    let quick = "limit = { first_byte = \"1s\" }";
    let extra = Extra {
        tables: [service("dead", ""), service("patient", ""), service("hasty", quick)].concat(),
        agent_tables: format!(
            "[services.dead]\nupstream = \"http://127.0.0.1:{dead}\"\n\
             [services.patient]\nupstream = \"{{echo}}\"\nlimit = {{ connect = \"1s\", first_byte = \"1s\" }}\n\
             [services.hasty]\nupstream = \"{{echo}}\"\n"
        ),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;
    let upstream = format!(":{}", stand.echo.port);
    stand.http.get(&stand.at("/dead/x"), Some(&token)).await?.expect_status(200)?;
    drop(doomed);

    for http in [&stand.http, &h2] {
        say("down");
        let get = http.get(&stand.at("/dead/x"), Some(&token)).await?;
        let post = http.send(request("POST", &stand.at("/dead/x"), Some(&token)).body(full("x"))?).await?;
        for answer in [get, post] {
            let kind = "urn:postern:upstream-unreachable";
            let answer = expect_problem(answer, 502, kind, "upstream", &format!(":{dead}"))?;
            ensure!(answer.header("proxy-status").contains("connection_refused"), "{:?}", answer.headers);
        }

        for (limited, path) in [("by the relay", "/hasty/hold"), ("by the agent", "/patient/hold")] {
            say(&format!("silent, limited {limited}"));
            for body in [empty(), full("x".repeat(4096))] {
                let abandoned = stand.echo.abandoned();
                let start = Instant::now();
                let answer = http.send(request("POST", &stand.at(path), Some(&token)).body(body)?).await?;
                let took = start.elapsed();
                expect_problem(answer, 504, "urn:postern:upstream-timeout", "upstream", &upstream)?;
                let in_time = Duration::from_millis(900)..Duration::from_secs(6);
                ensure!(in_time.contains(&took), "{path} took {took:?}");
                wait::until("the upstream's request is given up", wait::SOON, async || {
                    (stand.echo.abandoned() > abandoned).then_some(())
                })
                .await?;
            }
            http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
        }
    }
    stand.passed();
    Ok(())
}

/// The upload is far beyond what sockets and tunnels hold on their way.
const LARGE: u64 = 256 << 20;

#[tokio::test]
async fn an_upstream_that_does_not_read_does_not_hold_a_request_for_ever() -> Result<()> {
    let deaf = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = deaf.local_addr()?.port();
    let idle = "limit = { idle = \"2s\" }";
    let extra = Extra {
        tables: service("deaf", idle) + &service("slow", idle),
        agent_tables: format!(
            "[services.deaf]\nupstream = \"http://127.0.0.1:{port}\"\n[services.slow]\nupstream = \"{{echo}}\"\n"
        ),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    for (http, version) in [(&stand.http, "HTTP/1.1"), (&h2, "HTTP/2")] {
        say(&format!("{version}: an upload that nobody reads"));
        let body = pattern_body(LARGE, pattern::CHUNK as u64, Duration::ZERO);
        let upload = request("POST", &stand.at("/deaf/x"), Some(&token)).body(body)?;
        let start = Instant::now();
        // The other side of the connection is held open, and never read from, until the request has ended.
        let (ended, accepted) = tokio::join!(
            wait::within("the upload ends", Duration::from_secs(12), http.send(upload)),
            wait::within("the upstream is called", wait::SOON, deaf.accept()),
        );
        let took = start.elapsed();
        match ended? {
            Ok(answer) => {
                say(&format!("{} after {took:.1?}", answer.status));
                expect_problem(answer, 504, "urn:postern:upstream-timeout", "upstream", &format!(":{port}"))?;
            }
            Err(error) => say(&format!("reset after {took:.1?}: {error:#}")),
        }
        ensure!(took > Duration::from_millis(1900), "ended after {took:?}, before limit.idle");
        given_up(accepted??.0).await?;
        http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
    }
    let ends = stand.wait_audit(2, |line| line["event"] == "end" && line["service"] == "deaf").await?;
    say(&format!(
        "in the audit log: {} {}, {} {}",
        ends[0]["status"], ends[0]["ended"], ends[1]["status"], ends[1]["ended"]
    ));
    ensure!(ends.iter().all(|end| end["bytes_in"].as_u64().is_some_and(|n| n < LARGE)), "{ends:?}");

    say("what moves slowly, or is answered late, is none of that limit's business");
    for http in [&stand.http, &h2] {
        let body = pattern_body(8000, 1000, Duration::from_millis(500));
        let upload = request("POST", &stand.at("/slow/sink"), Some(&token)).body(body)?;
        let late = stand.at("/slow/delay?ms=3500");
        let (sunk, late) = tokio::try_join!(http.send(upload), http.get(&late, Some(&token)))?;
        let sunk = sunk.expect_status(200)?.json()?;
        ensure!(sunk["received"] == 8000 && sunk["fault"].is_null(), "{sunk}");
        late.expect_status(200)?;
    }
    stand.passed();
    Ok(())
}

/// Reads what the agent had sent to where it gave up: an end or a reset, but an end.
async fn given_up(mut upstream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    wait::within("the agent closes the upstream's connection", wait::SOON, async {
        while matches!(upstream.read(&mut buffer).await, Ok(read) if read > 0) {}
    })
    .await
    .context("the agent kept it")
}
