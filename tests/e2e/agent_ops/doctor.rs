//! `doctor` finds what is wrong between an agent's file and its upstreams, with a running agent and without one, and names the fix of each.
//! What it packs for somebody else to look at holds no secret.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{Program, Signal, binary, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::terminal::fits;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{json, status_where, usable, with_door};

/// The doctor's word, whole; `code` is its exit code.
async fn doctor(stand: &Stand, code: i32) -> Result<String> {
    let output = stand.agent_command(&["doctor"]).await?.expect_code(code)?;
    fits(&output.stdout)?;
    Ok(output.stdout)
}

/// What is said of one check, with its fix, without the breaks of its lines.
fn says(text: &str, line: &str) -> Result<String> {
    let at = text.find(line).with_context(|| format!("no line begins {line:?}:\n{text}"))?;
    let (first, rest) = text[at..].split_once('\n').unwrap_or((&text[at..], ""));
    let rest = rest.lines().take_while(|line| line.starts_with("  ")).map(str::trim);
    Ok(std::iter::once(first).chain(rest).collect::<Vec<_>>().join(" "))
}

/// Passes TCP on to the relay and drops what comes over UDP, until it is dropped.
async fn tcp_alone(relay: u16) -> Result<(u16, JoinSet<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut passing = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            passing.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(("127.0.0.1", relay)).await {
                    // Either end may leave as it likes.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    Ok((port, task))
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_and_names_the_fix() -> Result<()> {
    let door = TcpListener::bind("127.0.0.1:0")?;
    let mut extra = with_door(&door)?;
    extra.agent_tables = extra.agent_tables.split("\n[services.stray]").next().unwrap_or_default().to_owned();
    let mut stand = Stand::start_with(extra).await?;
    let relay = format!("127.0.0.1:{}", stand.port);
    status_where(&stand, "both tunnels and the relay's clock", |status| {
        usable(status) == 2 && !status["clock_offset_ms"].is_null()
    })
    .await?;

    say("all is well");
    let well = doctor(&stand, 0).await?;
    for line in [
        "✓ configuration: ",
        "✓ state directory: ",
        "✓ identity: agent dc1, ",
        "✓ agent: ",
        "✓ certificate: until ",
        "✓ DNS 127.0.0.1: ",
        &format!("✓ UDP {relay}: handshake in "),
        &format!("✓ TCP {relay}: handshake in "),
        "✓ clock: ",
        "✓ upstream billing: it takes connections",
        "✓ upstream door: it takes connections",
        "✓ upstream echo: it takes connections",
    ] {
        says(&well, line)?;
    }
    ensure!(!well.contains(['✗', '!']), "{well}");
    let report = json(&stand.agent_command(&["doctor", "--json"]).await?.expect_code(0)?)?;
    let checks = report["checks"].as_array().context("checks")?;
    ensure!(
        report["ok"] == true && checks.len() == well.lines().filter(|line| line.starts_with('✓')).count()
    );

    say("an upstream that is gone, tried by the agent");
    let address = door.local_addr()?;
    drop(door);
    let ill = doctor(&stand, 1).await?;
    let said = says(&ill, &format!("✗ upstream door: {address}: connection refused"))?;
    ensure!(said.contains("Fix: start the service"), "{said}");
    says(&ill, "✓ upstream echo")?;

    say(
        "without a running agent the same is tried from here, and the relay asked whether it takes this agent",
    );
    stand.stop_agent(Signal::TERM).await?;
    let alone = doctor(&stand, 1).await?;
    ensure!(says(&alone, "! agent: none runs")?.contains("Fix: start it"), "{alone}");
    says(&alone, &format!("✓ relay {relay}: it takes this agent"))?;
    says(&alone, "✓ clock: ")?;
    says(&alone, &format!("✗ upstream door: {address}: connection refused"))?;
    says(&alone, "✓ upstream echo")?;

    say("a key that others may read, a file that is not good, an agent that never joined");
    let key = stand.path("agent/identity.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let said = doctor(&stand, 1).await?;
    ensure!(says(&said, "✗ state directory: ")?.contains("chmod 600"), "{said}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    let good = std::fs::read_to_string(stand.path("agent.toml"))?;
    std::fs::write(stand.path("agent.toml"), good.replace("relay =", "relais ="))?;
    let said = doctor(&stand, 1).await?;
    ensure!(says(&said, "✗ configuration: ")?.contains("relais"), "{said}");
    says(&said, "- everything else: ")?;
    let state = format!("state = \"{}/agent\"", stand.dir().display());
    ensure!(good.contains(&state), "{good}");
    std::fs::create_dir(stand.path("empty"))?;
    std::fs::set_permissions(stand.path("empty"), std::fs::Permissions::from_mode(0o700))?;
    std::fs::write(stand.path("agent.toml"), good.replace(&state, &state.replace("/agent\"", "/empty\"")))?;
    let said = doctor(&stand, 1).await?;
    ensure!(says(&said, "✗ identity: ")?.contains("postern-agent join"), "{said}");
    says(&said, &format!("✓ UDP {relay}: handshake in "))?;
    says(&said, &format!("✓ TCP {relay}: handshake in "))?;
    std::fs::write(stand.path("agent.toml"), good)?;

    say("an agent that is suspended, one that was removed, and a relay that is gone");
    stand
        .relay_command(&["agent", "suspend", "dc1", "--reason", "a key was copied"])
        .await?
        .expect_code(0)?;
    let said = doctor(&stand, 1).await?;
    let refused = says(&said, &format!("✗ relay {relay}: it does not take this agent"))?;
    ensure!(refused.contains("Fix: at the relay: postern-relay agent resume dc1"), "{said}");
    let mut run = command(binary("postern-agent")?, ["-c"]);
    run.arg(stand.path("agent.toml")).arg("run");
    let mut agent = Program::start("agent", run, &stand.path("suspended.log"))?;
    let seen = status_where(&stand, "it says so itself", |status| !status["suspended"].is_null()).await?;
    ensure!(usable(&seen) == 0, "{seen}");
    let shown = stand.agent_command(&["status"]).await?.expect_code(0)?.stdout;
    ensure!(
        shown.contains("✗ suspended for ") && shown.contains("postern-relay agent resume dc1"),
        "{shown}"
    );
    ensure!(says(&doctor(&stand, 1).await?, "✗ agent: ")?.contains("it is suspended"), "{shown}");
    agent.stop(Signal::TERM).await?;
    stand.relay_command(&["agent", "resume", "dc1"]).await?.expect_code(0)?;
    stand.relay_command(&["agent", "remove", "dc1"]).await?.expect_code(0)?;
    let said = doctor(&stand, 1).await?;
    ensure!(
        says(&said, &format!("✗ relay {relay}: it does not take this agent"))?.contains("--force"),
        "{said}"
    );
    stand.stop_relay(Signal::TERM).await?;
    let said = doctor(&stand, 1).await?;
    for kind in ["UDP", "TCP"] {
        ensure!(
            says(&said, &format!("✗ {kind} {relay}: "))?.contains("Fix: check that the relay runs"),
            "{said}"
        );
    }
    says(&said, "- clock: ")?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_doctor_tells_that_udp_is_blocked_and_goes_through_the_proxy() -> Result<()> {
    let mut stand = Stand::relay_only(Extra::default()).await?;
    let (port, _way) = tcp_alone(stand.port).await?;
    let relay = format!("127.0.0.1:{port}");
    let invite = stand.invite("dc1", &[]).await?;
    stand.join(&invite).await?.expect_code(0)?;
    stand.edit(
        "agent.toml",
        &format!("relay = \"127.0.0.1:{}\"", stand.port),
        &format!("relay = \"{relay}\""),
    )?;
    stand.start_agent().await?;
    let seen = status_where(&stand, "tunnels over TCP", |status| usable(status) == 2).await?;
    ensure!(seen["tunnels"][0]["link"] == "tcp", "{seen}");
    let said = doctor(&stand, 0).await?;
    let udp = says(&said, &format!("! UDP {relay}: "))?;
    ensure!(udp.contains("no answer over UDP") && udp.contains("Fix: let UDP"), "{udp}");
    says(&said, &format!("✓ TCP {relay}: "))?;

    say("a proxy that is not there");
    stand.edit(
        "agent.toml",
        "[services.billing]",
        "proxy = \"http://ada:hunter2@127.0.0.1:9\"\n[services.billing]",
    )?;
    let said = doctor(&stand, 1).await?;
    let tcp = says(&said, &format!("✗ TCP {relay}: "))?;
    ensure!(tcp.contains("the proxy 127.0.0.1:9 cannot be reached"), "{tcp}");
    ensure!(!said.contains("hunter2"), "{said}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_bundle_holds_what_helps_and_no_secret() -> Result<()> {
    let stand = Stand::start().await?;
    let secret = stand.path("api-key");
    std::fs::write(&secret, "hunter2-in-a-file")?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    let inject = format!("inject = {{ X-Api-Key = {{ file = \"{}\" }} }} # hunter2\n", secret.display());
    stand.edit("agent.toml", "[services.echo]\n", &format!("[services.echo]\n{inject}"))?;
    stand.edit(
        "agent.toml",
        "[services.billing]",
        "proxy = \"http://ada:hunter2@127.0.0.1:9\"\n[services.billing]",
    )?;
    let bundle = stand.path("bundle.tar.gz");
    let name = bundle.to_str().context("the directory's name is not text")?;
    let packed = stand.agent_command(&["doctor", "--bundle", name]).await?;
    ensure!(packed.stderr.contains("look through it"), "{packed:?}");
    ensure!(std::fs::metadata(&bundle)?.permissions().mode() & 0o777 == 0o600);

    say("unpacked by tar");
    let unpacked = Command::new("tar").arg("-xzOf").arg(&bundle).output()?;
    ensure!(unpacked.status.success(), "{unpacked:?}");
    let text = String::from_utf8(unpacked.stdout)?;
    for part in ["postern-agent", "\"checks\"", "\"tunnels\"", "[services.echo", "X-Api-Key", "127.0.0.1:9"] {
        ensure!(text.contains(part), "{part}:\n{text}");
    }
    let identity = std::fs::read_to_string(stand.path("agent/identity.pem"))?;
    let key: Vec<&str> = identity.lines().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    let invite = std::fs::read_to_string(stand.path("invite"))?;
    ensure!(!key.is_empty() && !invite.is_empty());
    for secret in key.into_iter().chain(["hunter2", "PRIVATE KEY", invite.trim()]) {
        ensure!(!text.contains(secret), "{secret} is in the bundle");
    }
    let again = stand.agent_command(&["doctor", "--bundle", name]).await?.expect_code(2)?;
    ensure!(again.stderr.contains("choose another name"), "{again:?}");

    say("of a file that is not good only what is wrong, without what it quotes");
    let wrong = "tunnel = { connections = \"hunter2\" }\n[services.billing]";
    stand.edit("agent.toml", "[services.billing]", wrong)?;
    let bundle = stand.path("second.tar.gz");
    stand
        .agent_command(&["doctor", "--bundle", bundle.to_str().unwrap_or_default()])
        .await?
        .expect_code(1)?;
    let unpacked = Command::new("tar").arg("-xzOf").arg(&bundle).output()?;
    let text = String::from_utf8(unpacked.stdout)?;
    ensure!(text.contains("invalid type: string") && !text.contains("hunter2"), "{text}");
    stand.passed();
    Ok(())
}
