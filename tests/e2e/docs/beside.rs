//! What a mark names is started: takes a page's blocks and where they run; gives a stand on which ada is logged in, with what is to be
//! there besides, the names under which the page knows it all, and a word on whether it came to what the page says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use postern_tests::book::{Beside, Block, Mark, Run, Vendor};
use postern_tests::client::Cli;
use postern_tests::issuer::BATCH;
use postern_tests::process::{Program, Signal, binary, command, run, script};
use postern_tests::shell::Shell;
use postern_tests::stand::{Extra, Stand};
use postern_tests::upstream::{Postgres, Sshd};
use postern_tests::wait;
use serde_json::Value as JsonValue;
use toml::{Table, Value};

use super::frame::merge;
use super::reader::{Codes, Reader};
use super::taken;

const SERVICES: &str = r#"
[services.wiki]
agent = "dc1"
rules = [{ name = "finance reads the wiki", allow = "group:finance", to = "GET /**" }]
"#;

const UPSTREAMS: &str = r#"
[services.wiki]
upstream = "{nginx}"
"#;

/// A stand, and what is beside it.
pub(super) struct Place {
    stand: Stand,
    ada: Cli,
    run: Run,
    /// What the page says, and what it is here; before the names that are the same for all pages.
    names: Vec<(String, String)>,
    env: Vec<(&'static str, String)>,
    database: Option<Postgres>,
    sshd: Option<Sshd>,
    workload: Option<PathBuf>,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The blocks' text with that mark, as one file.
fn tables(blocks: &[Block], mark: Mark, names: &[(String, String)]) -> Result<Table> {
    let mut whole = Table::new();
    for block in blocks.iter().filter(|block| block.mark == mark) {
        let here = names.iter().fold(block.text.clone(), |text, (from, to)| text.replace(from, to));
        merge(&mut whole, here.parse().with_context(|| block.place.clone())?);
    }
    Ok(whole)
}

impl Place {
    pub(super) async fn start(blocks: &[Block], run: Run) -> Result<Self> {
        let extra =
            Extra { tables: SERVICES.to_owned(), agent_tables: UPSTREAMS.to_owned(), ..Extra::default() };
        let stand = Stand::start_with(extra).await?;
        let ada = stand.cli("ada")?;
        let (names, env) = (Vec::new(), Vec::new());
        let mut place = Self { stand, ada, run, names, env, database: None, sshd: None, workload: None };
        match run {
            Run::Stand(beside) => place.beside(blocks, beside).await?,
            Run::StandIn(vendor) => place.stand_in(blocks, vendor).await?,
            Run::FromNothing | Run::Machine | Run::Long => {}
        }
        place.files(blocks).await?;
        Ok(place)
    }

    async fn beside(&mut self, blocks: &[Block], beside: Beside) -> Result<()> {
        if beside == Beside::Bearer {
            self.stand.issuer.bearer_only().await?;
        }
        if beside != Beside::Browser {
            self.ada.login_device(&self.stand.issuer, "ada", &[]).await?.expect_code(0)?;
        }
        match beside {
            Beside::Nothing | Beside::Bearer => {}
            Beside::Database => {
                let database = Postgres::start().await?;
                let make = "CREATE TABLE invoices AS SELECT n FROM generate_series(1, 42) n";
                run(database.psql(database.port, make), wait::SOON).await?.expect_code(0)?;
                self.name("10.0.5.20:5432", &format!("127.0.0.1:{}", database.port));
                self.name("15432", &wait::free_port()?.to_string());
                self.in_force(blocks).await?;
                self.database = Some(database);
            }
            Beside::Sshd => {
                let sshd = Sshd::start(self.stand.dir()).await?;
                self.name("10.0.5.30:22", &format!("127.0.0.1:{}", sshd.port));
                self.in_force(blocks).await?;
                self.sshd = Some(sshd);
            }
            Beside::Platform => {
                let workload = self.stand.path("workload");
                self.name("/var/run/secrets/tokens/postern", &text(&workload));
                let key = text(&self.stand.issuer.clients.assertion_key);
                self.name("/run/secrets/nightly.pem", &key);
                self.name("nightly-batch", "nightly-jwt");
                self.name("8082", &wait::free_port()?.to_string());
                self.workload = Some(workload);
                self.stand.edit("relay.toml", "client:nightly-batch", "client:nightly-jwt")?;
                self.stand.relay_command(&["reload"]).await?.expect_code(0)?;
            }
            Beside::Browser => self.browser()?,
            Beside::Restored => self.second_machine().await?,
            Beside::Taken => {
                let instance = taken::take(&mut self.stand).await?;
                self.name(taken::SHOWN, &instance);
            }
        }
        Ok(())
    }

    fn name(&mut self, page: &str, here: &str) {
        self.names.push((page.to_owned(), here.to_owned()));
    }

    fn browser(&mut self) -> Result<()> {
        self.env.push(("BROWSER", text(&crate::browser::ada_waits(self.stand.dir())?)));
        self.env.push(("DISPLAY", ":99".to_owned()));
        Ok(())
    }

    /// The page's services, at the relay and at the agent; ada is a billing admin there.
    async fn in_force(&mut self, blocks: &[Block]) -> Result<()> {
        self.stand.edit(
            "relay.toml",
            "[roles]\n",
            "[roles]\nbilling-admin = { any = \"group:finance\" }\n",
        )?;
        for (file, mark) in [("relay.toml", Mark::Services), ("agent.toml", Mark::Agent)] {
            let path = self.stand.path(file);
            let mut whole: Table = std::fs::read_to_string(&path)?.parse()?;
            merge(&mut whole, tables(blocks, mark, &self.names)?);
            std::fs::write(path, toml::to_string(&whole)?)?;
        }
        self.stand.relay_command(&["reload"]).await?.expect_code(0)?;
        self.stand.stop_agent(Signal::TERM).await?;
        self.stand.start_agent().await
    }

    /// The page's issuer, services and rules, with the test issuer in the vendor's place.
    async fn stand_in(&mut self, blocks: &[Block], vendor: Vendor) -> Result<()> {
        let issuer = self.stand.issuer.stand_in(vendor.name()).await?;
        let page = blocks.iter().filter(|block| block.mark == Mark::Relay).map(|block| block.text.parse());
        let page: Vec<Table> = page.collect::<Result<_, _>>()?;
        let is_it =
            |page: &&Table| entry(page).is_some_and(|it| it.get("provider") == Some(&vendor.name().into()));
        let mut page = page.iter().find(is_it).context("the page has no issuer with that provider")?.clone();
        let entry = page.get_mut("issuers").and_then(|all| all.get_mut(0)).context("no issuer")?;
        let shown = entry.get("issuer").and_then(Value::as_str).context("no issuer")?.to_owned();
        let origin = url::Url::parse(&shown)?.origin().ascii_serialization();
        ensure!(shown.replace(&origin, self.stand.issuer.iss()) == issuer, "{shown} here is {issuer}");
        let iss = self.stand.issuer.iss().to_owned();
        self.name(&origin, &iss);
        let entry = entry.as_table_mut().context("no table")?;
        entry.insert("ca".to_owned(), text(&self.stand.pki.ca_file()).into());
        let path = self.stand.path("relay.toml");
        let mut whole: Table = std::fs::read_to_string(&path)?.parse()?;
        for table in ["roles", "services", "rules", "tests"] {
            whole.remove(table);
        }
        merge(&mut whole, page);
        let whole = toml::to_string(&whole)?.replace(&origin, self.stand.issuer.iss());
        std::fs::write(path, whole.replace("https://relay.example.com", &self.stand.url))?;
        // Every secret there is the same.
        std::fs::write(self.stand.path("dex"), BATCH.1)?;
        let credentials = ("CREDENTIALS_DIRECTORY", text(self.stand.dir()));
        self.stand.relay_env.push(credentials.clone());
        self.env.push(credentials);
        self.stand.stop_relay(Signal::TERM).await?;
        self.stand.start_relay().await?;
        self.name("/run/secrets/nightly.pem", &text(&self.stand.issuer.clients.assertion_key));
        self.browser()
    }

    /// Another directory stands for another machine: there is nothing but what was brought there. The first relay is off.
    async fn second_machine(&mut self) -> Result<()> {
        let dir = self.stand.path("second");
        std::fs::create_dir(&dir)?;
        let backup = dir.join("relay.backup");
        self.stand.relay_command(&["backup", &text(&backup)]).await?.expect_code(0)?;
        let first = text(self.stand.dir());
        std::fs::copy(self.stand.path("relay.toml"), dir.join("relay.toml"))?;
        for name in ["relay\"", "audit.jsonl"] {
            let (from, to) = (format!("{first}/{name}"), format!("{first}/second/{name}"));
            self.stand.edit("second/relay.toml", &from, &to)?;
        }
        std::fs::copy(self.stand.path("relay/ca/root.key"), dir.join("root.key"))?;
        self.stand.stop_relay(Signal::TERM).await
    }

    /// What pages name by itself.
    async fn files(&self, blocks: &[Block]) -> Result<()> {
        let stand = &self.stand;
        std::fs::write(stand.path("nightly"), BATCH.1)?;
        std::fs::write(stand.path("nightly.sh"), "curl -sf \"$POSTERN_URL/v1/invoices/7\"\n")?;
        for block in blocks.iter().filter(|block| block.mark == Mark::Caller) {
            std::fs::write(stand.path("ada.toml"), &block.text)?;
        }
        for (from, to) in
            [("relay.toml", "new.toml"), ("audit-key.txt", "key.txt"), ("relay/ca/root.key", "root.key")]
        {
            std::fs::copy(stand.path(from), stand.path(to)).context(from)?;
        }
        std::os::unix::fs::symlink(stand.path("agent/audit.jsonl"), stand.path("agent.jsonl"))?;
        let has_token =
            [Run::Stand(Beside::Nothing), Run::Stand(Beside::Bearer), Run::StandIn(Vendor::Keycloak)];
        if !has_token.contains(&self.run) {
            return Ok(());
        }
        let token = stand.issuer.token("ada").await?;
        std::fs::write(stand.path("token"), &token)?;
        stand.wait_status("/wiki/", &token, 200, wait::SOON).await
    }

    /// Somebody at this stand, in ada's session where there is one.
    pub(super) fn reader(&self) -> Result<Reader<'_>> {
        let stand = &self.stand;
        let is_second = self.run == Run::Stand(Beside::Restored);
        let dir = if is_second { stand.path("second") } else { stand.dir().to_owned() };
        let mut env = vec![
            ("POSTERN_RELAY_CONFIG", text(&dir.join("relay.toml"))),
            ("POSTERN_AGENT_CONFIG", text(&stand.path("agent.toml"))),
            ("POSTERN_CA", text(&stand.pki.ca_file())),
            ("CURL_CA_BUNDLE", text(&stand.pki.ca_file())),
            ("POSTERN_KEYRING", "file".to_owned()),
        ];
        env.extend(self.env.iter().cloned());
        let tools = stand.path("tools");
        let (programs, path) = (binary("postern")?, std::env::var("PATH").unwrap_or_default());
        let programs = programs.parent().context("the programs have no directory")?;
        env.push(("PATH", format!("{}:{}:{path}", tools.display(), programs.display())));
        let shell = Shell::start(&dir, &env)?;
        if let Some(sshd) = &self.sshd {
            // Its own idea of home is the user's, not the variable's.
            std::fs::create_dir_all(shell.home().join(".ssh"))?;
            std::fs::write(shell.home().join(".ssh/config"), sshd.settings())?;
            std::fs::create_dir(&tools)?;
            script(&tools.join("ssh"), "#!/bin/sh\nexec /usr/bin/ssh -F \"$HOME/.ssh/config\" \"$@\"\n")?;
        }
        let mut replaced = self.names.clone();
        replaced.extend([
            ("1080".to_owned(), wait::free_port()?.to_string()),
            ("relay.example.com".to_owned(), format!("127.0.0.1:{}", stand.port)),
            ("/var/log/postern".to_owned(), text(stand.dir())),
            ("/etc/postern".to_owned(), text(stand.dir())),
            ("/run/secrets".to_owned(), text(stand.dir())),
        ]);
        let mut reader = Reader::new(shell, replaced, Codes::At(&stand.issuer));
        reader.workload.clone_from(&self.workload);
        reader.browser = Some(stand.path(crate::browser::RUNS));
        reader.alone = is_second;
        reader.sessions = self.ada.state_dir().ancestors().nth(2).map(Path::to_owned);
        reader.apart = matches!(self.run, Run::StandIn(_) | Run::Stand(Beside::Browser));
        Ok(reader)
    }

    /// After a block: a person who logged in at a vendor is let in as the page says; a program's token is taken, and is the program's.
    pub(super) async fn judge(&self, reader: &mut Reader<'_>, block: &Block) -> Result<()> {
        if !matches!(self.run, Run::StandIn(_)) || !block.text.contains("postern login") {
            return Ok(());
        }
        let line = if block.text.contains("--client-credentials") {
            let id =
                block.text.split_once("--client-id ").and_then(|(_, rest)| rest.split_whitespace().next());
            format!("postern whoami --json | grep -F '\"{}\"'", id.context("no client id")?)
        } else {
            "postern curl -sSf -o /dev/null wiki/".to_owned()
        };
        let done = reader.shell.run(&line).await?;
        ensure!(done.code == 0, "{line}: {}", done.printed);
        Ok(())
    }

    /// The page connects twice; whoever only looked whether a port is there would be counted, too.
    async fn connected(&self, service: &str) -> Result<()> {
        let is_it = |line: &JsonValue| {
            line["event"] == "decision" && line["service"] == service && line["outcome"] == "allow"
        };
        self.stand.wait_audit(2, is_it).await.map(drop)
    }

    /// Whether all came to what the page says.
    pub(super) async fn end(mut self) -> Result<()> {
        match self.run {
            Run::Stand(Beside::Database) => {
                let database = self.database.as_mut().context("no database")?;
                // Once for the table, and twice through a forward.
                database.wait_log("connection authorized: user=ada", 3).await?;
                self.connected("ledger-db").await?;
            }
            Run::Stand(Beside::Sshd) => {
                let sshd = self.sshd.as_mut().context("no sshd")?;
                sshd.wait_log("Accepted publickey").await?;
                self.connected("admin-ssh").await?;
            }
            Run::Stand(Beside::Restored) => {
                // The agent that was there all the time goes on with the new relay.
                let mut relay = command(binary("postern-relay")?, ["-c"]);
                relay.arg(self.stand.path("second/relay.toml")).arg("run").env_remove("POSTERN_LOG");
                let _second = Program::start("the second relay", relay, &self.stand.path("second.log"))?;
                let token = self.stand.issuer.token("ada").await?;
                self.stand.wait_status("/wiki/", &token, 200, wait::SOON * 2).await?;
            }
            Run::Stand(Beside::Taken) => {
                let (_, taken) = self.names.last().context("nobody was taken")?;
                taken::is_over(&mut self.stand, taken).await?;
            }
            Run::Stand(Beside::Browser) => {
                let shown = self.stand.path("shown.json");
                let is_back = || {
                    std::fs::read_to_string(&shown).is_ok_and(|text| text.contains("Return to the terminal"))
                };
                wait::until("Chromium came back", wait::SOON, async || is_back().then_some(())).await?;
            }
            Run::Stand(Beside::Nothing | Beside::Platform | Beside::Bearer)
            | Run::StandIn(_)
            | Run::FromNothing
            | Run::Machine
            | Run::Long => {}
        }
        self.stand.passed();
        Ok(())
    }
}

/// A relay.toml's first issuer.
fn entry(relay: &Table) -> Option<&Table> {
    relay.get("issuers")?.get(0)?.as_table()
}
