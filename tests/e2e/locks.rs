//! Locks: what is locked is refused at once and cut within a second, whatever it is doing, and nothing else is; locks outlive the relay, end
//! when they should, and are in the audit log. `session ls` shows whom there is to lock.

mod many;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::{join, join_all};
use http_body_util::BodyExt;
use postern_tests::http::{empty, pattern_body, request};
use postern_tests::lives::{Live, Place};
use postern_tests::mint::{token_id, twin};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Everything is cut within this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Adds a lock; gives its id.
async fn lock(stand: &Stand, what: &[&str]) -> Result<String> {
    let mut args = vec!["lock", "add", "--reason", "an incident"];
    args.extend(what);
    Ok(stand.relay_command(&args).await?.expect_code(0)?.stdout.trim().to_owned())
}

async fn unlock(stand: &Stand, id: &str) -> Result<()> {
    stand.relay_command(&["lock", "rm", id]).await?.expect_code(0).map(drop)
}

async fn locks(stand: &Stand) -> Result<Vec<Value>> {
    let list = stand.relay_command(&["lock", "ls", "--json"]).await?.expect_code(0)?.stdout;
    Ok(serde_json::from_str(&list)?)
}

/// Everything that a caller can have running: live streams, a download and an upload.
struct Busy {
    lives: Vec<Live>,
    /// How each of the two broke off, and after how long.
    transfers: JoinSet<Result<(&'static str, Instant, String)>>,
}

impl Busy {
    async fn start(place: &Place, token: &str) -> Result<Self> {
        let mut transfers = JoinSet::new();
        let (http, token_of) = (place.stand.http.clone(), token.to_owned());
        let id = format!("{:032x}", rand::random::<u128>());
        let down = place.stand.at(&format!("/sock/stream/{id}-d?bytes=9000000&step=1000&pause=20"));
        let up = place.stand.at(&format!("/sock/put/{id}"));
        let mut answer = http.stream(request("GET", &down, Some(token)).body(empty())?).await?;
        answer.body_mut().frame().await.context("no first piece")??;
        transfers.spawn(async move {
            loop {
                match answer.body_mut().frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Ok(("download", Instant::now(), error.to_string())),
                    None => anyhow::bail!("the download ended well"),
                }
            }
        });
        let body = pattern_body(9_000_000, 1000, Duration::from_millis(20));
        let upload = request("PUT", &up, Some(&token_of)).body(body)?;
        transfers.spawn(async move {
            let sent = http.send_patiently(upload, Duration::from_mins(1)).await;
            let told = match sent {
                Ok(answer) => answer.status.to_string(),
                Err(error) => error.to_string(),
            };
            Ok(("upload", Instant::now(), told))
        });
        let lives = place.one_of_each(token).await?;
        let arrived = async || place.upstream.arrived().contains_key(&id).then_some(());
        wait::until("the upload arrives", wait::SOON, arrived).await?;
        Ok(Self { lives, transfers })
    }

    async fn is_open(&mut self) -> Result<()> {
        for live in &mut self.lives {
            live.is_open().await?;
        }
        if let Some(ended) = self.transfers.try_join_next() {
            anyhow::bail!("a transfer ended: {:?}", ended??);
        }
        Ok(())
    }

    /// All of it is cut, counted from `order`; the upload is told `status`, if it is told anything.
    async fn ends(mut self, order: Instant, status: u16) -> Result<()> {
        for live in &mut self.lives {
            live.is_cut(wait::SOON).await?;
        }
        let took = order.elapsed();
        ensure!(took < AT_ONCE, "the last stream was cut after {took:?}");
        while let Some(ended) =
            wait::within("the end of transfers", wait::SOON, self.transfers.join_next()).await?
        {
            let (what, at, told) = ended??;
            let took = at.duration_since(order);
            ensure!(took < AT_ONCE, "the {what} broke off after {took:?}: {told}");
            ensure!(
                what == "download" || told.starts_with(&status.to_string()),
                "the {what} was told {told}"
            );
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_kind_of_lock_cuts_its_own_and_nothing_else() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let stand = &place.stand;
    let minutes = Duration::from_mins(10);
    let ada = place.mint.token("ada", minutes, &json!({ "client_id": "laptop" }))?;
    let bob = place.token("bob")?;
    let file = stand.path("token");
    std::fs::write(&file, format!("{ada}\n"))?;
    let id = token_id(&ada);
    // What is locked, whether bob is meant too, and what ada is told.
    let kinds: [(&[&str], bool, u16, &str); 12] = [
        (&["--user", "ada"], false, 401, "user corp/ada"),
        (&["--user", "corp/ada"], false, 401, "user corp/ada"),
        (&["--user", "sub-of-ada"], false, 401, "user corp/sub-of-ada"),
        (&["--client", "laptop"], false, 401, "client corp/laptop"),
        (&["--token", &id], false, 401, &format!("token {id}")),
        (&["--token-file", file.to_str().context("no text")?], false, 401, &format!("token {id}")),
        (&["--issuer", "corp"], true, 401, "issuer corp"),
        (&["--service", "sock"], true, 503, "service sock"),
        (&["--service", "pipe"], true, 200, "service pipe"),
        (&["--agent", "dc1"], true, 503, "agent dc1"),
        (&["--all"], true, 503, "everything"),
        (&["--user", "ada", "--ttl", "1h"], false, 401, "user corp/ada"),
    ];
    for (what, both, status, on) in kinds {
        say(&format!("lock add {}", what.join(" ")));
        let is_service = what[0] == "--service";
        let mut adas = Busy::start(&place, &ada).await?;
        let mut bobs = Busy::start(&place, &bob).await?;
        let order = Instant::now();
        let lock = lock(stand, what).await?;
        if is_service {
            for live in bobs.lives.iter_mut().chain(&mut adas.lives) {
                if live.is_tcp == (what[1] == "pipe") {
                    live.is_cut(wait::SOON).await?;
                    ensure!(order.elapsed() < AT_ONCE, "cut after {:?}", order.elapsed());
                } else {
                    live.is_open().await?;
                }
            }
        } else {
            adas.ends(order, status).await?;
            if both {
                bobs.ends(order, status).await?;
            } else {
                bobs.is_open().await?;
            }
        }
        let answer = stand.http.get(&stand.at("/sock/get/1"), Some(&ada)).await?.expect_status(status)?;
        if status == 401 {
            let challenge = answer.header("www-authenticate");
            ensure!(challenge.contains("invalid_token") && challenge.contains("locked"), "{challenge}");
            ensure!(answer.json()?["type"] == "urn:postern:locked", "{}", answer.text());
            stand.http.get(&stand.at("/.postern/services"), Some(&ada)).await?.expect_status(401)?;
        } else if status == 503 {
            ensure!(answer.json()?["type"] == "urn:postern:service-locked", "{}", answer.text());
            ensure!(!answer.header("retry-after").is_empty());
        }
        let of_bob = if both { status } else { 200 };
        stand.http.get(&stand.at("/sock/get/2"), Some(&bob)).await?.expect_status(of_bob)?;
        let list = stand.relay_command(&["lock", "ls"]).await?.expect_code(0)?.stdout;
        ensure!(list.contains(on) && list.contains(&lock) && list.contains("an incident"), "{list}");
        unlock(stand, &lock).await?;
        stand.http.get(&stand.at("/sock/get/3"), Some(&ada)).await?.expect_status(200)?;
        let cuts: Vec<_> =
            stand.audit()?.into_iter().filter(|l| l["event"] == "cut" && l["lock"] == *lock).collect();
        // Of each caller two WebSockets, a download and an upload, and two TCP connections.
        let expected = match (what, both) {
            (["--service", "sock"], _) => 8,
            (["--service", _], _) => 4,
            (_, true) => 12,
            (_, false) => 6,
        };
        ensure!(cuts.len() == expected, "{} cut, {expected} running: {cuts:?}", cuts.len());
    }

    say("the audit log has who did what, and every end says why");
    let uid = rustix::process::getuid().as_raw();
    for event in ["lock", "unlock"] {
        let lines = stand.wait_audit(kinds.len(), |line| line["event"] == event).await?;
        ensure!(lines.len() == kinds.len() && lines.iter().all(|line| line["uid"] == uid), "{lines:?}");
    }
    for cut in stand.wait_audit(1, |line| line["event"] == "cut").await? {
        let is_end = |line: &Value| line["event"] == "end" && line["request_id"] == cut["request_id"];
        let end = &stand.wait_audit(1, is_end).await?[0];
        ensure!(end["ended"] == "cut" || end["status"] == 401 || end["status"] == 503, "{end}");
        ensure!(end["reason"] == cut["reason"], "{end} {cut}");
    }

    say("a locked token's other signature is locked too");
    let other = twin(&ada)?;
    ensure!(other != ada && token_id(&other) == id);
    stand.http.get(&stand.at("/sock/get/4"), Some(&other)).await?.expect_status(200)?;
    let of_token = lock(stand, &["--token", &id]).await?;
    for text in [&other, &ada] {
        let answer = stand.http.get(&stand.at("/sock/get/5"), Some(text)).await?.expect_status(401)?;
        ensure!(answer.json()?["type"] == "urn:postern:locked", "{}", answer.text());
    }
    unlock(stand, &of_token).await?;

    say("what nothing bears is not locked");
    for what in [
        &["--service", "nowhere"][..],
        &["--agent", "nobody"],
        &["--issuer", "other"],
        &["--token", "not-an-id"],
        &["--token", &ada],
    ] {
        let mut args = vec!["lock", "add", "--reason", "x"];
        args.extend(what);
        stand.relay_command(&args).await?.expect_code(1)?;
    }
    stand.relay_command(&["lock", "rm", "00000000"]).await?.expect_code(1)?;
    ensure!(locks(stand).await?.is_empty());
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn nothing_slips_past_an_order_that_crosses_it() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let ada = place.token("ada")?;
    let opening = join_all((0..16).map(|_| async {
        let mut lives = Vec::new();
        // Until it is refused.
        while let Ok(live) = place.socket(&ada).await {
            lives.push(live);
        }
        lives
    }));
    let locking = async {
        let some = async || (place.upstream.open() > 50).then_some(());
        wait::until("streams are being opened", wait::SOON, some).await?;
        lock(&place.stand, &["--user", "ada"]).await?;
        anyhow::Ok(Instant::now())
    };
    let (opened, locked) = wait::within("the lock", wait::SOON * 2, join(opening, locking)).await?;
    let locked = locked?;
    let mut lives: Vec<_> = opened.into_iter().flatten().collect();
    say(&format!("{} streams were opened before the lock", lives.len()));
    for live in &mut lives {
        live.is_cut(wait::SOON).await?;
    }
    ensure!(locked.elapsed() < AT_ONCE, "the last one was cut {:?} after the lock", locked.elapsed());
    wait::until("the upstream is told", wait::SOON, async || (place.upstream.open() == 0).then_some(()))
        .await?;
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn locks_outlive_the_relay_and_end_in_time() -> Result<()> {
    let mut place = Place::start(Extra::default()).await?;
    let (ada, bob) = (place.token("ada")?, place.token("bob")?);
    let get = async |stand: &Stand, token: &str, status: u16| {
        stand.http.get(&stand.at("/sock/get/x"), Some(token)).await?.expect_status(status).map(drop)
    };
    say("made while a relay runs, kept over a restart and a kill");
    let of_ada = lock(&place.stand, &["--user", "ada"]).await?;
    for signal in [Signal::TERM, Signal::KILL] {
        place.stand.stop_relay(signal).await?;
        place.stand.start_relay().await?;
        get(&place.stand, &ada, 401).await?;
        place.stand.wait_status("/sock/get/x", &bob, 200, wait::SOON).await?;
    }

    say("made and taken away while none runs");
    place.stand.stop_relay(Signal::TERM).await?;
    let of_bob = lock(&place.stand, &["--user", "bob"]).await?;
    ensure!(locks(&place.stand).await?.len() == 2);
    unlock(&place.stand, &of_ada).await?;
    place.stand.relay_command(&["session", "ls"]).await?.expect_code(7)?;
    place.stand.start_relay().await?;
    get(&place.stand, &bob, 401).await?;
    place.stand.wait_status("/sock/get/x", &ada, 200, wait::SOON).await?;
    let offline =
        place.stand.wait_audit(1, |line| line["event"] == "lock" && line["lock"] == *of_bob).await?;
    ensure!(offline[0]["reason"] == "an incident" && offline[0]["uid"].is_u64(), "{offline:?}");

    say("a lock with a time ends by itself");
    let start = Instant::now();
    let short = lock(&place.stand, &["--user", "ada", "--ttl", "3s"]).await?;
    get(&place.stand, &ada, 401).await?;
    place.stand.wait_status("/sock/get/x", &ada, 200, Duration::from_secs(6)).await?;
    ensure!(start.elapsed() > Duration::from_secs(2), "over after {:?}", start.elapsed());
    place.stand.wait_audit(1, |line| line["event"] == "unlock" && line["lock"] == *short).await?;
    let left = locks(&place.stand).await?;
    ensure!(left.len() == 1 && left[0]["id"] == *of_bob, "{left:?}");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_session_list_says_whose_streams_there_are() -> Result<()> {
    let place = Place::start(Extra::default()).await?;
    let (ada, bob) = (place.token("ada")?, place.token("bob")?);
    let mut lives = vec![place.socket(&ada).await?, place.pipe(&bob).await?];
    for live in &mut lives {
        live.is_open().await?;
    }
    let list = place.stand.relay_command(&["session", "ls", "--json"]).await?.expect_code(0)?.stdout;
    ensure!(lives.iter().all(|live| !list.contains(&live.lease)), "a lease's id is shown: {list}");
    let list: Vec<Value> = serde_json::from_str(&list)?;
    ensure!(list.len() == 2, "{list:?}");
    for (user, service, protocol, live) in
        [("ada", "sock", "websocket", &lives[0]), ("bob", "pipe", "tcp", &lives[1])]
    {
        let row = list.iter().find(|row| row["user"] == user).context("not listed")?;
        ensure!(row["service"] == service && row["protocol"] == protocol && row["agent"] == "dc1", "{row}");
        ensure!(row["request_id"] == *live.request_id && row["issuer"] == "corp", "{row}");
        ensure!(row["subject"] == format!("sub-of-{user}") && row["address"] == "127.0.0.1", "{row}");
        ensure!(row["token"] == token_id(if user == "ada" { &ada } else { &bob }), "{row}");
        let life = row["until"].as_u64().zip(row["since"].as_u64()).map(|(until, since)| until - since);
        ensure!(life.is_some_and(|life| (290..=300).contains(&life)), "{row}");
        ensure!(row["bytes_in"].as_u64() > Some(8) && row["bytes_out"].as_u64() > Some(8), "{row}");
    }
    let shown = place.stand.relay_command(&["session", "ls"]).await?.expect_code(0)?.stdout;
    ensure!(shown.contains("corp/ada") && shown.contains("pipe"), "{shown}");
    drop(lives);
    wait::until("the list is empty", wait::SOON, async || {
        let list = place.stand.relay_command(&["session", "ls", "--json"]).await.ok()?.stdout;
        (list.trim() == "[]").then_some(())
    })
    .await?;
    place.stand.passed();
    Ok(())
}
