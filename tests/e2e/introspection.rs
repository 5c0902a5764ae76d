//! Opaque tokens: the relay asks their issuer about them (RFC 7662), each time anew when what it was told is no longer believed, and lets
//! nobody in while the issuer does not say.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use postern_tests::http::{Http, empty, request};
use postern_tests::issuer::{Login, Machine, ProofKey};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

const PATH: &str = "/billing/v1/invoices/7";
const ASKED: &str = "/token/introspection";

/// A stand whose issuer is asked about tokens that are no JWTs. Machines' opaque tokens have no subject but their client.
async fn stand(check: &str, introspect: &str) -> Result<Stand> {
    let issuer = format!(
        "check = \"{check}\"\nsubject_from = [\"sub\", \"client_id\"]\nintrospect = {{ {introspect} }}"
    );
    let extra =
        Extra { issuer, limits: "failed_auth = \"10000/s per address\"".to_owned(), ..Extra::default() };
    Stand::start_with(extra).await
}

fn as_relay(more: &str) -> String {
    format!("client_id = \"relay\", client_secret = {{ file = \"relay.secret\" }}{more}")
}

async fn opaque(stand: &Stand, user: &str) -> Result<String> {
    let resource = format!("{}/opaque", stand.url);
    Ok(stand.issuer.login(&Login::of(user).resource(&resource)).await?.access)
}

async fn asked(stand: &Stand) -> Result<u64> {
    stand.issuer.path_hits(ASKED).await
}

/// Without plain word from the issuer: 503, which says when to come again, and nothing of why to the caller.
async fn shut(stand: &Stand, token: &str) -> Result<Duration> {
    let start = Instant::now();
    let answer = stand.http.get(&stand.at(PATH), Some(token)).await?.expect_status(503)?;
    let problem: Value = answer.json()?;
    let detail = problem["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("corp cannot be asked") && !detail.contains("127.0.0.1"), "{problem}");
    ensure!(!answer.header("retry-after").is_empty(), "{:?}", answer.headers);
    Ok(start.elapsed())
}

#[tokio::test]
async fn opaque_tokens_pass_until_they_are_revoked() -> Result<()> {
    let stand = stand("auto", &as_relay(", cache = \"2s\", negative = \"2s\"")).await?;
    let url = stand.at(PATH);

    say("an opaque token and a JWT of the same person: the issuer is asked about the one alone");
    let token = opaque(&stand, "ada").await?;
    let jwt = stand.issuer.token("ada").await?;
    for token in [&jwt, &token, &token, &jwt] {
        stand.http.get(&url, Some(token)).await?.expect_status(200)?;
    }
    ensure!(asked(&stand).await? == 1);

    say("policy reads the answer as it reads claims");
    let bob = opaque(&stand, "bob").await?;
    stand.http.get(&url, Some(&bob)).await?.expect_status(403)?;
    let resource = format!("{}/opaque", stand.url);
    let machine = stand.issuer.machine(Machine::Basic, "invoices:read", &resource).await?;
    stand.http.get(&url, Some(&machine)).await?.expect_status(200)?;
    let elsewhere =
        stand.issuer.login(&Login::of("ada").resource("https://opaque.example.com")).await?.access;
    let refused = stand.http.get(&url, Some(&elsewhere)).await?.expect_status(401)?;
    ensure!(refused.text().contains("not meant for this audience"), "{}", refused.text());

    say("a refresh token is not an access token, although it is active");
    let login = Login::of("ada").resource(&resource);
    let refresh = stand.issuer.login(&login).await?.refresh.unwrap_or_default();
    stand.http.get(&url, Some(&refresh)).await?.expect_status(401)?;

    say("what the issuer does not know is asked about once, not each time");
    let before = asked(&stand).await?;
    for _ in 0..20 {
        let refused = stand.http.get(&url, Some("made.up.token")).await?.expect_status(401)?;
        ensure!(refused.header("www-authenticate").contains("invalid_token"), "{:?}", refused.headers);
        ensure!(refused.text().contains("not active"), "{}", refused.text());
    }
    let more = asked(&stand).await? - before;
    ensure!((1..=2).contains(&more), "{more} questions");

    say("a token that is revoked ends with what was believed of it");
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.issuer.revoke(&token).await?;
    let revoked = Instant::now();
    stand.wait_status(PATH, &token, 401, Duration::from_secs(4)).await?;
    say(&format!("refused {:?} after its revocation", revoked.elapsed()));
    let refused = stand.http.get(&url, Some(&token)).await?.expect_status(401)?;
    ensure!(refused.text().contains("not active"), "{}", refused.text());

    say("a bound opaque token needs its proof");
    let key = ProofKey::for_relay(&stand.http, &stand.url).await?;
    let bound = stand.issuer.login_bound(&Login::of("ada").resource(&resource), &key).await?.access;
    stand.http.get(&url, Some(&bound)).await?.expect_status(401)?;
    let proof = key.proof("GET", &url, Some(&bound), None)?;
    let builder = request("GET", &url, None).header("authorization", format!("DPoP {bound}"));
    stand.http.send(builder.header("dpop", proof).body(empty())?).await?.expect_status(200)?;

    let all = std::fs::read_to_string(stand.path("audit.jsonl"))?;
    ensure!(!all.contains(&token) && !all.contains(&bound) && !all.contains(&machine));
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn two_hundred_callers_with_one_token_are_one_question() -> Result<()> {
    let stand = stand("introspect", &as_relay("")).await?;
    let token = opaque(&stand, "ada").await?;
    // Long enough for all of them to be waiting before the first is answered.
    stand.issuer.fault(ASKED, 0, Duration::from_secs(2), 1).await?;
    let (url, h2) = (stand.at(PATH), Http::h2(stand.pki.roots()?)?);
    let start = Instant::now();
    let calls = (0..200).map(|n| {
        let http = if n % 2 == 0 { &stand.http } else { &h2 };
        http.get(&url, Some(&token))
    });
    for answer in join_all(calls).await {
        answer?.expect_status(200)?;
    }
    say(&format!("200 callers served {:?} after the first asked", start.elapsed()));
    let questions = asked(&stand).await?;
    ensure!(questions == 1, "{questions} questions");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_issuer_that_does_not_say_lets_nobody_in() -> Result<()> {
    let mut stand = stand("auto", &as_relay(", negative = \"1s\"")).await?;
    let url = stand.at(PATH);
    let known = opaque(&stand, "ada").await?;
    stand.http.get(&url, Some(&known)).await?.expect_status(200)?;
    let jwt = stand.issuer.token("ada").await?;
    stand.http.get(&url, Some(&jwt)).await?.expect_status(200)?;
    let mut tokens = Vec::new();
    for _ in 0..8 {
        tokens.push(opaque(&stand, "ada").await?);
    }

    say("slow: nobody waits longer than the relay does, and who is known goes on");
    stand.issuer.fault(ASKED, 0, Duration::from_secs(20), 1000).await?;
    let (took, spared) = tokio::join!(shut(&stand, &tokens[0]), async {
        stand.http.get(&url, Some(&known)).await?.expect_status(200)?;
        stand.http.get(&url, Some(&jwt)).await?.expect_status(200).map(drop)
    });
    spared?;
    let took = took?;
    ensure!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&took), "{took:?}");

    say("failing: after five in a row it is left alone for a while, and nobody waits");
    stand.issuer.fault(ASKED, 500, Duration::ZERO, 1000).await?;
    for token in &tokens[..5] {
        shut(&stand, token).await?;
    }
    let before = asked(&stand).await?;
    let took = shut(&stand, &tokens[5]).await?;
    ensure!(took < Duration::from_secs(1) && asked(&stand).await? <= before + 1, "{took:?}");

    say("well again: within seconds everybody is served");
    stand.issuer.fault(ASKED, 0, Duration::ZERO, 0).await?;
    for token in &tokens {
        stand.wait_status(PATH, token, 200, Duration::from_secs(12)).await?;
    }

    say("standing still: connections are taken and nothing is said");
    let unknown = opaque(&stand, "ada").await?;
    stand.issuer.signal(Signal::STOP)?;
    let took = shut(&stand, &unknown).await;
    stand.issuer.signal(Signal::CONT)?;
    ensure!(took? < Duration::from_secs(8));
    stand.wait_status(PATH, &unknown, 200, Duration::from_secs(12)).await?;

    say("stopped: refused at once; JWTs are good by their signatures");
    let unknown = opaque(&stand, "ada").await?;
    stand.issuer.stop().await?;
    ensure!(shut(&stand, &unknown).await? < Duration::from_secs(2));
    stand.http.get(&url, Some(&jwt)).await?.expect_status(200)?;

    say("back, with an empty memory: what it forgot is no longer good, what it gives now is");
    stand.issuer.start_again().await?;
    stand.wait_status(PATH, &unknown, 401, Duration::from_secs(12)).await?;
    let token = opaque(&stand, "ada").await?;
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_relay_proves_who_asks_in_every_way() -> Result<()> {
    let mut how = as_relay("");
    let stand = stand("introspect", &how).await?;
    for next in [
        "client_id = \"https://relay.example.com/rs\", client_secret = { file = \"odd.secret\" }",
        "auth = \"post\", client_id = \"relay-post\", client_secret = { file = \"odd.secret\" }",
        "auth = \"private_key_jwt\", client_id = \"relay-jwt\", key = \"client-assertion.key\"",
        "auth = \"mtls\", client_id = \"relay-tls\", cert = \"relay-tls.pem\", key = \"relay-tls.key\"",
        "auth = \"mtls\", client_id = \"relay-self-signed\", cert = \"relay-self-signed.pem\", key = \"relay-self-signed.key\"",
    ] {
        say(next);
        stand.edit("relay.toml", &how, next)?;
        next.clone_into(&mut how);
        stand.relay_command(&["reload"]).await?.expect_code(0)?;
        let token = opaque(&stand, "ada").await?;
        let answer = stand.http.get(&stand.at(PATH), Some(&token)).await?;
        ensure!(answer.status == 200, "{next}: {} {}", answer.status, answer.text());
    }

    say("as somebody else it is told nothing, and so lets nobody in");
    let wrong = "client_id = \"relay\", client_secret = { file = \"odd.secret\" }";
    stand.edit("relay.toml", &how, wrong)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let token = opaque(&stand, "ada").await?;
    shut(&stand, &token).await?;

    say("an issuer that does not judge JWTs is not taken to say that they are bad");
    stand.edit("relay.toml", wrong, &as_relay(""))?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let jwt = stand.issuer.token("ada").await?;
    let answer = stand.http.get(&stand.at(PATH), Some(&jwt)).await?.expect_status(503)?;
    ensure!(answer.text().contains("does not say whether"), "{}", answer.text());
    stand.http.get(&stand.at(PATH), Some(&opaque(&stand, "ada").await?)).await?.expect_status(200)?;

    say("a secret that is not there is found at the reload, which changes nothing");
    stand.edit("relay.toml", "relay.secret", "missing.secret")?;
    let refused = stand.relay_command(&["reload"]).await?.expect_code(3)?;
    ensure!(refused.stderr.contains("missing.secret"), "{}", refused.stderr);
    let token = opaque(&stand, "ada").await?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}
