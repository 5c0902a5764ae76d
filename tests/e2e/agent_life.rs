//! Who is suspended or removed is out within a second and stays out, whichever way it tries; one replica goes without the other; and no
//! invite lets two in.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::process::Signal;
use postern_tests::replica::Replica;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;
use tokio::task::JoinSet;

const PATH: &str = "/billing/v1/invoices/7";
/// From an order to its effect (security.md, 16).
const CUT: Duration = Duration::from_secs(1);
/// A suspended agent asks every 15 s.
const BACK: Duration = Duration::from_secs(30);

async fn listed(stand: &Stand) -> Result<Value> {
    let list = stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?;
    Ok(serde_json::from_str(&list.stdout)?)
}

/// The instances of `dc1`, in the order in which they joined.
async fn instances(stand: &Stand) -> Result<Vec<String>> {
    let list = listed(stand).await?;
    let rows = list["agents"].as_array().context("no agents")?;
    let ids = rows.iter().map(|row| row["instance"].as_str().map(str::to_owned));
    ids.collect::<Option<_>>().context("no instance")
}

/// How many audit lines of this event give a reason that contains `text`.
fn reasons(stand: &Stand, event: &str, text: &str) -> Result<usize> {
    let is_one = |line: &&Value| {
        line["event"] == event && line["reason"].as_str().is_some_and(|reason| reason.contains(text))
    };
    Ok(stand.audit()?.iter().filter(is_one).count())
}

/// Waits until there is one more of them.
async fn one_more(stand: &Stand, event: &str, text: &str, limit: Duration) -> Result<()> {
    let before = reasons(stand, event, text)?;
    let what = format!("one more {event} that says {text:?}");
    wait::until(&what, limit, async || reasons(stand, event, text).ok().filter(|now| *now > before)).await?;
    Ok(())
}

#[tokio::test]
async fn a_suspended_agent_is_cut_and_stays_out_until_it_is_resumed() -> Result<()> {
    let mut stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(200)?;
    stand.wait_audit(2, |line| line["event"] == "tunnel-open").await?;

    say("what runs is cut within a second");
    let (held, url, bearer) = (stand.http.clone(), stand.at("/echo/hold"), token.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { (held.get(&url, Some(&bearer)).await, Instant::now()) });
    wait::until("it is held", wait::SOON, async || (stand.echo.waiting() == 1).then_some(())).await?;
    let order = Instant::now();
    stand.relay_command(&["agent", "suspend", "dc1", "--reason", "laptop stolen"]).await?.expect_code(0)?;
    let (cut, at) = wait::within("it is cut", wait::SOON, tasks.join_next()).await?.context("no task")??;
    let took = at.saturating_duration_since(order);
    say(&format!("cut {took:?} after `agent suspend` had begun"));
    ensure!(took < CUT, "it lived on for {took:?}");
    ensure!(cut.as_ref().map_or(true, |answer| answer.status.is_server_error()), "{cut:?}");
    let refused = stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(503)?;
    ensure!(refused.json()?["type"] == "urn:postern:suspended", "{}", refused.text());
    ensure!(refused.text().contains("ask them") && !refused.text().contains("stolen"), "{}", refused.text());
    let closed = stand.wait_audit(2, |line| line["event"] == "tunnel-closed").await?;
    let why = |line: &Value| line["reason"] == "the agent is suspended: laptop stolen";
    ensure!(closed.iter().all(why), "{closed:?}");
    stand.agent()?.wait_line("laptop stolen", wait::SOON).await?;

    say("the list says so, and the audit log whose order it was");
    let row = &listed(&stand).await?["agents"][0];
    ensure!(row["suspended"]["reason"] == "laptop stolen" && row["tunnels"] == Value::Array(vec![]), "{row}");
    ensure!(row["last_seen"].is_u64() && row["certificate"]["epoch"].is_u64(), "{row}");
    let shown = stand.relay_command(&["agent", "ls"]).await?.expect_code(0)?;
    ensure!(shown.stdout.contains("suspended") && shown.stderr.contains("laptop stolen"), "{shown:?}");
    let is_order = |line: &Value| line["event"] == "admin" && line["action"] == "agent suspend";
    let orders = stand.wait_audit(1, is_order).await?;
    let uid = rustix::process::getuid().as_raw();
    ensure!(orders[0]["uid"] == uid && orders[0]["reason"] == "laptop stolen", "{orders:?}");

    say("new handshakes are refused: of the agent that runs, of one that starts, and by a relay that starts");
    one_more(&stand, "tunnel-refused", "is suspended", BACK).await?;
    stand.stop_agent(Signal::TERM).await?;
    ensure!(wait::within("a start", wait::SOON * 3, stand.start_agent()).await?.is_err(), "it became ready");
    ensure!(stand.agent()?.is_running(), "it gave up, and would not be back once it is resumed");
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;
    one_more(&stand, "tunnel-refused", "is suspended", BACK).await?;
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(503)?;

    say("resumed, where no relay runs, it is back by itself when one does");
    stand.stop_relay(Signal::TERM).await?;
    stand.relay_command(&["agent", "resume", "dc1/nobody"]).await?.expect_code(1)?;
    stand.relay_command(&["agent", "resume", "dc1"]).await?.expect_code(0)?;
    let resumed = stand.audit()?.into_iter().rfind(|line| line["action"] == "agent resume");
    ensure!(resumed.is_some_and(|line| line["uid"] == uid), "the order is not in the log");
    stand.start_relay().await?;
    stand.wait_status(PATH, &token, 200, BACK).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn neither_renewal_nor_recovery_brings_a_suspended_agent_back() -> Result<()> {
    let agents = "cert_ttl = \"8s\"\nrecover = \"1h\"".to_owned();
    let mut stand = Stand::start_with(Extra { agents, ..Extra::default() }).await?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_audit(1, |line| line["event"] == "certificate-renewed").await?;
    stand
        .relay_command(&["agent", "suspend", "dc1", "--reason", "audit of the site"])
        .await?
        .expect_code(0)?;
    let renewals = |stand: &Stand| {
        stand.audit().map(|lines| lines.iter().filter(|line| line["event"] == "certificate-renewed").count())
    };
    let before = renewals(&stand)?;

    say("its certificate ends, and it asks for the next one");
    one_more(&stand, "recovery", "is suspended", BACK * 2).await?;
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(503)?;
    say("and again after a restart of the relay");
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;
    one_more(&stand, "recovery", "is suspended", BACK * 2).await?;
    ensure!(renewals(&stand)? == before, "a certificate was renewed for a suspended agent");
    let granted = stand
        .audit()?
        .iter()
        .filter(|line| line["event"] == "recovery" && line["outcome"] == "granted")
        .count();
    ensure!(granted == 0, "{granted} recoveries were granted");

    say("resumed it recovers by itself");
    stand.relay_command(&["agent", "resume", "dc1"]).await?.expect_code(0)?;
    stand.wait_status(PATH, &token, 200, BACK * 2).await?;
    stand.wait_audit(1, |line| line["event"] == "recovery" && line["outcome"] == "granted").await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn one_replica_is_cut_without_the_other() -> Result<()> {
    let stand = Stand::start().await?;
    let token = stand.issuer.token("ada").await?;
    let replica = Replica::new(&stand, "second")?;
    let invite = stand.invite("dc1", &[]).await?;
    replica.join(&invite).await?.expect_code(0)?;
    let _second = replica.run()?;
    stand.wait_audit(4, |line| line["event"] == "tunnel-open").await?;
    let [first, second] = &instances(&stand).await?[..] else { anyhow::bail!("not two instances") };

    say("a request every 20 ms while the first is suspended: all are answered");
    let (http, url, bearer) = (stand.http.clone(), stand.at(PATH), token.clone());
    let mut calls = JoinSet::new();
    calls.spawn(async move {
        for call in 0..100 {
            let answer = http.get(&url, Some(&bearer)).await?.expect_status(200);
            answer.with_context(|| format!("call {call}"))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    });
    let one = format!("dc1/{first}");
    stand.relay_command(&["agent", "suspend", &one, "--reason", "new disk"]).await?.expect_code(0)?;
    let closed = stand.wait_audit(2, |line| line["event"] == "tunnel-closed").await?;
    ensure!(closed.iter().all(|line| line["instance"] == **first), "{closed:?}");
    wait::within("the calls", wait::SOON * 2, calls.join_next()).await?.context("no calls")???;
    let list = listed(&stand).await?;
    let up = |row: &Value| row["tunnels"].as_array().is_some_and(|tunnels| !tunnels.is_empty());
    for row in list["agents"].as_array().context("no agents")? {
        let is_out = row["instance"] == **first;
        ensure!(row["suspended"].is_object() == is_out && up(row) != is_out, "{row}");
    }

    say("the other is removed for good, and then there is none");
    stand.relay_command(&["agent", "remove", &format!("dc1/{second}")]).await?.expect_code(0)?;
    stand.wait_status(PATH, &token, 503, CUT).await?;

    say("suspended by itself and by its name, it is back when both are resumed");
    stand.relay_command(&["agent", "suspend", "dc1"]).await?.expect_code(0)?;
    let whole = &listed(&stand).await?["suspensions"];
    let is_told = |row: &Value| row["who"] == "dc1" && row["reason"] == "no reason given";
    ensure!(whole.as_array().is_some_and(|rows| rows.iter().any(is_told)), "{whole}");
    let resumed = stand.relay_command(&["agent", "resume", "dc1"]).await?.expect_code(0)?;
    ensure!(resumed.stderr.contains(&format!("still suspended: {one}")), "{resumed:?}");
    stand.relay_command(&["agent", "resume", &one]).await?.expect_code(0)?;
    stand.wait_status(PATH, &token, 200, BACK).await?;
    ensure!(instances(&stand).await? == [first.clone()], "the removed one is still listed");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn three_invites_let_three_of_ten_agents_in() -> Result<()> {
    let stand = Stand::relay_only(Extra::default()).await?;
    let mut invites = Vec::new();
    for _ in 0..3 {
        invites.push(stand.invite("dc1", &[]).await?);
    }
    let mut racers = JoinSet::new();
    for racer in 0..10 {
        let replica = Replica::new(&stand, &format!("racer-{racer}"))?;
        let invite = invites[racer % 3].clone();
        racers.spawn(async move { replica.join(&invite).await.map(|output| (racer % 3, output)) });
    }
    let mut winners = Vec::new();
    while let Some(ended) = wait::within("all have joined", wait::SOON * 4, racers.join_next()).await? {
        let (invite, output) = ended??;
        if output.code == 0 {
            winners.push(invite);
        } else {
            ensure!(output.stderr.contains("it was used already"), "{output:?}");
        }
    }
    winners.sort_unstable();
    ensure!(winners == [0, 1, 2], "the invites that let somebody in: {winners:?}");
    ensure!(instances(&stand).await?.len() == 3, "not three are enrolled");
    let joins = stand.wait_audit(10, |line| line["event"] == "join").await?;
    let granted = joins.iter().filter(|line| line["outcome"] == "granted").count();
    ensure!((joins.len(), granted) == (10, 3), "{joins:?}");
    stand.passed();
    Ok(())
}
