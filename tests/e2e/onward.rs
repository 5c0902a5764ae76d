//! What goes on to an upstream beside the request: who calls, in the relay's words alone, and the caller's token where, and in the form
//! in which, `caller_token` says so. Seen at the upstream.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use postern_tests::http::{Answer, empty, request};
use postern_tests::issuer::{Issuer, Login, OTHER_RESOURCE, ProofKey, forge};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Seen;
use postern_tests::wait;

/// A resource of the issuer's that only one service takes.
const OWN: &str = OTHER_RESOURCE;
const EXCHANGE_GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The relay's client at the issuer, and the file with its secret.
fn exchange() -> Result<(tempfile::NamedTempFile, String)> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(b"relay-exchange-secret\n")?;
    let path = file.path().display();
    let key =
        format!(r#"exchange = {{ client_id = "relay-exchange", client_secret = {{ file = "{path}" }} }}"#);
    Ok((file, key))
}

fn service(name: &str, keys: &str) -> String {
    format!("[services.{name}]\nagent = \"dc1\"\nrules = [{{ allow = \"*\", to = \"* /**\" }}]\n{keys}\n")
}

async fn stand(issuer: &str, services: &[(&str, &str)]) -> Result<Stand> {
    let tables = services.iter().map(|(name, keys)| service(name, keys)).collect();
    let upstreams = services.iter().map(|(name, _)| format!("[services.{name}]\nupstream = \"{{echo}}\"\n"));
    let extra =
        Extra { issuer: issuer.to_owned(), tables, agent_tables: upstreams.collect(), ..Extra::default() };
    Stand::start_with(extra).await
}

/// The one request whose target has `marker`.
fn seen(stand: &Stand, marker: &str) -> Result<Seen> {
    let mut seen = stand.echo.seen_with(marker);
    ensure!(seen.len() == 1, "{} requests with {marker}", seen.len());
    Ok(seen.remove(0))
}

async fn own_token(issuer: &Issuer) -> Result<String> {
    Ok(issuer.login(&Login::of("ada").resource(OWN)).await?.access)
}

#[tokio::test]
async fn a_token_goes_no_further_than_it_is_told() -> Result<()> {
    let own = format!("audience = [\"{OWN}\"]");
    let upstream = format!("caller_token = \"upstream\"\n{own}");
    let agent = "caller_token = \"agent\"\naudience = [\"https://agent.example.com\"]";
    let mut stand = stand("", &[("plain", ""), ("passed", &upstream), ("agents", agent)]).await?;
    say("an agent that will not look at the token is named");
    let warning = "WARN the caller's token goes to an agent that does not look at it";
    let line = stand.relay()?.wait_line(warning, wait::SOON).await?;
    ensure!(line.contains("service=agents") && line.contains("agent=dc1"), "{line}");
    let ada = stand.issuer.token("ada").await?;

    stand.http.get(&stand.at("/plain/none"), Some(&ada)).await?.expect_status(200)?;
    let plain = seen(&stand, "/none")?;
    ensure!(plain.header("authorization").is_empty() && plain.header("dpop").is_empty(), "{plain:?}");

    say("a token for another audience is refused, and does not arrive");
    stand.http.get(&stand.at("/passed/foreign"), Some(&ada)).await?.expect_status(401)?;
    stand.http.get(&stand.at("/agents/foreign"), Some(&ada)).await?.expect_status(401)?;
    ensure!(stand.echo.seen_with("/foreign").is_empty());

    let token = own_token(&stand.issuer).await?;
    stand.http.get(&stand.at("/passed/bearer"), Some(&token)).await?.expect_status(200)?;
    let passed = seen(&stand, "/bearer")?;
    ensure!(passed.header("authorization") == format!("Bearer {token}"), "{passed:?}");

    say("a bound token stays one: its scheme and its proof go with it");
    let key = ProofKey::generate()?;
    let bound = stand.issuer.login_bound(&Login::of("ada").resource(OWN), &key).await?.access;
    let url = stand.at("/passed/bound");
    let send = async |nonce: Option<&str>| -> Result<(Answer, String)> {
        let proof = key.proof("GET", &url, Some(&bound), nonce)?;
        let asked = request("GET", &url, None)
            .header("authorization", format!("DPoP {bound}"))
            .header("dpop", &proof)
            .body(empty())?;
        Ok((stand.http.send(asked).await?, proof))
    };
    let (mut answer, mut proof) = send(None).await?;
    if answer.status == 401 {
        let nonce = answer.header("dpop-nonce").to_owned();
        (answer, proof) = send(Some(&nonce)).await?;
    }
    answer.expect_status(200)?;
    let arrived = seen(&stand, "/bound")?;
    ensure!(arrived.header("authorization") == format!("DPoP {bound}"), "{arrived:?}");
    ensure!(arrived.header("dpop") == proof, "{arrived:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_upstream_gets_a_token_of_its_own_in_exchange() -> Result<()> {
    let other = format!("caller_token = \"exchange\"\nexchange = {{ resource = \"{OTHER_RESOURCE}\" }}");
    let (_secret, exchange) = exchange()?;
    let nowhere = "caller_token = \"exchange\"\nexchange = { audience = \"https://nowhere.example.com\" }";
    let stand = stand(&exchange, &[("swap", &other), ("nowhere", nowhere)]).await?;
    let ada = stand.issuer.token("ada").await?;
    let hits = async || stand.issuer.grant_hits(EXCHANGE_GRANT).await;

    say("many at once ask the issuer once");
    let (swap, nowhere_url) = (stand.at("/swap/together"), stand.at("/nowhere/x"));
    let together = (0..20).map(|_| stand.http.get(&swap, Some(&ada)));
    for answer in futures_util::future::try_join_all(together).await? {
        answer.expect_status(200)?;
    }
    ensure!(hits().await? == 1, "{} exchanges", hits().await?);
    let arrived = stand.echo.seen_with("/together");
    let fields: std::collections::BTreeSet<String> =
        arrived.iter().map(|seen| seen.header("authorization")).collect();
    ensure!(arrived.len() == 20 && fields.len() == 1, "{fields:?}");
    let field = fields.first().context("none")?;
    let (_, claims) = forge::decode(field.strip_prefix("Bearer ").context("no bearer token")?)?;
    ensure!(claims["aud"] == OTHER_RESOURCE && claims["sub"] == "ada", "{claims}");
    ensure!(!field.contains(&ada), "the caller's own token arrived");

    say("another token is another exchange, and another caller's is not its");
    let bob = stand.issuer.token("bob").await?;
    stand.http.get(&stand.at("/swap/bob"), Some(&bob)).await?.expect_status(200)?;
    let theirs = seen(&stand, "/bob")?.header("authorization");
    ensure!(theirs != *field && forge::decode(&theirs[7..])?.1["sub"] == "bob", "{theirs}");
    ensure!(hits().await? == 2);

    say("what the issuer does not give is 502, and it is not asked with every request");
    for _ in 0..5 {
        let refused = stand.http.get(&nowhere_url, Some(&ada)).await?.expect_status(502)?;
        let problem = refused.json()?;
        ensure!(problem["type"] == "urn:postern:not-exchanged", "{problem}");
        ensure!(problem["detail"].as_str().is_some_and(|text| text.contains("invalid_target")), "{problem}");
        ensure!(refused.header("proxy-status").starts_with("relay"), "{:?}", refused.headers);
    }
    ensure!(hits().await? <= 4, "{} exchanges", hits().await?);

    say("an issuer that fails or is silent is 503; what was exchanged serves on");
    let late = stand.issuer.login(&Login::of("ada")).await?.access;
    for (status, delay) in [(500, Duration::ZERO), (0, Duration::from_secs(8))] {
        stand.issuer.fault("/token", status, delay, 100).await?;
        let begun = std::time::Instant::now();
        let refused = stand.http.get(&stand.at("/swap/late"), Some(&late)).await?.expect_status(503)?;
        ensure!(refused.json()?["type"] == "urn:postern:exchange-unavailable", "{}", refused.text());
        ensure!(!refused.header("retry-after").is_empty() && begun.elapsed() < Duration::from_secs(8));
        stand.http.get(&stand.at("/swap/kept"), Some(&ada)).await?.expect_status(200)?;
    }
    stand.issuer.fault("/token", 0, Duration::ZERO, 0).await?;
    stand.wait_status("/swap/again", &late, 200, Duration::from_secs(10)).await?;
    ensure!(stand.echo.seen_with("/late").is_empty() && stand.echo.seen_with("/nowhere").is_empty());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_exchanged_token_is_used_until_it_ends() -> Result<()> {
    let other = format!("caller_token = \"exchange\"\nexchange = {{ resource = \"{OTHER_RESOURCE}\" }}");
    let (_secret, exchange) = exchange()?;
    let stand = stand(&exchange, &[("swap", &other)]).await?;
    let ada = stand.issuer.token("ada").await?;
    stand.issuer.access_ttl(Duration::from_secs(6)).await?;
    let begun = std::time::Instant::now();
    let mut calls = 0;
    while stand.issuer.grant_hits(EXCHANGE_GRANT).await? < 3 {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the exchanged token was kept too long");
        stand.http.get(&stand.at(&format!("/swap/n{calls}")), Some(&ada)).await?.expect_status(200)?;
        let arrived = seen(&stand, &format!("/n{calls}"))?.header("authorization");
        let exp = forge::decode(&arrived[7..])?.1["exp"].as_u64().context("no exp")?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        ensure!(now < exp, "a token that was past arrived");
        calls += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(calls > 10, "{calls} calls for 3 exchanges");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn claims_go_where_send_says_and_nobody_says_them_himself() -> Result<()> {
    let send = "send = { user = \"X-Remote-User\", roles = \"X-Remote-Roles\", \
                claims = { \"X-Department\" = \"department\", \"X-Groups\" = \"groups\", \"X-Nothing\" = \"a.b\" } }\n\
                strip_request = [\"X-Internal\"]";
    let stand = stand("", &[("sent", send)]).await?;
    let spoofed = [
        "x-department",
        "X_Department",
        "X-GROUPS",
        "x-nothing",
        "X_Remote_User",
        "x-remote_roles",
        "x_internal",
    ];
    for (user, department, groups, roles) in [("ada", "finance", "finance", "clerk"), ("bob", "", "", "")] {
        let token = stand.issuer.token(user).await?;
        let mut asked = request("POST", &stand.at(&format!("/sent/{user}")), Some(&token));
        for name in spoofed {
            asked = asked.header(name, "spoofed").header(name, "twice");
        }
        let mut trailers = http::HeaderMap::new();
        for name in spoofed {
            trailers.insert(name.to_ascii_lowercase().parse::<http::HeaderName>()?, "spoofed".parse()?);
        }
        trailers.insert("x-checksum", "abc".parse()?);
        let frames = [
            Ok(http_body::Frame::data(bytes::Bytes::from_static(b"body"))),
            Ok(http_body::Frame::trailers(trailers)),
        ];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let body = http_body_util::BodyExt::boxed_unsync(body);
        let named = format!("{}, x-checksum", spoofed.join(", "));
        let answer = stand.http.send(asked.header("trailer", named).body(body)?).await?.expect_status(200)?;
        ensure!(!answer.text().contains("spoofed"), "{user}: {}", answer.text());
        let seen = seen(&stand, &format!("/{user}"))?;
        ensure!(seen.method == Method::POST.as_str());
        let expected = [
            ("x-department", department),
            ("x-groups", groups),
            ("x-nothing", ""),
            ("x-remote-user", user),
            ("x-remote-roles", roles),
            ("x-internal", ""),
        ];
        for (name, value) in expected {
            ensure!(seen.header(name) == value, "{user}: {name} is {:?}", seen.header(name));
        }
        ensure!(!seen.headers.iter().any(|(name, _)| name.as_str().contains('_')), "{:?}", seen.headers);
        ensure!(!seen.headers.contains_key("x-nothing"), "an absent claim has a field");
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_by_config_check() -> Result<()> {
    let stand = stand("", &[("plain", "")]).await?;
    let first = "[services.plain]\nagent = \"dc1\"";
    let mut before = first.to_owned();
    for (keys, problem) in [
        ("caller_token = \"upstream\"", "an audience of its own"),
        ("caller_token = \"agent\"\naudience = [\"{url}\"]", "that of issuer corp too"),
        ("caller_token = \"exchange\"", "add exchange ="),
        ("cors = { origins = [\"*\"] }", "write an origin"),
        ("send = { claims = { \"X-Postern-Subject\" = \"a\" } }", "sets or removes that field itself"),
    ] {
        let after = format!("{first}\n{}", keys.replace("{url}", &stand.url));
        stand.edit("relay.toml", &before, &after)?;
        let refused = stand.relay_command(&["config", "check"]).await?;
        ensure!(refused.code == 3 && refused.stderr.contains(problem), "{keys}: {refused:?}");
        before = after;
    }
    stand.edit("relay.toml", &before, first)?;
    let own = format!("issuer = \"{}\"", stand.issuer.iss());
    stand.edit("relay.toml", &own, &format!("issuer = \"{}\"", stand.url))?;
    let refused = stand.relay_command(&["config", "check"]).await?;
    ensure!(refused.code == 3 && refused.stderr.contains("this relay itself"), "{refused:?}");
    stand.passed();
    Ok(())
}
