//! Who may not connect, asks in a wrong way, or configures what means nothing; and what dry runs say of a TCP service.

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use postern_tests::http::switch::{Many, Once};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};

use super::{EchoTcp, PATH, TABLES, asking};

/// Status and problem type of a refusal, over both versions of HTTP.
async fn refused(stand: &Stand, many: &mut Many, token: Option<&str>, path: &str) -> Result<(u16, String)> {
    let once = Once::send(stand.port, stand.pki.roots()?, asking(stand, token, path)?).await?;
    // Elsewhere it is no upgrade, and the connection goes on.
    let is_asked = path.starts_with("/.postern/tcp/");
    let closes = once.answer.headers().get("connection").is_some_and(|v| v == "close");
    ensure!(closes == is_asked, "{:?}", once.answer);
    let authorization = token.map(|token| format!("Bearer {token}"));
    let fields: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
    let answer = many.ask("postern-tcp", path, &fields).await?;
    let status = once.answer.status();
    if closes {
        once.closes().await?;
    }
    ensure!(answer.status() == status, "{status} over HTTP/1.1, {} over HTTP/2", answer.status());
    let body = wait::within("a problem", wait::SOON, answer.into_body().collect()).await??.to_bytes();
    let problem: Value = serde_json::from_slice(&body)?;
    Ok((status.as_u16(), problem["type"].as_str().context("no type")?.to_owned()))
}

#[tokio::test]
async fn who_may_not_connect_is_told() -> Result<()> {
    let echo = EchoTcp::start().await?;
    let stand = echo.stand().await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    let mut many = Many::connect(stand.port, stand.pki.roots()?).await?;
    // The agent has looked whether its upstreams are there.
    let probes = echo.arrived();
    for (token, path, status, kind) in [
        (None, PATH, 401, "no-token"),
        (None, "/.postern/tcp/nowhere", 401, "no-token"),
        (Some("x.y.z"), PATH, 401, "invalid-token"),
        (Some(&*bob), PATH, 403, "denied"),
        (Some(&*ada), "/.postern/tcp/nowhere", 404, "no-such-service"),
        (Some(&*ada), "/.postern/tcp/hidden-tcp", 404, "no-such-service"),
        // A service of kind http is not to be had here, nor one of kind tcp elsewhere.
        (Some(&*ada), "/.postern/tcp/echo", 404, "no-such-service"),
        (Some(&*ada), "/echo-tcp", 404, "no-such-service"),
        (Some(&*ada), "/.postern/tcp/echo-tcp/x", 404, "no-such-service"),
    ] {
        let told = refused(&stand, &mut many, token, path).await?;
        ensure!(told == (status, format!("urn:postern:{kind}")), "{path}: {told:?}");
    }
    ensure!(echo.arrived() == probes, "somebody got through");

    say("the challenge does not tell whether a service exists");
    let challenge = async |path: &str| {
        let answer = stand.http.get(&stand.at(path), None).await?.expect_status(401)?;
        anyhow::Ok(answer.header("www-authenticate").to_owned())
    };
    ensure!(challenge(PATH).await? == challenge("/.postern/tcp/nowhere").await?);

    say("without the upgrade: 426, for those who may");
    let plain = stand.http.get(&stand.at(PATH), Some(&ada)).await?.expect_status(426)?;
    ensure!(plain.header("upgrade") == "postern-tcp", "{:?}", plain.headers);
    stand.http.get(&stand.at(PATH), Some(&bob)).await?.expect_status(403)?;
    let as_websocket = [("authorization", &*format!("Bearer {ada}")), ("sec-websocket-version", "13")];
    let answer = many.ask("websocket", PATH, &as_websocket).await?;
    ensure!(answer.status() == 426 && !answer.headers().contains_key("upgrade"), "{answer:?}");

    say("dry runs know CONNECT");
    let explained = stand.at("/.postern/explain?method=CONNECT&target=echo-tcp");
    let explained = stand.http.get(&explained, Some(&ada)).await?.expect_status(200)?.json()?;
    ensure!(explained["allowed"] == true && explained["rule"] == "clerks connect", "{explained}");
    let explained = stand.at("/.postern/explain?method=GET&target=echo-tcp");
    let explained = stand.http.get(&explained, Some(&ada)).await?.expect_status(200)?.json()?;
    ensure!(explained["allowed"] == false, "{explained}");
    let services = stand.http.get(&stand.at("/.postern/services"), Some(&ada)).await?.json()?;
    let listed = services["services"].as_array().context("no services")?;
    let listed = listed.iter().find(|service| service["name"] == "echo-tcp").context("not listed")?;
    ensure!(
        listed["kind"] == "tcp" && listed["may"] == json!(["CONNECT"]) && listed["up"] == true,
        "{listed}"
    );
    std::fs::write(stand.path("clerk.toml"), "groups = \"finance\"\n")?;
    let file = stand.path("clerk.toml");
    let file = file.to_str().context("not text")?;
    let why = stand.relay_command(&["policy", "why", "--as", file, "CONNECT", "echo-tcp"]).await?;
    ensure!(why.expect_code(0)?.stdout.contains("clerks connect"));
    let tests = stand.relay_command(&["policy", "test"]).await?.expect_code(0)?;
    ensure!(tests.stdout.contains("what denies everything denies this too"), "{}", tests.stdout);
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn configurations_that_mean_nothing_are_refused() -> Result<()> {
    let stand = Stand::relay_only(Extra { tables: TABLES.to_owned(), ..Extra::default() }).await?;
    let kind = "[services.echo-tcp]\nkind = \"tcp\"\n";
    for (key, words) in [
        ("hosts = [\"db.example.com\"]", "/.postern/tcp/echo-tcp"),
        ("path = \"/db\"", "/.postern/tcp/echo-tcp"),
        ("strip_request = [\"x-a\"]", "carry bytes"),
        ("send = { user = \"x-user\" }", "carry bytes"),
        ("limit = { body = \"1MiB\" }", "carry bytes"),
        ("limit = { idle = \"5m\" }", "keepalive"),
        ("limit = { concurrent = 0 }", "at least 1"),
    ] {
        stand.edit("relay.toml", kind, &format!("{kind}{key}\n"))?;
        let checked = stand.relay_command(&["config", "check"]).await?.expect_code(3)?;
        let said = format!("{}{}", checked.stdout, checked.stderr);
        ensure!(said.contains(words), "{key}: {said}");
        stand.edit("relay.toml", &format!("{kind}{key}\n"), kind)?;
    }
    stand.edit("relay.toml", kind, &format!("{kind}limit = {{ idle = \"off\", concurrent = 8 }}\n"))?;
    stand.relay_command(&["config", "check"]).await?.expect_code(0)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_agent_that_offers_another_kind_is_refused_by_name() -> Result<()> {
    let echo = EchoTcp::start().await?;
    let mut stand = echo.stand().await?;
    let token = stand.issuer.token("ada").await?;
    stand.stop_agent(Signal::TERM).await?;
    let tcp = format!("[services.echo-tcp]\nupstream = \"tcp://127.0.0.1:{}\"", echo.port);
    let http = format!("[services.echo-tcp]\nupstream = \"http://127.0.0.1:{}\"", echo.port);
    stand.edit("agent.toml", &tcp, &http)?;
    stand.start_agent().await?;
    let words = "service echo-tcp is of kind tcp in relay.toml and http in agent.toml: make them agree";
    stand.agent()?.wait_line(words, wait::SOON).await?;
    stand.http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
    let once = Once::send(stand.port, stand.pki.roots()?, asking(&stand, Some(&token), PATH)?).await?;
    ensure!(once.answer.status() == 503, "{:?}", once.answer);
    stand.passed();
    Ok(())
}
