//! Who has no good token gets 401 and nothing reaches the upstream: its own log proves it.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::http::{Http, empty, request};
use postern_tests::issuer::{Issuer, Login, OPAQUE_RESOURCE, OTHER_RESOURCE, forge};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};

/// Every bad token, by name.
async fn bad_tokens(stand: &Stand) -> Result<Vec<(&'static str, String)>> {
    let issuer = &stand.issuer;
    let good = issuer.login(&Login::of("ada")).await?;
    let access = &good.access;
    let foreign = Issuer::start(stand.dir(), &stand.pki, &stand.url).await?;
    let header =
        |name: &'static str, value: Value| move |header: &mut Value, _: &mut Value| header[name] = value;
    let kid = |_: &mut Value, _: &mut Value| ();
    let later = |claims: &mut Value| claims["exp"] = json!(claims["exp"].as_u64().unwrap_or_default() + 3600);
    let own_iss = json!(foreign.iss());
    issuer.access_ttl(Duration::from_secs(1)).await?;
    let expired = issuer.token("ada").await?;
    issuer.access_ttl(Duration::from_mins(5)).await?;
    let exp = forge::decode(&expired)?.1["exp"].as_u64().unwrap_or_default();
    wait::until("the token expires", wait::SOON, async || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
        (now > exp).then_some(())
    })
    .await?;
    let jwk = issuer.jwks().await?["keys"][0].clone();
    Ok(vec![
        ("other-audience", issuer.login(&Login::of("ada").resource(OTHER_RESOURCE)).await?.access),
        ("other-issuer", foreign.token("ada").await?),
        ("other-issuer-name", forge::by_stranger(access, move |_, claims| claims["iss"] = own_iss)?),
        ("expired", expired),
        ("unsigned", forge::unsigned(access)?),
        ("hmac-with-public-key", forge::hmac_with_public_key(access, &issuer.jwks().await?)?),
        ("id-token", good.id.unwrap_or_default()),
        ("opaque", issuer.login(&Login::of("ada").resource(OPAQUE_RESOURCE)).await?.access),
        ("strangers-key", forge::by_stranger(access, kid)?),
        ("embedded-jwk", forge::by_stranger(access, header("jwk", jwk))?),
        ("jku", forge::by_stranger(access, header("jku", json!(format!("{}/jwks", foreign.iss()))))?),
        ("crit", forge::by_stranger(access, header("crit", json!(["exp"])))?),
        ("unknown-kid", forge::by_stranger(access, header("kid", json!("nobody")))?),
        ("tampered", forge::tampered(access, |claims| claims["sub"] = json!("root"))?),
        ("prolonged", forge::tampered(access, later)?),
        ("cut", access[..access.len() - 1].to_owned()),
        ("garbage", "a.b.c".to_owned()),
        ("empty-parts", "..".to_owned()),
    ])
}

#[tokio::test]
async fn without_a_good_token_nothing_reaches_the_upstream() -> Result<()> {
    let stand = Stand::start_with(Extra {
        issuer: "leeway = \"0s\"".to_owned(),
        limits: "failed_auth = \"1000/s per address\"".to_owned(),
        ..Extra::default()
    })
    .await?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    say("no token: a bare challenge that says where to learn more");
    for http in [&stand.http, &h2] {
        let none = http.get(&stand.at("/billing/v1/invoices/none"), None).await?.expect_status(401)?;
        let challenge = none.header("www-authenticate").to_owned();
        ensure!(challenge.starts_with("Bearer "), "{challenge}");
        ensure!(!challenge.contains("error="), "{challenge}");
        ensure!(none.header("content-type") == "application/problem+json", "{:?}", none.headers);
        let problem = none.json()?;
        for field in ["type", "title", "status", "detail", "request_id"] {
            ensure!(!problem[field].is_null(), "no {field} in {problem}");
        }
        let address = challenge.split("resource_metadata=\"").nth(1).and_then(|rest| rest.split('"').next());
        let address = address.unwrap_or_default();
        let metadata = http.get(address, None).await?.expect_status(200)?.json()?;
        // RFC 9728, 3.3: the resource is what the well-known part was put into.
        let resource = address.replace("/.well-known/oauth-protected-resource", "");
        ensure!(resource.starts_with(&stand.url) && metadata["resource"] == resource, "{metadata}");
        ensure!(metadata["authorization_servers"] == json!([stand.issuer.iss()]), "{metadata}");
    }
    let unknown = stand.http.get(&stand.at("/nowhere/at/all"), None).await?.expect_status(401)?;
    ensure!(unknown.json()?["title"].is_string(), "an unknown service looks different without a token");

    for (name, token) in bad_tokens(&stand).await? {
        let answer = stand.http.get(&stand.at(&format!("/billing/v1/invoices/{name}")), Some(&token)).await?;
        let challenge = answer.header("www-authenticate");
        say(&format!("{name}: {} {challenge}", answer.status));
        ensure!(answer.status == 401, "{name}: {} {}", answer.status, answer.text());
        ensure!(challenge.contains("error=\"invalid_token\""), "{name}: {challenge}");
        ensure!(challenge.contains("resource_metadata="), "{name}: {challenge}");
    }

    say("tokens anywhere but in Authorization, or more than one");
    let good = stand.issuer.token("ada").await?;
    let url = stand.at("/billing/v1/invoices/twice");
    let twice = request("GET", &url, Some(&good)).header("authorization", format!("Bearer {good}"));
    stand.http.send(twice.body(empty())?).await?.expect_status(400)?;
    stand.http.get(&format!("{url}?access_token={good}"), None).await?.expect_status(400)?;
    let basic = request("GET", &url, None).header("authorization", "Basic YWRhOmFkYQ==");
    stand.http.send(basic.body(empty())?).await?.expect_status(401)?;
    let cookie = request("GET", &url, None).header("cookie", format!("access_token={good}"));
    stand.http.send(cookie.body(empty())?).await?.expect_status(401)?;
    let long = format!("{good}{}", "a".repeat(9000));
    let refused = stand.http.get(&url, Some(&long)).await?;
    ensure!(refused.status.is_client_error(), "{}", refused.status);

    say("good tokens, of every algorithm, do reach it");
    let algorithm = |path: &str| Login::of("ada").resource(&format!("{}/{path}", stand.url));
    let rs256 = stand.issuer.login(&algorithm("rs256")).await?.access;
    let eddsa = stand.issuer.login(&algorithm("eddsa")).await?.access;
    let mut expected = Vec::new();
    for (name, token) in [("es256", &good), ("rs256", &rs256), ("eddsa", &eddsa)] {
        let path = format!("/v1/invoices/{name}");
        stand.http.get(&stand.at(&format!("/billing{path}")), Some(token)).await?.expect_status(200)?;
        stand.nginx.wait_seen(&path).await?;
        expected.push(json!(path));
    }
    let lower = request("GET", &stand.at("/billing/v1/invoices/lower"), None);
    let lower = lower.header("authorization", format!("bearer {good}"));
    stand.http.send(lower.body(empty())?).await?.expect_status(200)?;
    stand.nginx.wait_seen("/v1/invoices/lower").await?;
    expected.push(json!("/v1/invoices/lower"));
    let seen: Vec<Value> = stand.nginx.seen().iter().map(|line| line["uri"].clone()).collect();
    ensure!(seen == expected, "nginx saw {seen:?}");
    stand.passed();
    Ok(())
}

const PLACES: &str = r#"
[services.plain]
agent = "dc1"
rules = [{ allow = "*", to = "GET /**" }]

[services.app]
agent = "dc1"
cors = { origins = ["https://app.example.com"] }
rules = [{ allow = "*", to = "GET /**" }]

[services.whole]
agent = "dc1"
strip_prefix = false
rules = [{ allow = "*", to = "GET /**" }]

[services.deep]
agent = "dc1"
path = "/deep/down"
rules = [{ allow = "*", to = "GET /**" }]

[services.secret]
agent = "dc1"
hidden = true
audience = ["https://secret.example.com"]
rules = [{ allow = "*", to = "GET /**" }]

[services.apart]
agent = "dc1"
audience = ["https://apart.example.com"]
rules = [{ allow = "*", to = "GET /**" }]
"#;

/// An answer without what is its own: ids, times, and the place that was asked for.
async fn look(stand: &Stand, place: &str, token: Option<&str>, origin: Option<&str>) -> Result<String> {
    let builder = request("GET", &stand.at(&format!("/{place}/down/x")), token);
    let builder = origin.into_iter().fold(builder, |builder, origin| builder.header("origin", origin));
    let answer = stand.http.send(builder.body(empty())?).await?;
    let mut fields: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .map(|field| field.replace(&format!("/{place}\""), "/PLACE\""))
        .collect();
    fields.sort();
    let mut problem = answer.json()?;
    for own in ["request_id", "decision_id"] {
        problem[own] = Value::Null;
    }
    Ok(format!("{} {fields:#?} {problem:#}", answer.status))
}

#[tokio::test]
async fn what_is_there_looks_like_what_is_not() -> Result<()> {
    let stand = Stand::start_with(Extra {
        tables: PLACES.to_owned(),
        limits: "failed_auth = \"1000/s per address\"".to_owned(),
        ..Extra::default()
    })
    .await?;
    let places = ["plain", "app", "whole", "deep", "secret", "apart"];
    for token in [None, Some("junk"), Some("a.b.c")] {
        for origin in [None, Some("https://evil.example.com")] {
            let nowhere = look(&stand, "nowhere", token, origin).await?;
            ensure!(nowhere.starts_with("401") && nowhere.contains("/PLACE"), "{nowhere}");
            for place in places {
                let there = look(&stand, place, token, origin).await?;
                ensure!(there == nowhere, "{place}: {there}\nnowhere: {nowhere}");
            }
        }
    }

    say("with a good token of the relay's audience");
    let ada = stand.issuer.token("ada").await?;
    let nowhere = look(&stand, "nowhere", Some(&ada), None).await?;
    ensure!(nowhere.starts_with("404"), "{nowhere}");
    let secret = look(&stand, "secret", Some(&ada), None).await?;
    ensure!(secret == nowhere, "{secret}\nnowhere: {nowhere}");
    let apart = look(&stand, "apart", Some(&ada), None).await?;
    ensure!(apart.starts_with("401") && apart.contains("not meant for this audience"), "{apart}");

    say("and locked");
    let lock = ["lock", "add", "--user", "ada", "--reason", "x"];
    stand.relay_command(&lock).await?.expect_code(0)?;
    let nowhere = look(&stand, "nowhere", Some(&ada), None).await?;
    ensure!(nowhere.starts_with("401") && nowhere.contains("locked"), "{nowhere}");
    let secret = look(&stand, "secret", Some(&ada), None).await?;
    ensure!(secret == nowhere, "{secret}\nnowhere: {nowhere}");
    stand.passed();
    Ok(())
}
