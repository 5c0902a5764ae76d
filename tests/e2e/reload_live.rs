//! Orders outlive what they were given in: no reload voids a lock, a reload that judges an issuer's tokens otherwise cuts its live streams,
//! and a lock on any token that was ever shown for a stream cuts it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lives::Place;
use postern_tests::mint::token_id;
use postern_tests::stand::{Extra, say};
use serde_json::json;

/// Everything is cut within this time.
const AT_ONCE: Duration = Duration::from_secs(1);
const MINUTES: Duration = Duration::from_mins(5);

#[tokio::test]
async fn no_reload_takes_a_lock_away() -> Result<()> {
    let mut place = Place::start(Extra::default()).await?;
    let ada = place.token("ada")?;
    let good = std::fs::read_to_string(place.stand.path("relay.toml"))?;
    let renamed = [
        (&["--user", "ada"][..], "name = \"corp\"", "name = \"company\"", 401),
        (&["--issuer", "corp"], "name = \"corp\"", "name = \"company\"", 401),
        (&["--service", "sock"], "[services.sock]", "[services.talk]", 503),
    ];
    for (what, from, to, status) in renamed {
        say(&format!("lock add {}, and {from} becomes {to}", what.join(" ")));
        let args = [&["lock", "add", "--reason", "an incident"], what].concat();
        let id = place.stand.relay_command(&args).await?.expect_code(0)?.stdout.trim().to_owned();
        place.stand.edit("relay.toml", from, to)?;
        let refused = place.stand.relay_command(&["reload"]).await?.expect_code(3)?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(said.contains(&format!("lock rm {id}")) && said.contains("keep the name"), "{said}");
        let url = place.stand.at("/sock/get/x");
        place.stand.http.get(&url, Some(&ada)).await?.expect_status(status)?;

        say("a relay that starts so says it");
        place.stand.stop_relay(postern_tests::process::Signal::TERM).await?;
        place.stand.start_relay().await?;
        let relay = place.stand.relay()?;
        relay.wait_line(&format!("lock rm {id}"), Duration::from_secs(10)).await?;

        say("with the lock taken away the same file is good");
        place.stand.relay_command(&["lock", "rm", &id]).await?.expect_code(0)?;
        place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
        std::fs::write(place.stand.path("relay.toml"), &good)?;
        place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
    }
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_issuer_that_judges_otherwise_ends_its_streams() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let ada = place.token("ada")?;
    let name = "name = \"corp\"";
    let mut live = place.socket(&ada).await?;
    say("where people log in is nothing to a stream");
    place.stand.edit("relay.toml", "client_id = \"postern-cli\"", "client_id = \"other-cli\"")?;
    place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
    live.is_open().await?;
    for (knob, status) in
        [("forbid = [\"sub\"]", 401), ("clients = [\"nobody\"]", 401), ("leeway = \"5s\"", 200)]
    {
        say(knob);
        let mut live = place.socket(&ada).await?;
        place.stand.edit("relay.toml", name, &format!("{name}\n{knob}"))?;
        place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
        let url = place.stand.at("/sock/get/x");
        place.stand.http.get(&url, Some(&ada)).await?.expect_status(status)?;
        if status == 200 {
            live.is_open().await?;
        } else {
            live.is_cut(AT_ONCE).await?;
        }
        place.stand.edit("relay.toml", &format!("{name}\n{knob}"), name)?;
        place.stand.relay_command(&["reload"]).await?.expect_code(0)?;
    }
    let cut = place.stand.wait_audit(1, |line| line["event"] == "cut").await?;
    ensure!(cut.iter().all(|line| line["reason"] == "permit-gone"), "{cut:?}");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_lock_on_any_token_that_was_shown_cuts_the_stream() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let token = |n: u64| place.mint.token("ada", MINUTES + Duration::from_secs(n), &json!({ "n": n }));
    let mut tokens = vec![token(0)?];
    let mut live = place.socket(&tokens[0]).await?;
    let mut other = place.socket(&token(9)?).await?;
    for n in 1..4 {
        tokens.push(token(n)?);
        let answer = place.renew(&tokens[tokens.len() - 1], &[&live.lease]).await?;
        ensure!(answer[0]["renewed"] == true, "{answer:?}");
    }
    say("neither the first nor the last");
    let middle = tokens.get(1).context("no token")?;
    let args = ["lock", "add", "--reason", "an incident", "--token", &token_id(middle)];
    place.stand.relay_command(&args).await?.expect_code(0)?;
    live.is_cut(AT_ONCE).await?;
    other.is_open().await?;
    place.stand.passed();
    Ok(())
}
