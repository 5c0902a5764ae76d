//! Services that call services: a program beside agent A reaches a service behind agent B, without a person and without a port opened
//! anywhere, by its own `postern forward --client-credentials`, or by any HTTP client with a token bound to its certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::issuer::{BATCH, Machine};
use postern_tests::process::{self, Program, binary, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::upstream::Echo;
use postern_tests::wait;

const TABLES: &str = r#"
[services.front]
agent = "dc1"
rules = [{ allow = "role:clerk", to = "GET /**" }]

[services.back]
agent = "dc2"
rules = [{ name = "programs read", allow = "client:nightly-batch", to = "GET /v1/**", with = { scope = "invoices:read" } }]

[services.vault]
agent = "dc2"
hosts = ["vault.example.com"]
client_certificates = true
rules = [{ name = "by certificate", allow = "client:nightly-tls", to = "GET /**", with = { bound = true } }]
"#;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the directory's name is not text")
}

fn write(stand: &Stand, name: &str, text: &str) -> Result<PathBuf> {
    let path = stand.path(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Agent B, with the services that are called.
async fn agent_b(stand: &Stand, upstream: &str) -> Result<Program> {
    let relay = format!("127.0.0.1:{}", stand.port);
    let config = format!(
        "version = 1\nrelay = \"{relay}\"\nstate = \"{}\"\n[services.back]\nupstream = \"{upstream}\"\n\
         [services.vault]\nupstream = \"{upstream}\"\n\
         [telemetry]\nlog = \"info\"\nformat = \"text\"\nmetrics = \"127.0.0.1:0\"\n",
        stand.path("agent-b").display()
    );
    let config = write(stand, "agent-b.toml", &config)?;
    let invite = write(stand, "invite-b", &stand.invite("dc2", &[]).await?)?;
    let agent = || binary("postern-agent");
    let join = ["-c", text(&config)?, "join", &relay, "--invite-file", text(&invite)?];
    process::run(command(agent()?, join), wait::SOON).await?.expect_code(0)?;
    let run = command(agent()?, ["-c", text(&config)?, "run"]);
    let mut agent = Program::start("agent B", run, &stand.path("agent-b.log"))?;
    agent.wait_value("listening metrics=").await?;
    Ok(agent)
}

/// HAProxy as the program beside agent A: whatever it is asked, it asks of the service behind its forward.
async fn program(stand: &Stand, port: u16, forward: &str) -> Result<Program> {
    let server = forward.strip_prefix("http://").context("no address")?;
    let config = format!(
        "global\n  maxconn 200\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend in\n  bind 127.0.0.1:{port}\n  default_backend far\nbackend far\n  http-request del-header Host\n  \
         http-request set-header Host {server}\n  server far {server}\n"
    );
    let config = write(stand, "program.cfg", &config)?;
    let mut haproxy = command("haproxy", ["-db", "-f", text(&config)?]);
    haproxy.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let mut program = Program::start("haproxy", haproxy, &stand.path("program.log"))?;
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
    wait::until("haproxy listens", wait::SOON, listens).await?;
    ensure!(program.is_running(), "{}", program.tail());
    Ok(program)
}

#[tokio::test]
async fn a_service_calls_another_by_a_forward_of_its_own() -> Result<()> {
    // The agent is ready when its upstream listens.
    let held = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = held.local_addr()?.port();
    let agent_tables = format!("[services.front]\nupstream = \"http://127.0.0.1:{port}\"\n");
    let extra = Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let back = Echo::start()?;
    let _agent_b = agent_b(&stand, &back.url()).await?;
    let secret = write(&stand, "batch.secret", BATCH.1)?;
    let cli = stand.cli("program")?;
    let spec = format!("{}:back", wait::free_port()?);
    let args = ["-r", &stand.url, "forward", &spec, "--client-credentials", "--client-id", BATCH.0];
    let mut forward = cli.command(&args)?;
    forward.args(["--client-secret-file", text(&secret)?]).env("POSTERN_KEYRING", "none");
    let mut forward = cli.start_command(forward, "forward")?;
    let url = forward.wait_value("Forwarding ").await?;
    let url = url.split(' ').next().unwrap_or_default();
    drop(held);
    let _program = program(&stand, port, url).await?;

    let ada = stand.issuer.token("ada").await?;
    let answer = stand.http.get(&stand.at("/front/v1/invoices/7"), Some(&ada)).await?.expect_status(200)?;
    ensure!(answer.json()?["from"] == "echo", "{}", answer.text());
    let seen = back.seen_with("/v1/invoices/7");
    ensure!(seen.len() == 1, "{seen:?}");
    // The second call is the program's own: it says nothing of the person who made the first.
    ensure!(seen[0].header("x-postern-subject") == BATCH.0, "{:?}", seen[0].headers);
    ensure!(seen[0].header("x-postern-client") == BATCH.0 && seen[0].header("authorization").is_empty());
    let decided = |service: &'static str| {
        move |line: &serde_json::Value| line["event"] == "decision" && line["service"] == service
    };
    let first = stand.wait_audit(1, decided("front")).await?;
    let second = stand.wait_audit(1, decided("back")).await?;
    ensure!(first[0]["subject"] == "ada" && second[0]["subject"] == BATCH.0, "{first:?} {second:?}");
    ensure!(second[0]["rule"] == "programs read", "{second:?}");

    say("and may do no more than it may, whoever asked it");
    let beyond = stand.http.get(&stand.at("/front/v2/else"), Some(&ada)).await?.expect_status(403)?;
    ensure!(beyond.text().contains("no rule lets role batch"), "{}", beyond.text());
    ensure!(back.seen_with("/v2/else").is_empty());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_program_calls_with_a_token_bound_to_its_certificate() -> Result<()> {
    let agent_tables = "[services.front]\nupstream = \"{echo}\"\n".to_owned();
    let extra = Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let back = Echo::start()?;
    let _agent_b = agent_b(&stand, &back.url()).await?;
    let token = stand.issuer.machine(Machine::Certificate, "invoices:read", &stand.url).await?;
    let certificate = stand.issuer.clients.nightly_tls.clone();
    let stranger = stand.pki.client("stranger")?;
    let url = format!("https://vault.example.com:{}/secrets/7", stand.port);
    let resolve = format!("vault.example.com:{}:127.0.0.1", stand.port);
    let (ca, bearer) = (stand.pki.ca_file(), format!("Authorization: Bearer {token}"));
    let curl = async |more: &[&str]| -> Result<String> {
        let usual = ["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"];
        let at = ["--resolve", &resolve, "--cacert", text(&ca)?, "-H", &bearer, &url];
        let args = [&usual[..], &at[..], more].concat();
        Ok(process::run(command("curl", args), Duration::from_secs(30)).await?.expect_code(0)?.stdout)
    };
    let by = |files: &postern_tests::pki::CertFiles| -> Result<[String; 4]> {
        Ok(["--cert".into(), text(&files.cert)?.into(), "--key".into(), text(&files.key)?.into()])
    };
    ensure!(curl(&by(&certificate)?.each_ref().map(String::as_str)).await? == "200");
    let seen = back.seen_with("/secrets/7");
    ensure!(seen.len() == 1 && seen[0].header("x-postern-client") == "nightly-tls", "{seen:?}");
    say("the token alone, or beside another certificate, is worth nothing");
    ensure!(curl(&[]).await? == "401");
    ensure!(curl(&by(&stranger)?.each_ref().map(String::as_str)).await? == "401");
    ensure!(back.seen_with("/secrets/7").len() == 1);
    stand.passed();
    Ok(())
}
