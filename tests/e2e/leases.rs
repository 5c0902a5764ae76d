//! Leases: a live stream outlives its first token where its own caller shows a fresh one for it, and only then. What else ends with a token:
//! an ordinary answer, after its grace.

mod taken_back;
mod verified;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use postern_tests::http::{empty, request};
use postern_tests::issuer::ProofKey;
use postern_tests::lives::{Live, Place};
use postern_tests::stand::{Extra, say};
use postern_tests::wait;
use serde_json::{Value, json};

/// The life of a short token, in whole seconds as tokens say it.
const LIFE: Duration = Duration::from_secs(5);
/// What a cut may come late: tokens say whole seconds, and what is over is looked for twice a second.
const LATE: Duration = Duration::from_secs(2);

const UNKNOWN: &str = "no live stream of this caller has this lease";

fn leases(lives: &[Live]) -> Vec<&str> {
    lives.iter().map(|live| live.lease.as_str()).collect()
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Shows a fresh token for all of them; each says until when it goes on, and does.
async fn renew_all(place: &Place, lives: &mut [Live]) -> Result<()> {
    let token = place.mint.token("ada", LIFE, &json!({}))?;
    let named = leases(lives);
    let told = place.renew(&token, &named).await?;
    ensure!(told.len() == named.len(), "{told:?}");
    for (answer, lease) in told.iter().zip(&named) {
        ensure!(answer["id"] == **lease && answer["renewed"] == true, "{answer}");
        let expires = answer["expires"].as_u64().context("no expires")?;
        ensure!(expires.abs_diff(now()? + LIFE.as_secs()) <= 1, "{answer}");
    }
    for live in lives {
        live.is_open().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_renewed_stream_outlives_its_first_token() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let start = Instant::now();
    let first = place.mint.token("ada", LIFE, &json!({}))?;
    let mut kept = place.one_of_each(&first).await?;
    let mut left = place.one_of_each(&first).await?;

    say("renewed in time, again and again; those beside them are not");
    let mut rounds = 0;
    let keeping = async {
        while start.elapsed() < LIFE * 3 {
            renew_all(&place, &mut kept).await.with_context(|| format!("after {:?}", start.elapsed()))?;
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        anyhow::Ok(())
    };
    let leaving = async {
        for live in &mut left {
            live.is_open().await?;
        }
        for live in &mut left {
            live.is_cut(LIFE + wait::SOON).await?;
        }
        anyhow::Ok(start.elapsed())
    };
    let (kept_open, took) = tokio::join!(keeping, leaving);
    kept_open?;
    let took = took?;
    ensure!(took + LATE > LIFE && took < LIFE + LATE, "cut after {took:?}");
    let last = place.mint.token("ada", LIFE, &json!({}))?;
    place.renew(&last, &leases(&kept)).await?;
    let last = Instant::now();
    for live in &mut kept {
        live.is_cut(LIFE + wait::SOON).await?;
    }
    let took = last.elapsed();
    ensure!(took + LATE > LIFE && took < LIFE + LATE, "cut {took:?} after the last renewal");

    let stand = place.stand;
    let cuts = stand.wait_audit(8, |line| line["event"] == "cut").await?;
    ensure!(cuts.len() == 8, "{cuts:?}");
    for live in kept.iter().chain(&left) {
        let is_its = |line: &&Value| line["request_id"] == *live.request_id;
        let cut = cuts.iter().find(is_its).context("no cut event")?;
        ensure!(cut["reason"] == "expired" && cut["lease"].is_string(), "{cut}");
        let ends = stand.wait_audit(1, |line| line["event"] == "end" && is_its(&line)).await?;
        ensure!(ends[0]["ended"] == "expired" && ends[0]["reason"] == "expired", "{}", ends[0]);
        let renewals = stand.audit()?.iter().filter(|line| line["event"] == "lease" && is_its(line)).count();
        let expected = if kept.iter().any(|k| k.request_id == live.request_id) { rounds + 1 } else { 0 };
        ensure!(renewals == expected, "{renewals} renewals audited, {expected} made");
    }
    let file = std::fs::read_to_string(stand.path("audit.jsonl"))?;
    ensure!(kept.iter().all(|live| !file.contains(&live.lease)), "a lease's id is in the audit log");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn nobody_renews_anothers_stream() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let start = Instant::now();
    let life = Duration::from_secs(8);
    let stolen = place.mint.token("ada", life, &json!({}))?;
    let mut own = place.socket(&stolen).await?;
    let mut thiefs = place.socket(&stolen).await?;
    let ours = [own.lease.as_str()];

    say("another user, client or binding is told the same as of an id that never was");
    let minutes = Duration::from_mins(5);
    let key = ProofKey::for_relay(&place.stand.http, &place.stand.url).await?;
    let made_up = "AAAAAAAAAAAAAAAAAAAAAA";
    let bound = place.mint.token("ada", minutes, &json!({ "cnf": { "jkt": key.thumbprint() } }))?;
    let mut told = Vec::new();
    for token in [
        place.mint.token("bob", minutes, &json!({}))?,
        place.mint.token("ada", minutes, &json!({ "client_id": "another" }))?,
        place.mint.token("ada", minutes, &json!({ "sub": "another" }))?,
    ] {
        told.extend(place.renew(&token, &ours).await?);
    }
    let proof = key.proof("POST", &place.stand.at("/.postern/lease"), Some(&bound), None)?;
    let who = [("authorization", format!("DPoP {bound}")), ("dpop", proof)];
    let who = who.each_ref().map(|(name, value)| (*name, value.as_str()));
    let answer = place.renew_as(&who, &ours).await?.expect_status(200)?.json()?;
    told.push(answer["leases"][0].clone());
    for answer in &told {
        ensure!(answer["renewed"] == false && answer["reason"] == UNKNOWN, "{answer}");
    }
    for id in [made_up, "", "x", "ä"] {
        let answer = place.renew(&stolen, &[id]).await?;
        ensure!(answer[0]["id"] == id && answer[0]["reason"] == UNKNOWN, "{answer:?}");
    }

    say("an earlier expiry is no renewal, the same token again is");
    let older = place.mint.token("ada", Duration::from_secs(4), &json!({}))?;
    let answer = place.renew(&older, &ours).await?;
    ensure!(answer[0]["renewed"] == false && answer[0]["reason"] != UNKNOWN, "{answer:?}");
    ensure!(place.renew(&stolen, &ours).await?[0]["renewed"] == true);

    say("the victim's renewals keep the victim's streams alone");
    let fresh = place.token("ada")?;
    let answers = place.renew(&fresh, &[&own.lease, made_up]).await?;
    ensure!(answers[0]["renewed"] == true && answers[1]["renewed"] == false, "{answers:?}");
    thiefs.is_open().await?;
    thiefs.is_cut(life + wait::SOON).await?;
    let took = start.elapsed();
    ensure!(took + LATE > life && took < life + LATE, "the thief's stream was cut after {took:?}");
    own.is_open().await?;
    let gone = place.renew(&fresh, &[&thiefs.lease]).await?;
    ensure!(gone[0]["reason"] == UNKNOWN, "{gone:?}");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_bound_streams_key_renews_it() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let key = ProofKey::for_relay(&place.stand.http, &place.stand.url).await?;
    let cnf = json!({ "cnf": { "jkt": key.thumbprint() } });
    let start = Instant::now();
    let first = place.mint.token("ada", LIFE, &cnf)?;
    let (scheme, path) = (format!("DPoP {first}"), "/sock/socket/bound");
    let proof = key.proof("GET", &place.stand.at(path), Some(&first), None)?;
    let mut live = place.socket_as(&[("authorization", &scheme), ("dpop", &proof)], path).await?;
    live.is_open().await?;

    let second = place.mint.token("ada", Duration::from_mins(5), &cnf)?;
    let scheme = format!("DPoP {second}");
    let url = place.stand.at("/.postern/lease");
    let elsewhere = key.proof("POST", &place.stand.at("/sock/"), Some(&second), None)?;
    let who = [("authorization", scheme.as_str()), ("dpop", &elsewhere)];
    place.renew_as(&who, &[&live.lease]).await?.expect_status(401)?;
    let proof = key.proof("POST", &url, Some(&second), None)?;
    let who = [("authorization", scheme.as_str()), ("dpop", &proof)];
    let answer = place.renew_as(&who, &[&live.lease]).await?.expect_status(200)?.json()?;
    ensure!(answer["leases"][0]["renewed"] == true, "{answer}");
    while start.elapsed() < LIFE + LATE {
        live.is_open().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    place.stand.passed();
    Ok(())
}

const JUDGED: &str = r#"
[services.fresh]
agent = "dc1"
limit = { idle = "off" }
rules = [{ allow = "group:finance", to = "GET /**", with = { scope = "talk", max_age = "4s" } }]
"#;

#[tokio::test]
async fn a_renewal_judges_the_target_again() -> Result<()> {
    let extra = Extra { tables: JUDGED.to_owned(), ..Extra::default() };
    let place = {
        // The agent's part needs to know where the upstream is.
        let mut place = Place::start(extra).await?;
        let table = format!("[services.fresh]\nupstream = \"{}\"\n\n[telemetry]", place.upstream.url());
        place.stand.edit("agent.toml", "[telemetry]", &table)?;
        place.stand.stop_agent(postern_tests::process::Signal::TERM).await?;
        place.stand.start_agent().await?;
        place
    };
    let minutes = Duration::from_mins(5);
    let login = now()?;
    let claims = |scope: &str, more: u64| json!({ "scope": scope, "auth_time": login, "n": more });
    let token = place.mint.token("ada", Duration::from_secs(20), &claims("talk", 1))?;
    let who = format!("Bearer {token}");
    let mut live = place.socket_as(&[("authorization", &who)], "/fresh/socket/1").await?;

    say("without the scope the stream keeps the time it has");
    let less = place.mint.token("ada", minutes, &claims("listen", 2))?;
    let answer = place.renew(&less, &[&live.lease]).await?;
    let reason = answer[0]["reason"].as_str().unwrap_or_default();
    ensure!(answer[0]["renewed"] == false && reason.contains("talk"), "{answer:?}");

    say("how old the login is counts at the opening alone");
    let old = wait::until("the login is too old to open a stream", wait::SOON, async || {
        let ask = place.ask(&[("authorization", &who)], "/fresh/socket/2").await.ok()?;
        (ask.answer.status() == 401).then_some(ask)
    })
    .await?;
    let challenge = old.answer.headers().get("www-authenticate").context("no challenge")?;
    ensure!(challenge.to_str()?.contains("max_age"), "{challenge:?}");
    let refreshed = place.mint.token("ada", minutes, &claims("talk", 3))?;
    let answer = place.renew(&refreshed, &[&live.lease]).await?;
    ensure!(answer[0]["renewed"] == true, "{answer:?}");
    live.is_open().await?;

    say("a token of another audience is not good for it, nor is none");
    let foreign = place.mint.token("ada", minutes, &json!({ "aud": "https://other.example.com" }))?;
    let who = format!("Bearer {foreign}");
    place.renew_as(&[("authorization", &who)], &[&live.lease]).await?.expect_status(401)?;
    place.renew_as(&[], &[&live.lease]).await?.expect_status(401)?;

    say("a reload that takes the permit away cuts within a second, and what it leaves goes on");
    let mut other = place.socket(&refreshed).await?;
    place.stand.edit("relay.toml", "scope = \"talk\"", "scope = \"shout\"")?;
    place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let took = live.is_cut(Duration::from_secs(1)).await?;
    say(&format!("cut {took:?} after the reload"));
    other.is_open().await?;
    let cut = place.stand.wait_audit(1, |line| line["event"] == "cut").await?;
    ensure!(cut[0]["reason"] == "permit-gone" && cut[0]["request_id"] == *live.request_id, "{cut:?}");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_lease_address_takes_what_it_says() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let token = place.token("ada")?;
    let bearer = format!("Bearer {token}");
    let who = [("authorization", bearer.as_str())];
    for (body, status) in [
        ("", 400),
        ("[]", 400),
        (r#"{"leases":[1]}"#, 400),
        (r#"{"leases":[],"more":1}"#, 400),
        (r#"{"leases":[]}"#, 200),
    ] {
        place.post_lease(&who, body.to_owned()).await?.expect_status(status).context(body)?;
    }
    let many = vec!["x"; 1001];
    place.renew_as(&who, &many).await?.expect_status(400)?;
    place.renew_as(&who, &many[1..]).await?.expect_status(200)?;
    place.post_lease(&who, "x".repeat(65 * 1024)).await?.expect_status(413)?;
    place.post_lease(&[], "x".repeat(65 * 1024)).await?.expect_status(401)?;
    let get = place.stand.http.get(&place.stand.at("/.postern/lease"), Some(&token)).await?;
    ensure!(get.expect_status(405)?.header("allow") == "POST");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_answer_ends_with_its_tokens_grace() -> Result<()> {
    let extra = Extra { limits: "lease_grace = \"3s\"\n".to_owned(), ..Extra::default() };
    let place = Place::start(extra).await?;
    let start = Instant::now();
    let token = place.mint.token("ada", LIFE, &json!({}))?;
    let url = place.stand.at("/sock/stream/1?bytes=4000000&step=1000&pause=20");
    let mut answer = place.stand.http.stream(request("GET", &url, Some(&token)).body(empty())?).await?;
    let cut = loop {
        match wait::within("the next piece", wait::SOON, answer.body_mut().frame()).await? {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => anyhow::bail!("it ended well after {:?}", start.elapsed()),
        }
    };
    let (took, whole) = (start.elapsed(), LIFE + Duration::from_secs(3));
    ensure!(took + LATE > whole && took < whole + LATE, "cut after {took:?}: {cut}");
    let ends = place.stand.wait_audit(1, |line| line["event"] == "end" && line["service"] == "sock").await?;
    ensure!(ends[0]["ended"] == "expired" && ends[0]["status"] == 200, "{}", ends[0]);
    place.stand.passed();
    Ok(())
}
