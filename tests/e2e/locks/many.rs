//! One user among many live streams: how long a lock takes to reach that user's, and that it reaches no others.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postern_tests::lives::{Place, socket_over};
use postern_tests::stand::{Extra, say};
use postern_tests::wait;
use serde_json::json;

use super::{AT_ONCE, lock};

/// Streams on one HTTP/2 connection: what the relay takes.
const PER_CONNECTION: usize = 100;

/// Opens `count` streams of as many users as there are hundreds, locks one user, and says how long it took for that user's to go.
async fn one_among(count: usize) -> Result<()> {
    let extra = Extra {
        limits: "requests = 20000\nper_address = 20000\n".to_owned(),
        agent_tables: "[tunnel]\nconnections = 16\n".to_owned(),
        ..Extra::default()
    };
    let place = Place::start(extra).await?;
    let start = Instant::now();
    let mut users = Vec::new();
    for number in 0..count / PER_CONNECTION {
        let token = place.mint.token(&format!("user-{number}"), Duration::from_hours(1), &json!({}))?;
        let mut many = place.many().await?;
        let mut lives = Vec::new();
        for stream in 0..PER_CONNECTION {
            lives.push(socket_over(&mut many, &token, &format!("/sock/socket/{number}-{stream}")).await?);
        }
        users.push((token, many, lives));
    }
    say(&format!("{count} live streams of {} users after {:?}", users.len(), start.elapsed()));
    let (token, _many, mut lives) = users.swap_remove(users.len() / 2);
    let order = Instant::now();
    let name = format!("user-{}", count / PER_CONNECTION / 2);
    let id = lock(&place.stand, &["--user", &name]).await?;
    let answered = order.elapsed();
    for live in &mut lives {
        live.is_cut(wait::SOON).await?;
    }
    let took = order.elapsed();
    say(&format!(
        "lock of one user among {count} live streams: command {answered:?}, the last stream cut {took:?}"
    ));
    ensure!(took < AT_ONCE, "cut after {took:?}");
    place.stand.http.get(&place.stand.at("/sock/get/1"), Some(&token)).await?.expect_status(401)?;
    for (_, _, lives) in &mut users {
        for live in lives {
            live.is_open().await?;
        }
    }
    let cuts = place.stand.wait_audit(PER_CONNECTION, |line| line["event"] == "cut").await?;
    ensure!(cuts.len() == PER_CONNECTION && cuts.iter().all(|cut| cut["lock"] == *id), "{} cut", cuts.len());
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn one_user_among_a_thousand_streams_is_cut_at_once() -> Result<()> {
    one_among(1000).await
}

#[tokio::test]
async fn long_one_user_among_ten_thousand_streams_is_cut_at_once() -> Result<()> {
    one_among(10_000).await
}
