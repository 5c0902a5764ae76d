//! Leases of streams whose agent verifies the caller's token by itself: the relay passes the fresh token on, and the agent's own clock and
//! judgement decide. The relay's clock lags behind here, so that what ends in time is ended by the agent alone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::clock;
use postern_tests::lives::{Live, Place};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, say};
use postern_tests::wait;
use serde_json::json;

use super::LATE;

const LIFE: Duration = Duration::from_secs(6);
/// Within what the relay bears of tokens of the future, and longer than the test.
const LAG: &str = "-25s";

/// Each service has an audience of its own: its tokens are worth nothing elsewhere.
fn audience(service: &str) -> String {
    format!("https://{service}.example.com")
}

fn token(place: &Place, service: &str, life: Duration) -> Result<String> {
    place.mint.token("ada", life, &json!({ "aud": audience(service) }))
}

/// Both services are verified: each stream goes to its agent with the token that opened it.
async fn place() -> Result<Place> {
    let mut place = Place::start(Extra::default()).await?;
    let stand = &mut place.stand;
    let (url, iss) = (stand.url.clone(), place.mint.iss().to_owned());
    let services = [
        ("sock", "[services.sock]\nagent = \"dc1\"\n", "sock/"),
        ("pipe", "[services.pipe]\nkind = \"tcp\"\nagent = \"dc1\"\n", ".postern/tcp/pipe"),
    ];
    for (name, at, public) in services {
        let own = audience(name);
        stand.edit("relay.toml", at, &format!("{at}audience = [\"{own}\"]\ncaller_token = \"agent\"\n"))?;
        let at = format!("[services.{name}]\n");
        let verify = format!("verify = {{ audience = \"{own}\", urls = \"{url}/{public}\" }}\n");
        stand.edit("agent.toml", &at, &format!("{at}{verify}"))?;
    }
    let known = [audience("sock"), audience("pipe")];
    let issuer = format!("[[issuers]]\nname = \"corp\"\nissuer = \"{iss}\"\naudience = {known:?}\n");
    stand.edit("agent.toml", "[telemetry]", &format!("{issuer}\n[telemetry]"))?;
    stand.stop_agent(Signal::TERM).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.relay_env = clock::off(LAG)?;
    stand.start_relay().await?;
    stand.start_agent().await?;
    Ok(place)
}

/// Something of each kind, once its agent's tunnel is there.
async fn streams(place: &Place, life: Duration) -> Result<[(&'static str, Live); 2]> {
    let for_sock = token(place, "sock", life)?;
    let sock = wait::until("a stream can be opened", wait::SOON, async || place.socket(&for_sock).await.ok());
    Ok([("sock", sock.await?), ("pipe", place.pipe(&token(place, "pipe", life)?).await?)])
}

async fn renewed(place: &Place, token: &str, live: &Live) -> Result<()> {
    let told = place.renew(token, &[&live.lease]).await?;
    ensure!(told.len() == 1 && told[0]["renewed"] == true, "{told:?}");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_verifies_is_told_of_renewals_and_ends_what_is_not_renewed() -> Result<()> {
    let mut place = place().await?;
    // The first stream waits for the tunnel: its token's time counts from there.
    streams(&place, LIFE).await?;
    let start = Instant::now();
    let mut kept = streams(&place, LIFE).await?;
    let mut left = streams(&place, LIFE).await?;
    for (_, live) in kept.iter_mut().chain(&mut left) {
        live.is_open().await?;
    }

    say("renewed through the relay; the ones beside them are not");
    let again = Instant::now();
    for (service, live) in &kept {
        renewed(&place, &token(&place, service, LIFE * 2)?, live).await?;
    }
    for (_, live) in &mut left {
        live.is_cut(LIFE + wait::SOON).await?;
    }
    let took = start.elapsed();
    ensure!(took + LATE > LIFE && took < LIFE + LATE, "cut after {took:?}");
    // The relay, by its own clock, would have let them run.
    let cuts = place.stand.audit()?.into_iter().filter(|line| line["event"] == "cut").count();
    ensure!(cuts == 0, "the relay cut {cuts} streams");
    for (_, live) in &left {
        let log = place.stand.agent()?.log_text();
        let of_its =
            |line: &str| line.contains("outlasted its caller's token") && line.contains(&live.request_id);
        ensure!(log.lines().any(of_its), "the agent did not say that it ended {}", live.request_id);
    }

    say("the renewed ones live on the token that the agent was given, and no longer");
    for (_, live) in &mut kept {
        live.is_open().await?;
    }
    for (_, live) in &mut kept {
        live.is_cut(LIFE * 2 + wait::SOON).await?;
    }
    let took = again.elapsed();
    ensure!(took + LATE > LIFE * 2 && took < LIFE * 2 + LATE, "cut {took:?} after the renewal");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn what_the_agent_does_not_take_renews_nothing_there() -> Result<()> {
    let mut place = place().await?;
    say("the relay takes tokens for another audience, too, from now on; the agent does not");
    let own = format!("audience = [\"{}\"]", audience("sock"));
    let both = format!("audience = [\"{}\", \"{}\"]", audience("sock"), audience("elsewhere"));
    place.stand.edit("relay.toml", &own, &both)?;
    place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
    streams(&place, LIFE).await?;
    let start = Instant::now();
    let [(_, mut live), _] = streams(&place, LIFE).await?;
    live.is_open().await?;
    let fresh = place.mint.token("ada", LIFE * 5, &json!({ "aud": audience("elsewhere") }))?;
    renewed(&place, &fresh, &live).await?;
    live.is_cut(LIFE + wait::SOON).await?;
    let took = start.elapsed();
    ensure!(took + LATE > LIFE && took < LIFE + LATE, "cut after {took:?}");
    place.stand.agent()?.wait_line("a renewal is not good here", wait::SOON).await?;
    place.stand.passed();
    Ok(())
}
