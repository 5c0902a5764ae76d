//! From nothing to a first call with what the programs write themselves: `init` makes relay.toml and a self-signed certificate, `join`
//! makes agent.toml, and a service is the lines that their comments say.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::issuer::Issuer;
use postern_tests::pki::Pki;
use postern_tests::process::{self, Output, Program, binary};
use postern_tests::stand::say;
use postern_tests::upstream::Nginx;
use postern_tests::wait;

fn program(name: &str, config: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary(name)?);
    command.arg("-c").arg(config).args(args).env("NO_COLOR", "1");
    Ok(command)
}

async fn run(command: Command) -> Result<Output> {
    process::run(command, Duration::from_secs(30)).await
}

/// Adds lines to a file that a program wrote.
fn append(path: &Path, text: &str) -> Result<()> {
    let written = std::fs::read_to_string(path)?;
    Ok(std::fs::write(path, format!("{written}\n{text}"))?)
}

#[tokio::test]
async fn from_nothing_to_a_first_call() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| -> Result<String> { Ok(at(name).to_str().context("not UTF-8")?.to_owned()) };
    let port = wait::free_port()?;
    let (address, url) = (format!("127.0.0.1:{port}"), format!("https://127.0.0.1:{port}"));
    let pki = Pki::create(dir.path())?;
    let nginx = Nginx::start(dir.path()).await?;
    let issuer = Issuer::start(dir.path(), &pki, &url).await?;
    let (relay_toml, agent_toml) = (at("etc/relay.toml"), at("etc/agent.toml"));

    say("init without a word about what it needs");
    let lost = run(program("postern-relay", &relay_toml, &["init"])?).await?.expect_code(2)?;
    ensure!(lost.stderr.contains("--url") && lost.stderr.contains("--issuer"), "{lost:?}");

    say("init, twice");
    let state = text("relay")?;
    let init =
        ["init", "--url", &url, "--issuer", issuer.iss(), "--client-id", "postern-cli", "--dir", &state];
    let made = run(program("postern-relay", &relay_toml, &init)?).await?.expect_code(0)?;
    ensure!(made.stderr.contains("relay.toml") && made.stderr.contains("cert.pem"), "{made:?}");
    let certificate = std::fs::read(at("relay/tls/cert.pem"))?;
    let again = run(program("postern-relay", &relay_toml, &["init"])?).await?.expect_code(0)?;
    ensure!(again.stderr.contains("nothing was changed"), "{again:?}");
    ensure!(std::fs::read(at("relay/tls/cert.pem"))? == certificate, "a second init changed the certificate");
    let other = ["init", "--url", "https://other.example.com", "--issuer", issuer.iss(), "--dir", &state];
    let kept = run(program("postern-relay", &relay_toml, &other)?).await?.expect_code(3)?;
    ensure!(kept.stderr.contains("not https://other.example.com"), "{kept:?}");

    say("the test's own surroundings: a private issuer, and no fixed port for metrics");
    let written = std::fs::read_to_string(&relay_toml)?;
    let issuer_line = "[[issuers]]\n";
    ensure!(written.contains(issuer_line) && written.contains("127.0.0.1:9440"), "{written}");
    let written = written.replace(issuer_line, &format!("[[issuers]]\nca = {:?}\n", pki.ca_file()));
    std::fs::write(&relay_toml, written.replace("127.0.0.1:9440", "127.0.0.1:0"))?;
    append(
        &relay_toml,
        "[services.wiki]\nagent = \"dc1\"\nrules = [{ allow = \"group:finance\", to = \"GET /**\" }]\n",
    )?;
    run(program("postern-relay", &relay_toml, &["config", "check"])?).await?.expect_code(0)?;

    say("run, invite, join, run");
    let mut relay =
        Program::start("relay", program("postern-relay", &relay_toml, &["run"])?, &at("relay.log"))?;
    relay.wait_line("listening https=", wait::SOON).await?;
    let invite =
        run(program("postern-relay", &relay_toml, &["agent", "invite", "dc1"])?).await?.expect_code(0)?;
    let mut join = program("postern-agent", &agent_toml, &["join", &address, "--state", &text("agent")?])?;
    join.env("POSTERN_INVITE", invite.stdout.trim());
    run(join).await?.expect_code(0)?;
    append(&agent_toml, &format!("[services.wiki]\nupstream = \"{}\"\n", nginx.url()))?;
    run(program("postern-agent", &agent_toml, &["config", "check"])?).await?.expect_code(0)?;
    let mut agent =
        Program::start("agent", program("postern-agent", &agent_toml, &["run"])?, &at("agent.log"))?;
    agent.wait_line("tunnel open", wait::SOON).await?;

    say("a first login and a first call, with both certificates trusted");
    let roots = at("roots.pem");
    std::fs::write(&roots, [certificate, std::fs::read(pki.ca_file())?].concat())?;
    let ada = Cli::new(&at("home"), &address, &roots)?;
    ada.login_device(&issuer, "ada", &[]).await?.expect_code(0)?;
    let call = ada.run(&["curl", "-sS", "wiki/first"]).await?.expect_code(0)?;
    ensure!(call.stdout.contains("\"from\":\"nginx\""), "{call:?}\n{}\n{}", relay.tail(), agent.tail());
    let args = ["audit", "find", "--service", "wiki", "--user", "ada"];
    let found = run(program("postern-relay", &relay_toml, &args)?).await?.expect_code(0)?;
    ensure!(found.stdout.contains("GET wiki/first"), "init's relay.toml has an audit file: {found:?}");
    ensure!(!relay.tail().contains("\"event\""), "audit lines in the terminal: {}", relay.tail());

    say("without the certificate nothing is said to that relay");
    let stranger = Cli::new(&at("home-of-a-stranger"), &address, &pki.ca_file())?;
    let refused = stranger.run(&["login", &address, "--device"]).await?.expect_code(7)?;
    ensure!(refused.stderr.contains("certificate"), "{refused:?}");
    Ok(())
}
