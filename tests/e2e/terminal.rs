//! What people see in the terminal: every help page, and every command of the three programs with good and bad outcomes, at 80 columns, in
//! colour and without, and as JSON; kept as files under `tests/golden/terminal`. One walk over one stand: first all of it works, then the
//! agent ends, then the relay. `POSTERN_BLESS=1` writes the files anew, for whoever changed them on purpose to look at.
//!
//! Completions, man pages, schemas and examples are no pages to look at here: docs/ and packages have their own tests.

mod agent;
mod client;
mod help;
mod relay;
mod same;
mod seen;

use std::net::TcpListener;

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};

use seen::Seen;

const TABLES: &str = r#"
[services.wiki]
about = "What everybody should know, and some things that nobody does"
agent = "dc1"
rules = [{ name = "everybody reads", allow = "*", to = "GET /**", rate = "20/s per user" }]

[services.ledger-db]
kind = "tcp"
agent = "dc1"
rules = [{ name = "clerks connect", allow = "role:clerk", to = "CONNECT" }]

[services.few]
agent = "dc1"
rules = [{ name = "once a day", allow = "*", to = "GET /**", quota = "1/day per user" }]

[services.dead]
agent = "dc1"
rules = [{ name = "anyone", allow = "*", to = "GET /**" }]

[services.orphan]
agent = "dc2"
rules = [{ name = "anyone", allow = "*", to = "GET /**" }]

[[tests]]
name = "clerks cannot delete without a strong login"
as = { issuer = "corp", groups = ["finance"], scope = ["invoices:read"] }
call = "DELETE billing/v1/invoices/7"
expect = "deny"
"#;

/// All of it, and the listener behind `ledger-db`, whose connections wait in its backlog. Nobody listens behind `dead`.
async fn stand() -> Result<(Stand, TcpListener)> {
    let (database, doomed) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let agent_tables = format!(
        "[services.wiki]\nupstream = \"{{echo}}\"\n[services.few]\nupstream = \"{{echo}}\"\n\
         [services.ledger-db]\nupstream = \"tcp://{}\"\n[services.dead]\nupstream = \"http://{}\"\n",
        database.local_addr()?,
        doomed.local_addr()?
    );
    let stand =
        Stand::start_with(Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() }).await?;
    Ok((stand, database))
}

#[tokio::test]
async fn what_everyone_sees() -> Result<()> {
    let (stand, _database) = stand().await?;
    let mut seen = Seen::new(stand)?;
    say("nobody is logged in");
    client::strangers(&mut seen).await?;
    client::logins(&mut seen).await?;
    say("all of it works");
    client::services(&mut seen).await?;
    agent::at_work(&mut seen).await?;
    relay::at_work(&mut seen).await?;
    relay::changes(&mut seen).await?;
    client::forwards(&mut seen).await?;
    say("the agent ends");
    agent::ends(&mut seen).await?;
    client::without_an_agent(&mut seen).await?;
    relay::without_an_agent(&mut seen).await?;
    say("the relay ends");
    relay::ends(&mut seen).await?;
    client::without_a_relay(&mut seen).await?;
    agent::without_a_relay(&mut seen).await?;
    say("nobody stays logged in");
    seen.stand.start_relay().await?;
    client::goodbyes(&mut seen).await?;
    seen.stand.stop_relay(Signal::TERM).await?;
    seen.finish().await
}
