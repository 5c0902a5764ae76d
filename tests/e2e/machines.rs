//! Programs log in by themselves: by a secret, by a key, by a token of the platform they run on. Their sessions renew by asking again, and
//! a program beside one agent calls a service behind another through a forward of its own that keeps nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::issuer::BATCH;
use postern_tests::process::{self, Program, binary, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Echo;
use postern_tests::wait;
use serde_json::Value;

const JWT_CLIENT: &str = "nightly-jwt";

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the directory's name is not text")
}

fn session(cli: &Cli) -> Result<Value> {
    for entry in std::fs::read_dir(cli.state_dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            return Ok(serde_json::from_slice::<Value>(&std::fs::read(path)?)?["session"].clone());
        }
    }
    anyhow::bail!("no session file")
}

/// Who the relay says the program is.
async fn client(cli: &Cli) -> Result<Value> {
    let whoami = cli.run(&["whoami", "--json"]).await?.expect_code(0)?;
    Ok(serde_json::from_str::<Value>(&whoami.stdout)?["principal"]["client"].clone())
}

/// How long a token lives where it is to end in the middle.
const LIFE: Duration = Duration::from_secs(3);

/// Calls made one after the other, and how long that took.
struct Calls {
    made: usize,
    took: Duration,
}

/// Makes calls for so long that a token and its successor end meanwhile.
async fn while_tokens_end(mut call: impl AsyncFnMut(usize) -> Result<()>) -> Result<Calls> {
    let start = Instant::now();
    let mut made = 0;
    while start.elapsed() <= 2 * LIFE {
        call(made).await?;
        made += 1;
        // A pace, not a wait: without it there would be thousands.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Calls { made, took: start.elapsed() })
}

impl Calls {
    /// Refuses if there were more new tokens than had to be: one whenever the last is renewed, in the second before its end.
    fn shared(&self, tokens: u64) -> Result<()> {
        let most = self.took.as_secs() / (LIFE.as_secs() - 1) + 1;
        ensure!(self.made as u64 > 2 * most, "{} calls in {:?}: too few to tell", self.made, self.took);
        ensure!(
            (1..=most).contains(&tokens),
            "{tokens} new tokens for {} calls in {:?}",
            self.made,
            self.took
        );
        Ok(())
    }
}

#[tokio::test]
async fn a_program_logs_in_by_its_secret_and_renews_by_asking_again() -> Result<()> {
    let stand = Stand::start().await?;
    let batch = stand.cli("batch")?;
    let (id, secret) = BATCH;
    let secret = write(stand.dir(), "secret", &format!("{secret}\n"))?;
    let login = ["login", &stand.url, "--client-credentials", "--client-id", id];

    say("what is missing is named, and a wrong secret is exit code 4");
    let bare = batch.run(&login).await?.expect_code(2)?;
    ensure!(bare.stderr.contains("--client-secret-file"), "{bare:?}");
    let wrong = write(stand.dir(), "wrong", "guess")?;
    let refused = batch.run(&[&login[..], &["--client-secret-file", text(&wrong)?]].concat()).await?;
    let refused = refused.expect_code(4)?;
    ensure!(refused.stderr.contains(id) && refused.stderr.contains("Fix: compare"), "{refused:?}");
    ensure!(!refused.stderr.contains("guess"), "{refused:?}");

    say("logged in: a key, no refresh token, no secret in the session");
    stand.issuer.access_ttl(LIFE).await?;
    let done = batch.run(&[&login[..], &["--client-secret-file", text(&secret)?, "--json"]].concat()).await?;
    let told: Value = serde_json::from_str(&done.expect_code(0)?.stdout)?;
    ensure!(told["renews"] == true && told["new"] == true, "{told}");
    let kept = session(&batch)?;
    ensure!(kept["refresh_token"].is_null() && kept["proof_key"].is_string(), "no key, or a refresh token");
    ensure!(kept["machine"]["secret-file"] == text(&secret)?, "{}", kept["machine"]);
    ensure!(!kept.to_string().contains(BATCH.1), "the secret is in the session");
    ensure!(client(&batch).await? == id);

    say("for longer than a token lives, with a token for many calls");
    let before = stand.issuer.grant_hits("client_credentials").await?;
    let calls = while_tokens_end(async |_| {
        batch.run(&["curl", "-sSf", "billing/v1/invoices/7"]).await?.expect_code(0).map(drop)
    })
    .await?;
    calls.shared(stand.issuer.grant_hits("client_credentials").await? - before)?;

    say("a secret that was changed there is exit code 4, and one that was changed here too is used at once");
    write(stand.dir(), "secret", "old")?;
    let out = wait::until("the token ends", wait::SOON, async || {
        batch.run(&["ls"]).await.ok().filter(|run| run.code != 0)
    });
    let out = out.await?.expect_code(4)?;
    ensure!(out.stderr.contains("does not accept this program"), "{out:?}");
    write(stand.dir(), "secret", BATCH.1)?;
    batch.run(&["ls"]).await?.expect_code(0)?;
    batch.run(&["logout"]).await?.expect_code(0)?;

    say("the same from the environment");
    let mut set = batch.command(&["login", &stand.url, "--client-credentials"])?;
    set.env("POSTERN_CLIENT_ID", id).env("POSTERN_CLIENT_SECRET_FILE", &secret);
    process::run(set, wait::SOON).await?.expect_code(0)?;
    ensure!(client(&batch).await? == id);
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_program_logs_in_by_its_key_or_by_a_token_of_its_platform() -> Result<()> {
    let stand = Stand::start().await?;
    let program = stand.cli("program")?;
    let key = &stand.issuer.clients.assertion_key;
    let login = ["login", &stand.url, "--client-credentials", "--client-id", JWT_CLIENT];
    say("by a key");
    stand.issuer.access_ttl(Duration::from_secs(2)).await?;
    program.run(&[&login[..], &["--client-key", text(key)?]].concat()).await?.expect_code(0)?;
    for _ in 0..4 {
        ensure!(client(&program).await? == JWT_CLIENT);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let wrong = write(stand.dir(), "wrong.pem", &rcgen_key()?)?;
    program.run(&[&login[..], &["--force", "--client-key", text(&wrong)?]].concat()).await?.expect_code(4)?;

    say("by a token in a file, which is exchanged for a fresh one beside it");
    let fresh = || stand.issuer.clients.assertion(JWT_CLIENT, stand.issuer.iss());
    let file = write(stand.dir(), "workload", &fresh()?)?;
    program.run(&[&login[..], &["--force", "--token-file", text(&file)?]].concat()).await?.expect_code(0)?;
    for _ in 0..4 {
        // Each is good for one use here.
        write(stand.dir(), "workload", &fresh()?)?;
        ensure!(client(&program).await? == JWT_CLIENT);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    std::fs::remove_file(&file)?;
    let gone = wait::until("the token ends", wait::SOON, async || {
        program.run(&["ls"]).await.ok().filter(|run| run.code != 0)
    });
    let gone = gone.await?.expect_code(4)?;
    ensure!(gone.stderr.contains("workload"), "{gone:?}");
    stand.passed();
    Ok(())
}

/// A key that the issuer does not know.
fn rcgen_key() -> Result<String> {
    Ok(rcgen::KeyPair::generate()?.serialize_pem())
}

/// Enrols and runs a second agent, whose one service is `far`.
async fn second_agent(stand: &Stand, upstream: &str) -> Result<Program> {
    let config = format!(
        "version = 1\nrelay = \"127.0.0.1:{}\"\nstate = \"{}\"\n\n[services.far]\nupstream = \"{upstream}\"\n\n\
         [telemetry]\nlog = \"info\"\nformat = \"text\"\nmetrics = \"127.0.0.1:0\"\n",
        stand.port,
        stand.path("agent-two").display()
    );
    let config = write(stand.dir(), "agent-two.toml", &config)?;
    let invite = write(stand.dir(), "invite-two", &stand.invite("dc2", &[]).await?)?;
    let relay = format!("127.0.0.1:{}", stand.port);
    let join = ["-c", text(&config)?, "join", &relay, "--invite-file", text(&invite)?];
    process::run(command(binary("postern-agent")?, join), wait::SOON).await?.expect_code(0)?;
    let run = command(binary("postern-agent")?, ["-c", text(&config)?, "run"]);
    let mut agent = Program::start("the second agent", run, &stand.path("agent-two.log"))?;
    agent.wait_value("listening metrics=").await?;
    Ok(agent)
}

#[tokio::test]
async fn a_program_beside_one_agent_calls_a_service_behind_another() -> Result<()> {
    let tables = r#"
[services.far]
agent = "dc2"
rules = [{ name = "the batch goes far", allow = "role:batch", to = "* /**" }]
"#;
    let stand = Stand::start_with(Extra { tables: tables.to_owned(), ..Extra::default() }).await?;
    let far = Echo::start()?;
    let _second = second_agent(&stand, &far.url()).await?;
    let batch = stand.cli("batch")?;
    let secret = write(stand.dir(), "secret", BATCH.1)?;
    stand.issuer.access_ttl(LIFE).await?;
    let spec = format!("{}:far", wait::free_port()?);
    let args = ["-r", &stand.url, "forward", &spec, "--client-credentials", "--client-id", BATCH.0];
    let mut refused = batch.command(&args)?;
    refused.args(["--client-secret-file", text(&write(stand.dir(), "wrong", "guess")?)?]);
    process::run(refused, wait::SOON).await?.expect_code(4)?;

    let mut forward = batch.command(&args)?;
    forward.args(["--client-secret-file", text(&secret)?]).env("POSTERN_KEYRING", "none");
    let mut forward = batch.start_command(forward, "forward")?;
    let url = forward.wait_value("Forwarding ").await?;
    say("the far service answers for longer than a token lives, as the program's own");
    let before = stand.issuer.grant_hits("client_credentials").await?;
    let calls = while_tokens_end(async |call| {
        let answer = stand.http.get(&format!("{url}/call/{call}"), None).await;
        answer?.expect_status(200).map(drop)
    })
    .await?;
    calls.shared(stand.issuer.grant_hits("client_credentials").await? - before)?;
    let lines =
        stand.wait_audit(calls.made, |line| line["service"] == "far" && line["event"] == "decision").await?;
    ensure!(lines.iter().all(|line| line["client"] == BATCH.0), "{lines:?}");

    say("nothing of it is kept");
    let kept = std::fs::read_dir(batch.state_dir()).map_or(0, Iterator::count);
    ensure!(kept == 0, "{kept} files in its state directory");
    ensure!(forward.is_running());
    stand.passed();
    Ok(())
}
