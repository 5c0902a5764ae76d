//! What people see in the terminal: every help page, and every command of the three programs with good and bad outcomes, at 80 columns, in
//! colour and without, and as JSON; kept as files under `tests/golden/terminal`. One walk over one stand: first all of it works, then the
//! agent ends, then the relay. `POSTERN_BLESS=1` writes the files anew, for whoever changed them on purpose to look at.
//!
//! Completions, man pages, schemas and examples are no pages to look at here: docs/ and packages have their own tests.

mod agent;
mod client;
mod help;
mod pages;
mod relay;
mod same;
mod seen;

use anyhow::Result;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

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

/// Takes connections until it is dropped, and says nothing.
struct Door(JoinSet<()>);

impl Door {
    /// Gives the port too; 0 takes any.
    async fn open(port: u16) -> Result<(Self, u16)> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let mut open = JoinSet::new();
        open.spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
            }
        });
        Ok((Self(open), port))
    }

    async fn close(mut self) {
        self.0.shutdown().await;
    }
}

#[tokio::test]
async fn long_what_everyone_sees() -> Result<()> {
    let (_database, database) = Door::open(0).await?;
    let (doomed, dead) = Door::open(0).await?;
    let agent_tables = format!(
        "[services.wiki]\nupstream = \"{{echo}}\"\n[services.few]\nupstream = \"{{echo}}\"\n\
         [services.ledger-db]\nupstream = \"tcp://127.0.0.1:{database}\"\n\
         [services.dead]\nupstream = \"http://127.0.0.1:{dead}\"\n",
    );
    let extra = Extra { tables: TABLES.to_owned(), agent_tables, ..Extra::default() };
    let mut seen = Seen::new(Stand::start_with(extra).await?)?;
    doomed.close().await;
    let walked = walk(&mut seen, dead).await;
    seen.finish(walked).await
}

/// The steps; nobody listens behind `dead`, whose port is given, until programs start again.
async fn walk(seen: &mut Seen, dead: u16) -> Result<()> {
    say("nobody is logged in");
    client::strangers(seen).await?;
    client::logins(seen).await?;
    say("all of it works");
    client::services(seen).await?;
    agent::at_work(seen).await?;
    relay::at_work(seen).await?;
    let _alive = Door::open(dead).await?;
    relay::changes(seen).await?;
    client::forwards(seen).await?;
    say("the agent ends");
    agent::ends(seen).await?;
    client::without_an_agent(seen).await?;
    relay::without_an_agent(seen).await?;
    say("the relay ends");
    relay::ends(seen).await?;
    client::without_a_relay(seen).await?;
    agent::without_a_relay(seen).await?;
    say("all log out");
    seen.stand.start_relay().await?;
    client::goodbyes(seen).await?;
    seen.stand.stop_relay(Signal::TERM).await
}
