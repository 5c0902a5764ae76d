//! `postern doctor` finds what does not work, says what to do, and ends with the exit code of the cause; its bundle holds no token.
//! `postern status` says how things are.

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::process::{self, Output, Signal, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

/// Services of which one has nobody behind it, and one an agent that is not there.
fn services(dead: u16) -> Extra {
    let tables = r#"
[services.dead]
agent = "dc1"
rules = [{ allow = "*", to = "GET /**" }]

[services.dead-db]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "*", to = "CONNECT" }]

[services.orphan]
agent = "dc2"
rules = [{ allow = "*", to = "GET /**" }]
"#;
    let agent_tables = format!(
        "[services.dead]\nupstream = \"http://127.0.0.1:{dead}\"\n[services.dead-db]\nupstream = \"tcp://127.0.0.1:{dead}\"\n"
    );
    Extra { tables: tables.to_owned(), agent_tables, ..Extra::default() }
}

/// The checks by name, with their states.
fn states(output: &Output) -> Result<Vec<(String, String)>> {
    let report: Value = serde_json::from_str(&output.stdout)?;
    let checks = report["checks"].as_array().context("no checks")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(checks.iter().map(|check| (text(&check["name"]), text(&check["state"]))).collect())
}

async fn doctor(cli: &Cli, args: &[&str], code: i32) -> Result<String> {
    let found = cli.run(&[&["doctor"], args].concat()).await?.expect_code(code)?;
    say(found.stdout.trim_end());
    ensure!(code == 0 || found.stdout.contains("\n  Fix: "), "{found:?}");
    Ok(found.stdout)
}

#[tokio::test]
async fn each_cause_is_found_and_has_its_exit_code() -> Result<()> {
    let doomed = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut stand = Stand::start_with(services(doomed.local_addr()?.port())).await?;
    drop(doomed);
    let ada = stand.cli("ada")?;
    let relay = ["-r", &stand.url.clone()];

    say("nobody is logged in");
    let nobody = doctor(&ada, &relay, 4).await?;
    ensure!(nobody.contains("✓ TLS  ✗ token: ") && nobody.contains("postern login"), "{nobody}");
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;

    say("all is well");
    let tcp = format!("✓ TCP {}  ✓ TLS  ✓ token ", stand.port);
    let well = doctor(&ada, &["echo"], 0).await?;
    ensure!(well.starts_with(&tcp) && well.trim_end().ends_with("✓ agent  ✓ upstream"), "{well}");
    ensure!(well.contains("✓ clock +0.0 s") || well.contains("✓ clock -0.0 s"), "{well}");
    let calls = stand.audit()?;
    let harmless = calls.iter().filter(|line| line["service"] == "echo" && line["method"] == "GET").count();
    ensure!(harmless >= 1, "the upstream was not tried");
    let json = ada.run(&["doctor", "billing", "--json"]).await?.expect_code(0)?;
    ensure!(states(&json)?.iter().all(|(_, state)| state == "good"), "{json:?}");

    say("what is behind the agent is not there");
    for service in ["dead", "dead-db"] {
        let dead = doctor(&ada, &[service], 8).await?;
        let last = "✓ agent  ✗ upstream: connection refused (agent dc1)\n  \
                    Fix: start the service behind agent dc1, or look at `postern-agent status` there\n";
        ensure!(dead.ends_with(last), "{dead}");
    }

    say("no agent, no such service, nothing that one may do");
    let orphan = doctor(&ada, &["orphan"], 8).await?;
    ensure!(orphan.contains("✗ agent: none serves it"), "{orphan}");
    let unknown = doctor(&ada, &["nothing"], 6).await?;
    ensure!(unknown.contains("✗ service: "), "{unknown}");
    let all = doctor(&ada, &[], 0).await?;
    ensure!(all.contains("! services: ") && all.contains("orphan"), "{all}");

    say("a stranger's certificate");
    let mut command = ada.command(&["doctor"])?;
    command.env_remove("POSTERN_CA");
    let stranger = process::run(command, wait::SOON * 2).await?.expect_code(7)?;
    ensure!(stranger.stdout.contains("✗ TLS: ") && stranger.stdout.contains("--ca FILE"), "{stranger:?}");

    say("the agent, then the relay goes away");
    stand.stop_agent(Signal::TERM).await?;
    let away = doctor(&ada, &["echo"], 8).await?;
    ensure!(away.contains("✗ agent: none serves it for "), "{away}");
    stand.stop_relay(Signal::TERM).await?;
    let gone = doctor(&ada, &["echo"], 7).await?;
    ensure!(gone.starts_with(&format!("✗ TCP {}: ", stand.port)), "{gone}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_bundle_holds_no_token() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let token = ada.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned();
    let kept = std::fs::read_dir(ada.state_dir())?.flatten().map(|file| file.path());
    let session = kept.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
    let session: Vec<String> = session.map(std::fs::read_to_string).collect::<std::io::Result<_>>()?;
    let refresh = session.iter().find_map(|text| {
        let value: Value = serde_json::from_str(text).ok()?;
        Some(value["session"]["refresh_token"].as_str()?.to_owned())
    });
    let refresh = refresh.context("no refresh token is kept")?;
    let file = stand.path("bundle.tar.gz");
    let path = file.to_str().context("the directory's name is not text")?;
    let found = ada.run(&["doctor", "echo", "--bundle", path]).await?.expect_code(0)?;
    ensure!(found.stdout.contains("✓ upstream") && found.stderr.contains("bundle.tar.gz"), "{found:?}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file)?) & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let out = stand.path("unpacked");
    std::fs::create_dir(&out)?;
    let unpack = command("tar", ["-xzf".as_ref(), file.as_os_str(), "-C".as_ref(), out.as_os_str()]);
    process::run(unpack, wait::SOON).await?.expect_code(0)?;
    let names = ["about.json", "doctor.json", "services.json", "forwards.json", "settings.json"];
    for name in names {
        let text = std::fs::read_to_string(out.join("postern").join(name)).context(name)?;
        ensure!(
            !text.contains(&token) && !text.contains(&refresh) && !text.contains("eyJ"),
            "{name}: {text}"
        );
        serde_json::from_str::<Value>(&text).context(name)?;
    }
    let again = ada.run(&["doctor", "--bundle", path]).await?.expect_code(1)?;
    ensure!(again.stderr.contains("--bundle"), "a file that is there is not replaced: {again:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn status_says_how_things_are() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    ada.run(&["status", "-r", &stand.url]).await?.expect_code(4)?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let (mut forward, place) = ada.forward("echo", &[]).await?;

    say("session, relay, services, forwards");
    let text = ada.run(&["status"]).await?.expect_code(0)?.stdout;
    say(&text);
    for words in ["✓ 127.0.0.1", "answers in ", "✓ ada", "; renews itself", "2 up", "● up", &place] {
        ensure!(text.contains(words), "{words:?} is missing:\n{text}");
    }
    let status: Value = serde_json::from_str(&ada.run(&["status", "--json"]).await?.expect_code(0)?.stdout)?;
    ensure!(status["relay"]["reached"] == true && status["relay"]["latency_ms"].is_f64(), "{status}");
    ensure!(status["session"]["user"] == "ada" && status["session"]["renews"] == true, "{status}");
    ensure!(
        status["forwards"][0]["pid"] == forward.pid()
            && status["forwards"][0]["serves"][0]["service"] == "echo"
    );

    say("--watch: a line each time, and what changes is seen");
    let mut watch = ada.start(&["status", "--watch", "--json"])?;
    watch.wait_lines("\"reached\":true", 2, wait::SOON).await?;
    forward.signal(Signal::KILL)?;
    forward.wait_exit(wait::SOON).await?;
    watch.wait_line("\"forwards\":[]", wait::SOON).await?;
    stand.stop_relay(Signal::TERM).await?;
    watch.wait_line("\"reached\":false", wait::SOON).await?;
    let gone = ada.run(&["status"]).await?.expect_code(7)?;
    ensure!(gone.stdout.contains("✗ ") && gone.stdout.contains("cannot be reached"), "{gone:?}");
    watch.stop(Signal::INT).await?;
    stand.passed();
    Ok(())
}
