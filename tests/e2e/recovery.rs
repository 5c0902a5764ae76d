//! An agent whose certificate ended while it was off or asleep comes back by itself with its newest key, over QUIC or TCP, also where the
//! last renewal's answer was lost. A copy with an older key suspends the instance, and off for too long it says what to do.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, Program, Signal, binary, command};
use postern_tests::replica::Replica;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::{clock, wait};
use postern_wire::tls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

const PATH: &str = "/billing/v1/invoices/7";
/// Renewed every four seconds.
const SHORT: &str = "cert_ttl = \"8s\"";
/// A suspended agent asks every 15 s.
const BACK: Duration = Duration::from_secs(30);

/// When the certificate in an agent's state directory ends.
fn end(state: &Path) -> Result<SystemTime> {
    let pem = std::fs::read(state.join("identity.pem"))?;
    let leaf = CertificateDer::pem_slice_iter(&pem).next().context("no certificate")??;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(tls::not_after(&leaf)?)?))
}

/// Waits until that is over.
async fn ended(state: &Path) -> Result<()> {
    let end = end(state)? + Duration::from_secs(1);
    wait::until("the certificate has ended", BACK, async || (SystemTime::now() > end).then_some(())).await
}

fn is_recovery(line: &Value, outcome: &str) -> bool {
    line["event"] == "recovery" && line["outcome"] == outcome
}

fn renewals(stand: &Stand) -> Result<usize> {
    Ok(stand.audit()?.iter().filter(|line| line["event"] == "certificate-renewed").count())
}

/// Waits for one more renewal.
async fn renewed(stand: &Stand) -> Result<()> {
    let before = renewals(stand)?;
    stand.wait_audit(before + 1, |line| line["event"] == "certificate-renewed").await.map(drop)
}

/// A stand and one agent that joined `by` ago and was switched off; the relay runs again, and it is today.
async fn off_since(by: &str) -> Result<(Stand, Replica)> {
    let mut stand = Stand::relay_only(Extra::default()).await?;
    stand.stop_relay(Signal::TERM).await?;
    // What was made today is not of those days.
    std::fs::remove_dir_all(stand.path("relay"))?;
    std::fs::remove_file(stand.path("audit.jsonl"))?;
    stand.relay_env = clock::off(by)?;
    let mut init = command(binary("postern-relay")?, ["-c"]);
    init.arg(stand.path("relay.toml")).arg("init").envs(clock::off(by)?);
    process::run(init, BACK).await?.expect_code(0)?;
    stand.start_relay().await?;
    let mut replica = Replica::new(&stand, "traveller")?;
    replica.env = clock::off(by)?;
    replica.join(&stand.invite("dc1", &[]).await?).await?.expect_code(0)?;
    let mut agent = replica.run()?;
    stand.wait_audit(1, |line| line["event"] == "tunnel-open").await?;
    agent.stop(Signal::TERM).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.relay_env = Vec::new();
    replica.env = Vec::new();
    stand.start_relay().await?;
    Ok((stand, replica))
}

#[tokio::test]
async fn off_for_six_days_it_comes_back_by_itself_and_serves() -> Result<()> {
    let (stand, replica) = off_since("-6d").await?;
    ensure!(end(&stand.path("traveller"))? < SystemTime::now() - Duration::from_hours(4 * 24));
    let token = stand.issuer.token("ada").await?;
    let mut agent = replica.run()?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    agent.wait_line("has a certificate again", wait::SOON).await?;
    ensure!(end(&stand.path("traveller"))? > SystemTime::now() + Duration::from_hours(23));
    ensure!(!stand.path("traveller/next.key").exists(), "the next key is the identity's own now");
    let lines = stand.audit()?;
    let count = |outcome: &str| lines.iter().filter(|line| is_recovery(line, outcome)).count();
    ensure!((count("granted"), count("refused")) == (1, 0), "{lines:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn off_for_eight_days_it_says_what_to_do_and_an_invite_helps() -> Result<()> {
    let (stand, replica) = off_since("-193h").await?;
    let token = stand.issuer.token("ada").await?;
    say("it ends with the advice, for systemd and whoever watches it to see");
    let mut agent = replica.run()?;
    let status = agent.wait_exit(wait::SOON).await?;
    let said = agent.log_text();
    ensure!(status.code() == Some(1), "{status}: {said}");
    for advice in ["agents.recover", "agent invite dc1", "postern-agent join"] {
        ensure!(said.contains(advice), "{advice}: {said}");
    }
    let refused = stand.wait_audit(1, |line| is_recovery(line, "refused")).await?;
    ensure!(refused[0]["agent"] == "dc1" && refused[0]["instance"].is_string(), "{refused:?}");
    ensure!(stand.audit()?.iter().filter(|line| is_recovery(line, "granted")).count() == 0);
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(503)?;

    say("which works, without --force: what is replaced had ended");
    replica.join(&stand.invite("dc1", &[]).await?).await?.expect_code(0)?;
    let _agent = replica.run()?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_copy_with_an_older_key_suspends_the_instance() -> Result<()> {
    let extra = Extra { agents: SHORT.to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    say("a copy is made; the agent renews twice after that, and is switched off");
    let (state, copy) = (stand.path("agent"), stand.path("copy"));
    std::fs::create_dir(&copy)?;
    std::fs::copy(state.join("identity.pem"), copy.join("identity.pem"))?;
    renewed(&stand).await?;
    renewed(&stand).await?;
    stand.stop_agent(Signal::TERM).await?;
    ended(&copy).await?;

    say("the copy asks: nobody can tell which of the two is right");
    let mut thief = Replica::new(&stand, "copy")?;
    thief.env = Vec::new();
    let mut thief = thief.run()?;
    let status = thief.wait_exit(BACK).await?;
    let said = thief.log_text();
    ensure!(status.code() == Some(1) && said.contains("older key"), "{status}: {said}");
    let suspended = stand.wait_audit(1, |line| line["event"] == "agent-suspended").await?;
    ended(&state).await?;
    let attempt = wait::within("a start", wait::SOON * 3, stand.start_agent()).await?;
    ensure!(attempt.is_err(), "a suspended agent became ready");
    ensure!(stand.agent()?.is_running(), "it would not be back once it is resumed");
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(503)?;

    say("an operator decides");
    let instance = suspended[0]["instance"].as_str().context("no instance")?;
    stand.agent()?.wait_line(&format!("agent resume dc1, or dc1/{instance}"), wait::SOON).await?;
    stand.relay_command(&["agent", "resume", &format!("dc1/{instance}")]).await?.expect_code(0)?;
    stand.wait_status(PATH, &token, 200, BACK).await?;
    stand.passed();
    Ok(())
}

/// Kills the agent when it has asked for a renewal and the relay, which stands still, has not answered.
async fn lose_an_answer(stand: &mut Stand) -> Result<()> {
    let metrics = Stand::metrics_url(stand.agent()?).await?;
    let (state, next) = (stand.path("agent"), stand.path("agent/next.key"));
    for _ in 0..5 {
        wait::until("no answer is awaited", BACK, async || (!next.exists()).then_some(())).await?;
        // Half of the 22 s from its first second to its last, less a moment.
        let soon = end(&state)? - Duration::from_millis(11_700);
        wait::until("a renewal is near", BACK, async || (SystemTime::now() > soon).then_some(())).await?;
        let before = renewals(stand)?;
        stand.relay()?.signal(Signal::STOP)?;
        wait::until("the next key is on disk", BACK, async || next.exists().then_some(())).await?;
        let text = stand.http.get(&format!("{metrics}/metrics"), None).await?.text();
        if text.contains("postern_agent_tunnels{link=\"quic\"} 2") {
            // Both tunnels look well: the one that asks does one thing after the other, and has sent it once it misses an answer.
            wait::until("the agent misses the answer", wait::SOON, async || {
                let answer = stand.http.get(&format!("{metrics}/readyz"), None).await.ok()?;
                (answer.status == 503).then_some(())
            })
            .await?;
            stand.stop_agent(Signal::KILL).await?;
            stand.relay()?.signal(Signal::CONT)?;
            stand.wait_audit(before + 1, |line| line["event"] == "certificate-renewed").await?;
            ensure!(next.exists(), "the key whose certificate was lost is gone");
            return Ok(());
        }
        say("too slow to be sure that it has asked; once more");
        stand.relay()?.signal(Signal::CONT)?;
    }
    anyhow::bail!("the agent could not be met between question and answer")
}

#[tokio::test]
async fn a_lost_answer_suspends_nobody() -> Result<()> {
    let extra = Extra { agents: "cert_ttl = \"20s\"".to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    lose_an_answer(&mut stand).await?;
    say("its certificate ends before it starts again: the key that it asked for is the newest");
    ended(&stand.path("agent")).await?;
    stand.start_agent().await?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    let lines = stand.wait_audit(1, |line| is_recovery(line, "granted")).await?;
    ensure!(lines.len() == 1, "{lines:?}");
    let refused = |line: &&Value| line["event"] == "agent-suspended" || is_recovery(line, "refused");
    let refused: Vec<_> = stand.audit()?.into_iter().filter(|line| refused(&line)).collect();
    ensure!(refused.is_empty(), "{refused:?}");
    ensure!(!stand.path("agent/next.key").exists());
    say("and it goes on renewing");
    renewed(&stand).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn asleep_for_longer_than_its_certificate_lives_it_wakes_and_serves() -> Result<()> {
    let extra = Extra { agents: SHORT.to_owned(), ..Extra::default() };
    let mut stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    stand.agent()?.signal(Signal::STOP)?;
    // Its tunnels are gone when it wakes.
    stand.stop_relay(Signal::TERM).await?;
    ended(&stand.path("agent")).await?;
    stand.start_relay().await?;
    stand.agent()?.signal(Signal::CONT)?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.wait_audit(1, |line| is_recovery(line, "granted")).await?;
    stand.passed();
    Ok(())
}

/// As a firewall without UDP leaves it, and with the relay away for a while.
#[tokio::test]
async fn over_tcp_it_waits_for_its_relay() -> Result<()> {
    let agent_tables = "[tunnel]\ntransport = \"tcp\"\n".to_owned();
    let extra = Extra { agents: SHORT.to_owned(), agent_tables, ..Extra::default() };
    let mut stand = Stand::relay_only(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let replica = Replica::new(&stand, "second")?;
    replica.join(&stand.invite("dc1", &[]).await?).await?.expect_code(0)?;
    stand.stop_relay(Signal::TERM).await?;
    ended(&stand.path("second")).await?;
    let mut agent = replica.run()?;
    agent.wait_line("not recovered yet", wait::SOON).await?;
    stand.start_relay().await?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.wait_audit(1, |line| is_recovery(line, "granted")).await?;
    let tunnels = stand.wait_audit(1, |line| line["event"] == "tunnel-open").await?;
    ensure!(tunnels.iter().all(|line| line["link"] == "tcp"), "{tunnels:?}");
    stand.passed();
    Ok(())
}

/// What the agent's certificate lives, four minutes are many of; and its relay's lives no longer.
async fn with_a_clock_off(by: &str, says: &str) -> Result<()> {
    let extra = Extra { agents: "cert_ttl = \"20s\"".to_owned(), ..Extra::default() };
    let stand = Stand::relay_only(extra).await?;
    let token = stand.issuer.token("ada").await?;
    let mut replica = Replica::new(&stand, "second")?;
    replica.env = clock::off(by)?;
    replica.join(&stand.invite("dc1", &[]).await?).await?.expect_code(0)?;
    let mut agent: Program = replica.run()?;
    stand.wait_status(PATH, &token, 200, BACK).await?;
    say(&agent.wait_line(says, wait::SOON).await?);
    let before = renewals(&stand)?;
    // One each ten seconds: by the relay's clock, not by its own.
    stand.wait_audit(before + 1, |line| line["event"] == "certificate-renewed").await?;
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(200)?;
    let all = stand
        .audit()?
        .iter()
        .filter(|l| l["event"] == "certificate-renewed" || is_recovery(l, "granted"))
        .count();
    ensure!(all <= before + 4, "{all} certificates in little more than ten seconds");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_clock_four_minutes_ahead_is_tolerated_and_said() -> Result<()> {
    with_a_clock_off("+4m", "ahead of the relay's").await
}

#[tokio::test]
async fn a_clock_four_minutes_behind_is_tolerated_and_said() -> Result<()> {
    with_a_clock_off("-4m", "behind the relay's").await
}
