//! `postern` makes ordinary programs safe from token thieves: where the issuer offers DPoP (RFC 9449), its sessions have a key, their tokens
//! are worth nothing without it, and every way through it proves possession. Nonces, other processes and older sessions change nothing.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::header::AUTHORIZATION;
use postern_tests::client::Cli;
use postern_tests::http::{empty, request};
use postern_tests::issuer::{Login, forge};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};

/// The file of the one session of this home.
fn session_file(cli: &Cli) -> Result<PathBuf> {
    let dir = std::fs::read_dir(cli.state_dir())?;
    let mut files = dir.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|path| path.extension().is_some_and(|e| e == "json")).context("no session file")
}

fn session(cli: &Cli) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(session_file(cli)?)?)?)
}

async fn token(cli: &Cli) -> Result<String> {
    Ok(cli.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned())
}

/// Everything that shows a token to the relay works.
async fn every_way_works(cli: &Cli, stand: &Stand) -> Result<()> {
    for args in [
        &["whoami"][..],
        &["ls"],
        &["can", "GET", "billing/v1/invoices/7"],
        &["curl", "-sSf", "billing/v1/invoices/7?page=2"],
        &["curl", "-sSf", "-X", "POST", "--data", "x=1", "echo/form"],
        &["curl", "-sSf", "-T", "-", "echo/none"],
    ] {
        cli.run(args).await?.expect_code(0).with_context(|| format!("{args:?}"))?;
    }
    let (_forward, url) = cli.forward("billing", &[]).await?;
    for path in ["/v1/invoices/7", "/v1/invoices/%7e?a=b%20c", "/v1/invoices/7"] {
        stand.http.get(&format!("{url}{path}"), None).await?.expect_status(200)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_session_has_a_key_and_its_tokens_are_nothing_without_it() -> Result<()> {
    let stand = Stand::start().await?;
    let (ada, bob) = (stand.cli("ada")?, stand.cli("bob")?);
    for (cli, by_browser) in [(&ada, false), (&bob, true)] {
        say(if by_browser { "a login in the browser" } else { "a login by device code" });
        if by_browser {
            cli.login_browser("bob", false).await?.expect_code(0)?;
        } else {
            cli.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
        }
        let kept = session(cli)?;
        let key = kept["session"]["proof_key"].as_str().context("the session has no key")?;
        ensure!(std::fs::metadata(session_file(cli)?)?.mode() & 0o777 == 0o600);
        let shown = cli.run(&["token", "--json"]).await?.expect_code(0)?;
        let given: Value = serde_json::from_str(&shown.stdout)?;
        ensure!(given["token_type"] == "DPoP" && shown.stderr.contains("without a proof"), "{shown:?}");
        ensure!(!shown.stdout.contains(key) && !shown.stderr.contains(key), "the key was printed");
        let (_, claims) = forge::decode(given["token"].as_str().context("no token")?)?;
        ensure!(claims["cnf"]["jkt"].is_string(), "{claims}");
    }
    every_way_works(&ada, &stand).await?;

    say("the token alone is refused, as Bearer and as DPoP");
    let stolen = token(&ada).await?;
    let header = ada.run(&["token", "--header"]).await?.expect_code(0)?;
    ensure!(header.stdout.trim() == format!("Authorization: DPoP {stolen}"), "{header:?}");
    for scheme in ["Bearer", "DPoP"] {
        let url = stand.at("/billing/v1/invoices/7");
        let request = request("GET", &url, None).header(AUTHORIZATION, format!("{scheme} {stolen}"));
        stand.http.send(request.body(empty())?).await?.expect_status(401)?;
    }

    say("renewed, it stays bound to the same key");
    let jkt = |token: &str| -> Result<Value> { Ok(forge::decode(token.trim())?.1["cnf"]["jkt"].clone()) };
    stand.issuer.access_ttl(Duration::from_mins(20)).await?;
    let later = ada.run(&["token", "--min-ttl", "10m"]).await?.expect_code(0)?.stdout;
    ensure!(later.trim() != stolen && jkt(&later)? == jkt(&stolen)? && jkt(&later)?.is_string());
    ada.run(&["curl", "-sSf", "billing/v1/invoices/7"]).await?.expect_code(0)?;
    ada.run(&["logout"]).await?.expect_code(0)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn nonces_of_issuer_and_relay_are_nobodys_concern() -> Result<()> {
    let extra = Extra { tables: "[dpop]\nnonce = \"required\"\n".to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    say("an issuer that demands them, at login and at each renewal");
    stand.issuer.demand_nonces(true).await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    stand.issuer.access_ttl(Duration::from_mins(20)).await?;
    ada.run(&["token", "--min-ttl", "10m"]).await?.expect_code(0)?;
    let bob = stand.cli("bob")?;
    bob.login_browser("bob", false).await?.expect_code(0)?;

    say("a relay that demands them");
    every_way_works(&ada, &stand).await?;

    say("one that starts anew has forgotten those it gave: a forward's uploads go through all the same");
    let (_forward, url) = ada.forward("echo", &[]).await?;
    let body = vec![b'x'; 3_000_000];
    for round in 0..2 {
        let builder = request("POST", &format!("{url}/upload"), None);
        let answer = stand.http.send(builder.body(postern_tests::http::full(body.clone()))?).await?;
        answer.expect_status(200).with_context(|| format!("round {round}"))?;
        stand.stop_relay(Signal::TERM).await?;
        stand.start_relay().await?;
        wait::until("the agent is back", wait::SOON, async || {
            ada.run(&["curl", "-sSf", "echo/ready"]).await.ok().filter(|run| run.code == 0)
        })
        .await?;
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn processes_that_share_a_session_do_not_break_each_other() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    stand.issuer.access_ttl(Duration::from_secs(3)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (_one, first) = ada.forward("echo", &[]).await?;
    let (_two, second) = ada.forward("echo", &[]).await?;
    let before = stand.issuer.grant_hits("refresh_token").await?;
    say("two forwards and a row of commands, over many lives of a token");
    for round in 0..12 {
        let urls = [format!("{first}/{round}"), format!("{second}/{round}")];
        let (one, two, run) = tokio::join!(
            stand.http.get(&urls[0], None),
            stand.http.get(&urls[1], None),
            ada.run(&["curl", "-sSf", "echo/x"])
        );
        one?.expect_status(200)?;
        two?.expect_status(200)?;
        run?.expect_code(0)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let renewals = stand.issuer.grant_hits("refresh_token").await? - before;
    say(&format!("{renewals} renewals"));
    ensure!((1..=20).contains(&renewals), "{renewals}: each process renewed for itself");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_session_from_before_goes_on_without_a_key() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    say("the session file as it was written before there were keys");
    let unbound = stand.issuer.login(&Login::of("ada")).await?;
    let mut kept = session(&ada)?;
    let inner = kept["session"].as_object_mut().context("no session")?;
    inner.remove("proof_key");
    inner.insert("refresh_token".into(), json!(unbound.refresh));
    let access = inner["access"][""].as_object_mut().context("no access token")?;
    access.insert("token".into(), json!(unbound.access));
    access.remove("bound");
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(session_file(&ada)?)?;
    file.write_all(kept.to_string().as_bytes())?;
    drop(file);
    let plain = ada.run(&["token", "--header"]).await?.expect_code(0)?;
    ensure!(plain.stdout.trim() == format!("Authorization: Bearer {}", unbound.access), "{plain:?}");
    ensure!(!plain.stderr.contains("bound"), "{plain:?}");
    every_way_works(&ada, &stand).await?;
    say("renewed, it is still without");
    stand.issuer.access_ttl(Duration::from_mins(20)).await?;
    let later = ada.run(&["token", "--min-ttl", "10m"]).await?.expect_code(0)?.stdout;
    ensure!(forge::decode(later.trim())?.1.get("cnf").is_none(), "{later}");
    every_way_works(&ada, &stand).await?;
    say("until the next login");
    ada.login_device(&stand.issuer, "ada", &["--force"]).await?.expect_code(0)?;
    ensure!(session(&ada)?["session"]["proof_key"].is_string());
    every_way_works(&ada, &stand).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_refusal_names_what_is_missing_and_can_says_the_same() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    say("403: the closest rule, what is missing, an id");
    let denied = ada.run(&["curl", "-sS", "billing/reports"]).await?.expect_code(5)?;
    for words in
        ["Denied (403)", "[decision ", "Closest: \"the office sees reports\" needs an address in 10.0.0.0/8"]
    {
        ensure!(denied.stderr.contains(words), "no {words:?} in {denied:?}");
    }
    let body: Value = serde_json::from_str(denied.stdout.trim())?;
    let can = ada.run(&["can", "--json", "GET", "billing/reports"]).await?.expect_code(5)?;
    let said: Value = serde_json::from_str(&can.stdout)?;
    ensure!(body["closest"] == said["closest"] && body["closest"].is_object(), "{body} {said}");
    ensure!(body["decision_id"] != said["decision_id"]);

    say("401 for want of a stronger login: what to type, and what is asked");
    let weak = ada.run(&["curl", "-sS", "-X", "DELETE", "billing/v1/invoices/7"]).await?.expect_code(4)?;
    ensure!(weak.stderr.contains("by mfa") && weak.stderr.contains("--force"), "{weak:?}");
    let refreshed = stand.issuer.grant_hits("refresh_token").await?;
    ensure!(refreshed == 0, "a renewal makes no login stronger");
    stand.passed();
    Ok(())
}
