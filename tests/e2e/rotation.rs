//! Issuing CA and root are replaced while agents work: nobody re-enrols, no request notices, and what was stolen of the authority before opens
//! nothing any more. An authority of the operator's own, and certificates that are made elsewhere, change in the same way.

mod made;
mod others;
pub(crate) mod thief;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::agents_ca::{AgentsCa, Side};
use postern_tests::http::Http;
use postern_tests::process::{Output, Signal};
use postern_tests::replica::Replica;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use postern_wire::tls::{self, Roots};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATH: &str = "/billing/v1/invoices/7";
const EVERY: Duration = Duration::from_millis(100);

/// Callers, a new one every 100 ms on a connection of its own, however long the others take; and what went wrong.
struct Load {
    stop: CancellationToken,
    start: Instant,
    caller: JoinSet<(u32, Duration, Vec<String>)>,
}

impl Load {
    async fn start(stand: &Stand) -> Result<Self> {
        let (url, roots) = (stand.at(PATH), stand.pki.roots()?);
        // One that outlives the longest of these tests.
        stand.issuer.access_ttl(Duration::from_hours(2)).await?;
        let token = stand.issuer.token("ada").await?;
        let (stop, mut caller) = (CancellationToken::new(), JoinSet::new());
        let until = stop.clone();
        let start = Instant::now();
        caller.spawn(async move {
            let (mut calls, mut slowest, mut failed) = (JoinSet::new(), Duration::ZERO, Vec::new());
            // Those that were missed are made up for.
            let mut ticks = tokio::time::interval(EVERY);
            let mut count = 0;
            loop {
                tokio::select! {
                    biased;
                    _ = ticks.tick(), if !until.is_cancelled() => {
                        count += 1;
                        calls.spawn(call(count, url.clone(), roots.clone(), token.clone()));
                    }
                    Some(ended) = calls.join_next() => match ended {
                        Ok(Ok(took)) => slowest = slowest.max(took),
                        Ok(Err(error)) => failed.push(format!("{:.1?} after the start: {error:#}", start.elapsed())),
                        Err(error) => failed.push(error.to_string()),
                    },
                    else => break,
                }
            }
            (count, slowest, failed)
        });
        Ok(Self { stop, start, caller })
    }

    /// None failed.
    async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        let took = self.start.elapsed();
        let (calls, slowest, failed) = self.caller.join_next().await.context("no caller")??;
        say(&format!("{calls} calls in {took:.0?}, the slowest {slowest:.1?}, {} failed", failed.len()));
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        ensure!(u128::from(calls) * 105 > took.as_millis(), "{calls} calls in {took:?}");
        Ok(())
    }
}

/// How long it took.
async fn call(number: u32, url: String, roots: RootCertStore, token: String) -> Result<Duration> {
    let begun = Instant::now();
    let answer = Http::h1(roots)?.get(&url, Some(&token)).await.with_context(|| format!("call {number}"))?;
    answer.expect_status(200).with_context(|| format!("call {number}"))?;
    Ok(begun.elapsed())
}

async fn authority(stand: &Stand) -> Result<Value> {
    let shown = stand.relay_command(&["ca", "show", "--json"]).await?.expect_code(0)?;
    Ok(serde_json::from_str(&shown.stdout)?)
}

async fn rotate(stand: &Stand, more: &[&str]) -> Result<Output> {
    let mut args = vec!["ca", "rotate"];
    args.extend(more);
    stand.relay_command(&args).await
}

/// Waits until every instance has a certificate of the authority in force; gives its epoch.
async fn all_moved(stand: &Stand) -> Result<u64> {
    wait::until("everybody has moved", wait::SOON, async || {
        let shown = authority(stand).await.ok()?;
        shown["behind"].as_array()?.is_empty().then_some(shown["epoch"].as_u64()?)
    })
    .await
}

/// The certificates of an agent's identity: leaf, issuing CA and so on; the root is the last.
fn chain(identity: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(identity)?;
    Ok(CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?)
}

fn count(stand: &Stand, event: &str) -> Result<usize> {
    Ok(stand.audit()?.iter().filter(|line| line["event"] == event).count())
}

/// What a thief took of the relay's state: the issuing key, and what is public.
fn steal(stand: &Stand) -> Result<AgentsCa> {
    let loot = stand.path("loot");
    std::fs::create_dir_all(loot.join("ca"))?;
    for name in ["issuing.pem", "issuing.key", "root.pem"] {
        std::fs::copy(stand.path("relay/ca").join(name), loot.join("ca").join(name))?;
    }
    AgentsCa::of(&loot)
}

/// With sockets that outlive the relay, so that callers wait for it while it restarts.
async fn stand(ttl: &str) -> Result<Stand> {
    let extra = Extra { agents: format!("cert_ttl = \"{ttl}\""), ..Extra::default() };
    let mut stand = Stand::relay_only(extra).await?;
    stand.stop_relay(Signal::TERM).await?;
    stand.hold_sockets()?;
    stand.start_relay().await?;
    let invite = stand.invite("dc1", &[]).await?;
    stand.join(&invite).await?.expect_code(0)?;
    stand.start_agent().await?;
    stand.wait_audit(2, |line| line["event"] == "tunnel-open").await?;
    Ok(stand)
}

#[tokio::test]
async fn authorities_are_replaced_under_load_and_nobody_enrols_again() -> Result<()> {
    let mut stand = stand("6s").await?;
    let identity = stand.path("agent/identity.pem");
    let load = Load::start(&stand).await?;
    let renewals = |stand: &Stand| count(stand, "certificate-renewed");
    wait::until("two renewals", wait::SOON, async || renewals(&stand).ok().filter(|n| *n >= 2)).await?;

    say("two new issuing CAs; a thief has the key of the first");
    let thief = steal(&stand)?;
    let mut epochs = vec![1];
    for _ in 0..2 {
        let told = rotate(&stand, &["--json"]).await?.expect_code(0)?;
        let told: Value = serde_json::from_str(&told.stdout)?;
        let epoch = told["epoch"].as_u64().context("no epoch")?;
        ensure!(epochs.last().is_some_and(|last| *last < epoch) && told["told"] == 2, "{told}");
        ensure!(all_moved(&stand).await? == epoch, "{epoch}");
        epochs.push(epoch);
        wait::until("the agent has it on disk", wait::SOON, async || {
            chain(&identity).ok().filter(|chain| tls::epoch(chain) == epoch)
        })
        .await?;
    }

    say("the stolen key signs a certificate for an instance that is enrolled: the relay refuses it");
    let list = stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    let instance = list["agents"][0]["instance"].as_str().context("no instance")?.to_owned();
    let forged = thief.identity(&format!("spiffe://example.com/agent/dc1/{instance}"), Side::Agent)?;
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let config = tls::tunnel_config(forged, &[thief.root()], "example.com".parse()?, 0, tls::ALPN_TUNNEL)?;
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
    let config = quinn::ClientConfig::new(Arc::new(config));
    let address = ([127, 0, 0, 1], stand.port).into();
    let connection = endpoint.connect_with(config, address, "relay")?.await?;
    wait::within("the relay ends it", wait::SOON, connection.closed()).await?;
    let refused = |line: &Value| {
        line["event"] == "tunnel-refused"
            && line["reason"].as_str().is_some_and(|why| why.contains("replaced"))
    };
    stand.wait_audit(1, refused).await?;

    say("a new root; an installation that is off holds the old one");
    let sleeper = Replica::new(&stand, "sleeper")?;
    let invite = stand.invite("dc1", &[]).await?;
    sleeper.join(&invite).await?.expect_code(0)?;
    let old_invite = stand.invite("dc1", &[]).await?;
    let old_root = chain(&identity)?.pop().context("no root")?;
    let rotated = rotate(&stand, &["--root"]).await?.expect_code(0)?;
    ensure!(rotated.stderr.contains("root.key: move it to a safe place"), "{}", rotated.stderr);
    wait::until("the agent has moved to the new root", wait::SOON, async || {
        chain(&identity).ok().filter(|chain| chain.last() != Some(&old_root) && tls::epoch(chain) > epochs[2])
    })
    .await?;
    let shown = authority(&stand).await?;
    ensure!(shown["overlap"] == true && shown["behind"].as_array().is_some_and(|b| b.len() == 1), "{shown}");
    let fourth = shown["epoch"].as_u64().context("no epoch")?;
    let text = stand.relay_command(&["ca", "show"]).await?.expect_code(0)?.stdout;
    ensure!(
        text.contains(&format!("1 of 2 agent instance(s) have not moved to epoch {fourth} yet")),
        "{text}"
    );

    let metrics = Stand::metrics_url(stand.relay()?).await?;
    let ends = stand.http.get(&format!("{metrics}/metrics"), None).await?.text();
    for certificate in ["root", "old_root", "issuing"] {
        let line = format!("postern_relay_ca_end_seconds{{certificate=\"{certificate}\"}} ");
        ensure!(ends.contains(&line), "no {line}:\n{ends}");
    }

    say("an invite to the old root is good while that is believed, and so is a restart of the relay");
    let late = Replica::new(&stand, "late")?;
    late.join(&old_invite).await?.expect_code(0)?;
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;
    stand.wait_audit(4, |line| line["event"] == "tunnel-open").await?;
    let early = rotate(&stand, &["--finish"]).await?;
    ensure!(early.code == 1 && early.stderr.contains("1 instance(s) have not moved"), "{early:?}");
    ensure!(rotate(&stand, &["--root"]).await?.stderr.contains("--finish"), "one root at a time");

    say("the installation that was off comes back, moves, and the old root goes");
    let mut woken = sleeper.run()?;
    ensure!(all_moved(&stand).await? == fourth);
    woken.stop(Signal::TERM).await?;
    let opened = count(&stand, "tunnel-open")?;
    rotate(&stand, &["--finish"]).await?.expect_code(0)?;
    ensure!(authority(&stand).await?["overlap"] == false);
    let renewed = renewals(&stand)?;
    wait::until("two renewals more", wait::SOON, async || {
        renewals(&stand).ok().filter(|n| *n >= renewed + 2)
    })
    .await?;
    load.end().await?;
    say(&format!("{} tunnels came anew", count(&stand, "tunnel-open")? - opened));
    ensure!(count(&stand, "join")? == 3, "nobody enrolled again");

    say("a restarted agent has what it needs on its disk");
    stand.stop_agent(Signal::TERM).await?;
    stand.start_agent().await?;
    let token = stand.issuer.token("ada").await?;
    stand.http.get(&stand.at(PATH), Some(&token)).await?.expect_status(200)?;

    say("and every rotation is in the audit log, with who did it");
    let rotations = stand.audit()?.into_iter().filter(|line| {
        line["event"] == "admin"
            && line["action"].as_str().is_some_and(|action| action.starts_with("ca rotate"))
    });
    let audited: Vec<_> = rotations.map(|line| (line["epoch"].as_u64(), line["uid"].is_u64())).collect();
    ensure!(
        audited == [epochs[1], epochs[2], fourth, fourth].map(|epoch| (Some(epoch), true)),
        "{audited:?}"
    );
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_impostor_with_the_old_issuing_ca_is_no_relay_any_more() -> Result<()> {
    let mut stand = Stand::start().await?;
    let thief = steal(&stand)?;
    say("rotated where no relay runs; the agent sees it when it comes");
    stand.stop_relay(Signal::TERM).await?;
    rotate(&stand, &[]).await?.expect_code(0)?;
    stand.start_relay().await?;
    let epoch = all_moved(&stand).await?;
    stand.wait_audit(1, |line| line["event"] == "certificate-renewed").await?;
    stand.stop_relay(Signal::TERM).await?;

    say("the thief takes the relay's place");
    let identity = thief.identity("spiffe://example.com/relay/relay", Side::Relay)?;
    let config = tls::relay_config(identity, Roots::new(&[thief.root()])?, &[tls::ALPN_TUNNEL])?;
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config)?;
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let impostor = quinn::Endpoint::server(config, ([127, 0, 0, 1], stand.port).into())?;
    let listening = impostor.clone();
    let mut took = JoinSet::new();
    took.spawn(async move {
        while let Some(coming) = listening.accept().await {
            // Whoever takes the impostor for its relay ends this task.
            if let Ok(connection) = coming.await {
                return Some(connection);
            }
        }
        None
    });
    let why = format!("its issuing CA has epoch 1, and this agent has seen epoch {epoch}");
    stand.agent()?.wait_line(&why, Duration::from_secs(40)).await?;
    impostor.close(0_u32.into(), b"");
    let victim = took.join_next().await.context("no impostor")??;
    ensure!(victim.is_none(), "the agent took the impostor for its relay");
    drop(impostor);
    // Its socket goes with a task of the library's.
    let port = stand.port;
    wait::until("the port is free again", wait::SOON, async || {
        std::net::UdpSocket::bind(("127.0.0.1", port)).ok().map(drop)
    })
    .await?;

    say("the real one has its agent back, restarted or not");
    stand.stop_agent(Signal::TERM).await?;
    stand.start_relay().await?;
    stand.start_agent().await?;
    let token = stand.issuer.token("ada").await?;
    stand.wait_status(PATH, &token, 200, wait::SOON).await?;
    stand.passed();
    Ok(())
}

/// The same for as long as the issue asks: certificates of 60 s, renewed fifty times.
#[tokio::test]
async fn long_an_agent_lives_through_fifty_renewals_and_two_rotations() -> Result<()> {
    const RENEWALS: usize = 50;
    let mut stand = stand("60s").await?;
    let load = Load::start(&stand).await?;
    for (step, rotation) in [(15, true), (25, false), (35, true), (RENEWALS, false)] {
        wait::until(&format!("{step} renewals"), Duration::from_mins(15), async || {
            count(&stand, "certificate-renewed").ok().filter(|renewed| *renewed >= step)
        })
        .await?;
        say(&format!("{step} renewals"));
        if rotation {
            rotate(&stand, &[]).await?.expect_code(0)?;
            all_moved(&stand).await?;
        } else if step < RENEWALS {
            stand.stop_relay(Signal::TERM).await?;
            stand.start_relay().await?;
        }
    }
    load.end().await?;
    ensure!(count(&stand, "join")? == 1, "it enrolled again");
    stand.passed();
    Ok(())
}
