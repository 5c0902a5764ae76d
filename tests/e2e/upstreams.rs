//! Upstreams of every kind that agent.toml knows are reached as it says, one of several addresses may die without a caller noticing, and
//! a service that fails its checks is not offered until it works again. Against a real nginx.

mod exchange;

use anyhow::{Result, ensure};
use postern_tests::http::switch::Once;
use postern_tests::http::{Answer, Http, full, request};
use postern_tests::pki::Pki;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::{Kinds, LARGE};
use postern_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The relay allows everything everywhere.
fn service(name: &str) -> String {
    format!("[services.{name}]\nagent = \"dc1\"\nrules = [{{ allow = \"*\", to = \"* /**\" }}]\n")
}

/// A stand with these services, each with its part of agent.toml.
async fn stand_with(services: &[(&str, String)]) -> Result<Stand> {
    let mut extra = Extra::default();
    for (name, table) in services {
        extra.tables += &service(name);
        extra.agent_tables.extend(["[services.", name, "]\n", table, "\n"]);
    }
    Stand::start_with(extra).await
}

/// A problem document from this hop that names none of the upstream's secrets.
fn expect_failure(answer: Answer, status: u16, kind: &str, secrets: &[&str]) -> Result<()> {
    let answer = answer.expect_status(status)?;
    let problem = answer.json()?;
    ensure!(problem["type"] == format!("urn:postern:{kind}"), "{problem}");
    let text = format!("{problem}{:?}", answer.headers);
    for secret in secrets {
        ensure!(!text.contains(secret), "names {secret}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn every_kind_of_upstream_is_reached_as_the_file_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let nginx = Kinds::start(dir.path(), "kinds", &pki).await?;
    let ca = format!("ca = \"{}\"", pki.ca_file().display());
    let own = format!("cert = \"{}\", key = \"{}\"", nginx.client.cert.display(), nginx.client.key.display());
    let named = "server_name = \"billing.corp\"";
    let (https, tls12, h2) = (nginx.https, nginx.tls12, nginx.h2);
    let upstream = |url: String, tls: &str| format!("upstream = \"{url}\"\ntls = {{ {tls} }}");
    let secure = |tls: &str| upstream(format!("https://127.0.0.1:{https}"), tls);
    let foreign_dir = tempfile::tempdir()?;
    let foreign = Pki::create(foreign_dir.path())?;
    let services = [
        ("plain", format!("upstream = \"http://localhost:{}\"", nginx.http)),
        ("secure", secure(&format!("{ca}, {named}, {own}, min_version = \"1.3\""))),
        ("nameless", secure(&format!("{ca}, {named}"))),
        ("wrongname", secure(&format!("{ca}, server_name = \"other.corp\", {own}"))),
        ("foreign", secure(&format!("ca = \"{}\", {own}", foreign.ca_file().display()))),
        ("old", upstream(format!("https://127.0.0.1:{tls12}"), &ca)),
        ("tooold", upstream(format!("https://127.0.0.1:{tls12}"), &format!("{ca}, min_version = \"1.3\""))),
        ("h2c", format!("upstream = \"h2c://127.0.0.1:{}\"", nginx.h2c)),
        ("h2", upstream(format!("h2://127.0.0.1:{h2}"), &ca)),
        ("noth2", upstream(format!("h2://127.0.0.1:{https}"), &format!("{ca}, {own}"))),
        ("socket", format!("upstream = \"unix:{}\"", nginx.unix.display())),
    ];
    let stand = stand_with(&services).await?;
    let token = stand.issuer.token("ada").await?;
    let h2_caller = Http::h2(stand.pki.roots()?)?;
    for (caller, http) in [("h1", &stand.http), ("h2", &h2_caller)] {
        for (name, way, protocol, tls) in [
            ("plain", "plain", "HTTP/1.1", ""),
            ("secure", "secure", "HTTP/1.1", "TLSv1.3"),
            ("old", "old", "HTTP/1.1", "TLSv1.2"),
            ("h2c", "h2c", "HTTP/2.0", ""),
            ("h2", "h2", "HTTP/2.0", "TLSv1.3"),
            ("socket", "unix", "HTTP/1.1", ""),
        ] {
            say(name);
            let mark = format!("/{name}-{caller}");
            let answer = http.get(&stand.at(&format!("/{name}{mark}")), Some(&token)).await?;
            ensure!(answer.expect_status(200)?.json()?["way"] == way);
            let line = nginx.wait_seen(&mark).await?;
            ensure!(line["protocol"] == protocol && line["tls"] == tls && line["method"] == "GET", "{line}");
            ensure!(line["host"] == format!("127.0.0.1:{}", stand.port), "the caller's Host: {line}");
            ensure!((line["client"] == "SUCCESS") == (name == "secure"), "{line}");
            let large = http.get(&stand.at(&format!("/{name}/large")), Some(&token)).await?;
            ensure!(large.expect_status(200)?.body.len() == LARGE);
            let part = request("GET", &stand.at(&format!("/{name}/large")), Some(&token));
            let part = http.send(part.header("range", "bytes=10-14").body(full(""))?).await?;
            ensure!(part.expect_status(206)?.body == "xxxxx");
            let head = http.call("HEAD", &stand.at(&format!("/{name}/large")), Some(&token)).await?;
            ensure!(head.header("content-length") == LARGE.to_string(), "{:?}", head.headers);
            let upload = request("POST", &stand.at(&format!("/{name}/upload?{caller}-{name}")), Some(&token));
            http.send(upload.body(full(vec![b'u'; 1 << 20]))?).await?.expect_status(200)?;
            let line = nginx.wait_seen(&format!("/upload?{caller}-{name}")).await?;
            let length = line["length"].as_str().and_then(|length| length.parse::<usize>().ok());
            ensure!(length.is_some_and(|length| length >= 1 << 20), "{line}");
        }
        say("refused by TLS");
        for name in ["wrongname", "foreign", "tooold", "noth2"] {
            let answer = http.get(&stand.at(&format!("/{name}/x")), Some(&token)).await?;
            expect_failure(answer, 502, "upstream-tls", &[".corp", &https.to_string(), &tls12.to_string()])?;
        }
        let answer = http.get(&stand.at("/nameless/x"), Some(&token)).await?;
        ensure!(answer.expect_status(400)?.text().contains("No required SSL certificate was sent"));
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn secrets_and_host_are_the_agents_own() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let nginx = Kinds::start(dir.path(), "kinds", &pki).await?;
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "open-sesame\n")?;
    let table = |url: String| {
        format!(
            "upstream = \"{url}\"\nhost = \"billing.corp\"\n\
             inject = {{ X-Api-Key = {{ file = \"{}\" }}, X-Home = {{ env = \"HOME\" }} }}",
            secret.display()
        )
    };
    let services = [
        ("one", table(format!("http://127.0.0.1:{}", nginx.http))),
        ("two", table(format!("h2c://127.0.0.1:{}", nginx.h2c))),
    ];
    let mut stand = stand_with(&services).await?;
    let token = stand.issuer.token("ada").await?;
    let home = std::env::var("HOME")?;
    for name in ["one", "two"] {
        let forged = request("GET", &stand.at(&format!("/{name}/forged")), Some(&token))
            .header("x-api-key", "forged")
            .header("x_api_key", "forged")
            .header("x-api_key", "forged");
        let answer = stand.http.send(forged.body(full(""))?).await?.expect_status(200)?;
        ensure!(!format!("{:?}{}", answer.headers, answer.text()).contains("sesame"), "{answer:?}");
        let line = nginx.wait_seen("/forged").await?;
        ensure!(line["api_key"] == "open-sesame" && line["home"] == home, "{line}");
        ensure!(line["host"] == "billing.corp", "{line}");
        let moved = stand.http.get(&stand.at(&format!("/{name}/moved")), Some(&token)).await?;
        let moved = moved.expect_status(302)?;
        ensure!(!moved.header("location").contains("corp"), "{:?}", moved.headers);
        ensure!(moved.header("location").ends_with(&format!("/{name}/elsewhere")), "{:?}", moved.headers);
    }
    ensure!(!stand.agent()?.log_text().contains("sesame"), "the agent logged a secret");
    ensure!(!stand.relay()?.log_text().contains("sesame"), "the relay saw a secret");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn one_of_several_addresses_may_die_and_come_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let mut a = Kinds::start(dir.path(), "a", &pki).await?;
    let b = Kinds::start(dir.path(), "b", &pki).await?;
    let services = [
        ("http", format!("upstream = [\"http://127.0.0.1:{}\", \"http://127.0.0.1:{}\"]", a.http, b.http)),
        ("grpc", format!("upstream = [\"h2c://127.0.0.1:{}\", \"h2c://127.0.0.1:{}\"]", a.h2c, b.h2c)),
    ];
    let stand = stand_with(&services).await?;
    let token = stand.issuer.token("ada").await?;
    let ask = async |service: &str, method: &str| -> Result<String> {
        let ask = request(method, &stand.at(&format!("/{service}/x")), Some(&token));
        let answer = stand.http.send(ask.body(full("x".repeat(100)))?).await?.expect_status(200)?;
        Ok(answer.json()?["from"].as_str().unwrap_or_default().to_owned())
    };
    let counts = async |rounds: usize| -> Result<[usize; 2]> {
        let mut counts = [0, 0];
        for round in 0..rounds {
            for service in ["http", "grpc"] {
                let method = if round % 2 == 0 { "GET" } else { "POST" };
                counts[usize::from(ask(service, method).await? == "b")] += 1;
            }
        }
        Ok(counts)
    };
    let [from_a, from_b] = counts(20).await?;
    ensure!(from_a >= 10 && from_b >= 10, "spread: {from_a} and {from_b}");
    a.die().await?;
    let [from_a, from_b] = counts(20).await?;
    ensure!(from_a == 0 && from_b == 40, "one is dead: {from_a} and {from_b}");
    a.come_back().await?;
    for service in ["http", "grpc"] {
        wait::until("the other one serves again", wait::SOON, async || {
            ask(service, "GET").await.ok().filter(|from| from == "a").map(drop)
        })
        .await?;
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_service_that_fails_its_checks_is_not_offered() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let mut nginx = Kinds::start(dir.path(), "kinds", &pki).await?;
    let health = "health = { path = \"/ping\", every = \"100ms\", unhealthy_after = 2 }";
    let services = [
        ("checked", format!("upstream = \"http://127.0.0.1:{}\"\n{health}", nginx.http)),
        ("checked2", format!("upstream = \"h2c://127.0.0.1:{}\"\n{health}", nginx.h2c)),
        ("unchecked", format!("upstream = \"http://127.0.0.1:{}\"", nginx.http)),
    ];
    let stand = stand_with(&services).await?;
    let token = stand.issuer.token("ada").await?;
    for path in ["/checked/x", "/checked2/x", "/unchecked/x"] {
        stand.wait_status(path, &token, 200, wait::SOON).await?;
    }
    nginx.be_ill(true)?;
    for path in ["/checked/x", "/checked2/x"] {
        stand.wait_status(path, &token, 503, wait::SOON).await?;
        let answer = stand.http.get(&stand.at(path), Some(&token)).await?.expect_status(503)?;
        ensure!(!answer.header("retry-after").is_empty(), "{:?}", answer.headers);
    }
    stand.http.get(&stand.at("/unchecked/x"), Some(&token)).await?.expect_status(200)?;
    nginx.be_ill(false)?;
    for path in ["/checked/x", "/checked2/x"] {
        stand.wait_status(path, &token, 200, wait::SOON).await?;
    }
    say("dead, not ill");
    nginx.die().await?;
    stand.wait_status("/checked/x", &token, 503, wait::SOON).await?;
    nginx.come_back().await?;
    stand.wait_status("/checked/x", &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn tcp_services_have_addresses_and_checks_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let mut a = Kinds::start(dir.path(), "a", &pki).await?;
    let mut b = Kinds::start(dir.path(), "b", &pki).await?;
    let upstream = format!("upstream = [\"tcp://127.0.0.1:{}\", \"tcp://127.0.0.1:{}\"]", a.http, b.http);
    let extra = Extra {
        tables: "[services.web]\nkind = \"tcp\"\nagent = \"dc1\"\n\
                 rules = [{ allow = \"*\", to = \"CONNECT\" }]\n"
            .to_owned(),
        agent_tables: format!(
            "[services.web]\n{upstream}\nhealth = {{ every = \"100ms\", unhealthy_after = 1 }}\n"
        ),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let ask = async || -> Result<String> {
        let wish = request("GET", "/.postern/tcp/web", Some(&token))
            .header("host", format!("127.0.0.1:{}", stand.port))
            .header("connection", "Upgrade")
            .header("upgrade", "postern-tcp");
        let answer = Once::send(stand.port, stand.pki.roots()?, wish.body(full(""))?).await?;
        if answer.answer.status() != 101 {
            return Ok(answer.answer.status().as_str().to_owned());
        }
        let (mut stream, mut said) = (answer.stream().await?, String::new());
        stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").await?;
        stream.read_to_string(&mut said).await?;
        Ok(if said.contains("\"from\":\"a\"") { "a".to_owned() } else { said })
    };
    let seen = [ask().await?, ask().await?];
    ensure!(seen.iter().any(|from| from == "a") && seen.iter().any(|from| from != "a"), "{seen:?}");
    b.die().await?;
    for _ in 0..10 {
        ensure!(ask().await? == "a");
    }
    a.die().await?;
    wait::until("nobody is left", wait::SOON, async || ask().await.ok().filter(|s| s == "503")).await?;
    a.come_back().await?;
    wait::until("one is back", wait::SOON, async || ask().await.ok().filter(|s| s == "a")).await?;
    stand.passed();
    Ok(())
}
