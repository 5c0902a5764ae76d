//! The walk of `postern`: ada, who is a clerk, and bob, who is not.

use anyhow::{Result, ensure};
use postern_tests::process::{Output, Program, Signal};
use postern_tests::{terminal, wait};
use tokio::net::TcpStream;

use super::seen::{Look, Seen, Who};
use Who::{Ada, Bob};

/// Before the first login.
pub(super) async fn strangers(seen: &mut Seen) -> Result<()> {
    seen.text(Ada, "", 0).await?;
    seen.run(Ada, "version", 0).await?;
    seen.run(Ada, "frobnicate", 2).await?;
    seen.run(Ada, "can GET", 2).await?;
    seen.run(Ada, "ls", 4).await?;
    for line in ["ls", "whoami", "show billing", "can GET billing/", "token", "forward billing", "status"] {
        seen.run(Ada, &format!("-r RELAY {line}"), 4).await?;
    }
    seen.run(Ada, "doctor -r RELAY", 4).await?;
    seen.run(Ada, "profile ls", 0).await?;
    seen.run(Ada, "profile use work", 1).await?;
    seen.run(Ada, "login nowhere.invalid", 7).await
}

/// Both log in; ada in every way there is to look at it, and all at once: the issuer lets each ask every few seconds.
pub(super) async fn logins(seen: &mut Seen) -> Result<()> {
    let line = "login RELAY --device --force";
    let looks = [(Look::Json, Ada), (Look::Colour, Ada), (Look::Piped, Ada), (Look::Piped, Bob)];
    let mut logins = Vec::new();
    for (look, who) in looks {
        let command = seen.command(look, who, line)?;
        let command = if look == Look::Colour { terminal::on(&command)? } else { command };
        let log = seen.stand.path(&format!("login-{}.log", logins.len()));
        logins.push((look, who, Program::start("login", command, &log)?));
    }
    for (_, who, login) in &mut logins {
        let code = login.wait_value("Code: ").await?;
        seen.stand.issuer.approve_device(if *who == Ada { "ada" } else { "bob" }, &code).await?;
    }
    for (look, who, mut login) in logins {
        let code = login.wait_exit(wait::SOON * 2).await?.code().unwrap_or(-1);
        ensure!(code == 0, "{}", login.tail());
        let said = login.log_text().replace("\r\n", "\n");
        seen.note(look, who, line, &Output { code, stdout: String::new(), stderr: said });
    }
    seen.run(Ada, "login", 0).await
}

/// What one may reach, and how.
pub(super) async fn services(seen: &mut Seen) -> Result<()> {
    for line in
        ["whoami", "profile ls", "ls", "ls wiki", "ls zzz", "show billing", "show ledger-db", "show orphan"]
    {
        seen.run(Ada, line, 0).await?;
    }
    seen.run(Ada, "show nothing", 6).await?;
    seen.run(Bob, "ls", 0).await?;
    seen.run(Ada, "can GET billing/v1/invoices/7", 0).await?;
    seen.run(Ada, "can GET wiki/", 0).await?;
    seen.run(Ada, "can DELETE billing/v1/invoices/7", 5).await?;
    seen.run(Bob, "can GET billing/v1/invoices/7", 5).await?;
    seen.run(Ada, "can CONNECT ledger-db", 0).await?;
    seen.run(Ada, "can GET nothing/x", 6).await?;
    seen.run(Ada, "token", 0).await?;
    seen.run(Ada, "token --header", 0).await?;
    seen.run(Ada, "token --service nothing", 6).await?;
    seen.text(Ada, "curl -sS billing/v1/invoices/7", 0).await?;
    seen.text(Ada, "curl -sS -X DELETE billing/v1/invoices/7", 4).await?;
    seen.text(Bob, "curl -sS billing/v1/invoices/7", 5).await?;
    seen.text(Ada, "curl -sS nothing/", 6).await?;
    seen.look(Look::Piped, Ada, "curl -sS -o /dev/null few/", 0).await?;
    seen.text(Ada, "curl -sS few/", 9).await?;
    seen.text(Ada, "curl -sS orphan/", 8).await?;
    seen.text(Ada, "curl -sS dead/", 8).await?;
    seen.text(Bob, "connect ledger-db", 5).await?;
    seen.text(Ada, "connect billing", 1).await?;
    seen.run(Ada, "status", 0).await?;
    seen.run(Ada, "doctor", 0).await?;
    seen.run(Ada, "doctor billing", 0).await?;
    seen.run(Ada, "doctor dead", 8).await?;
    seen.run(Ada, "doctor orphan", 8).await?;
    seen.run(Ada, "doctor nothing", 6).await?;
    seen.run(Ada, "forward nothing", 6).await?;
    seen.run(Ada, "forward billing --bind 0.0.0.0", 2).await?;
    seen.run(Ada, "forward billing -- true", 0).await?;
    seen.run(Ada, "proxy --socks5 0.0.0.0:1080", 2).await
}

/// What keeps running, on a terminal: its first line, a relay that is lost and comes back, its end.
pub(super) async fn forwards(seen: &mut Seen) -> Result<()> {
    let (port, other, socks) = (wait::free_port()?, wait::free_port()?, wait::free_port()?);
    let mut running = Vec::new();
    for line in
        [format!("forward {port}:billing {other}:ledger-db"), format!("proxy --socks5 127.0.0.1:{socks}")]
    {
        let command = terminal::on(&seen.command(Look::Colour, Ada, &line)?)?;
        let log = seen.stand.path(&format!("running-{}.log", running.len()));
        running.push((line, Program::start("forward", command, &log)?));
    }
    running[0].1.wait_line("ledger-db", wait::SOON).await?;
    running[1].1.wait_line("socks5", wait::SOON).await?;
    // One stream, for whoever lists them.
    let stream = TcpStream::connect(("127.0.0.1", other)).await?;
    wait::until("a stream is listed", wait::SOON, async || {
        let listed = seen.stand.relay_command(&["session", "ls", "--json"]).await.ok()?;
        listed.stdout.contains("ledger-db").then_some(())
    })
    .await?;
    seen.run(Who::Relay, "session ls", 0).await?;
    seen.run(Ada, "status", 0).await?;
    drop(stream);
    seen.stand.stop_relay(Signal::TERM).await?;
    seen.stand.http.get(&format!("http://127.0.0.1:{port}/"), None).await?.expect_status(502)?;
    for (_, program) in &mut running {
        program.wait_line("relay lost", wait::SOON).await?;
    }
    seen.stand.start_relay().await?;
    for (line, mut program) in running {
        program.wait_line("back after", wait::SOON).await?;
        // On a terminal the program is a child of `script`, which hands it on.
        program.signal(Signal::TERM)?;
        let code = program.wait_exit(wait::SOON).await?.code().unwrap_or(-1);
        let said = program.log_text().replace("\r\n", "\n");
        // What `script` says of its own end.
        let said = said.replace("\nSession terminated, killing shell... ...killed.\n", "");
        let line = [(port, "8080"), (other, "5432"), (socks, "1080")]
            .iter()
            .fold(line, |line, (port, shown)| line.replace(&port.to_string(), shown));
        seen.note(Look::Colour, Ada, &line, &Output { code, stdout: String::new(), stderr: said });
    }
    seen.stand.wait_status("/wiki/", &seen.stand.issuer.token("ada").await?, 200, wait::SOON).await?;
    Ok(())
}

pub(super) async fn without_an_agent(seen: &mut Seen) -> Result<()> {
    seen.run(Ada, "ls", 0).await?;
    seen.run(Ada, "show wiki", 0).await?;
    seen.text(Ada, "curl -sS billing/v1/invoices/7", 8).await?;
    seen.run(Ada, "status", 0).await?;
    seen.run(Ada, "doctor billing", 8).await
}

pub(super) async fn without_a_relay(seen: &mut Seen) -> Result<()> {
    for line in ["ls", "whoami", "show billing", "can GET billing/", "doctor", "forward billing"] {
        seen.run(Ada, line, 7).await?;
    }
    seen.run(Ada, "status", 7).await?;
    seen.text(Ada, "curl -sS billing/", 7).await?;
    seen.text(Ada, "connect ledger-db", 7).await
}

pub(super) async fn goodbyes(seen: &mut Seen) -> Result<()> {
    seen.look(Look::Piped, Ada, "logout", 0).await?;
    seen.look(Look::Colour, Bob, "logout", 0).await?;
    seen.run(Ada, "logout", 0).await
}
