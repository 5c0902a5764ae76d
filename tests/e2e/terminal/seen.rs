//! Takes command lines; runs each of them as a person sees it on a terminal, with colour and without, as it is where its output goes to a
//! file, and as JSON; keeps all of it as files under `tests/golden/terminal`. Complains, at the end and at once, of what is not as its
//! file has it, of exit codes, of lines wider than a terminal, of JSON that is none or not as its schema says.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use postern_tests::client::Cli;
use postern_tests::process::{self, Output};
use postern_tests::stacks;
use postern_tests::stand::Stand;
use postern_tests::terminal;
use serde_json::{Value, json};

use super::pages::Pages;
use super::{pages, same, schemas};

const LIMIT: Duration = Duration::from_secs(40);

/// Who types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Ada,
    Bob,
    /// On the agent's machine.
    Agent,
    /// On the relay's machine.
    Relay,
}

impl Who {
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Ada | Self::Bob => "postern",
            Self::Agent => "postern-agent",
            Self::Relay => "postern-relay",
        }
    }
}

/// How it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Elsewhere than on a terminal.
    Piped,
    /// On a terminal, in colour.
    Colour,
    /// On a terminal without colour; it is held against the one in colour and not kept.
    NoColour,
    Json,
}

impl Look {
    pub(super) const ALL: [Self; 4] = [Self::Piped, Self::Colour, Self::NoColour, Self::Json];
    pub(super) const TEXT: [Self; 3] = [Self::Piped, Self::Colour, Self::NoColour];
    /// Of what is not the same twice.
    pub(super) const KEPT: [Self; 3] = [Self::Piped, Self::Colour, Self::Json];

    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Piped => "txt",
            Self::Colour | Self::NoColour => "colour.txt",
            Self::Json => "json.txt",
        }
    }

    pub(super) fn is_terminal(self) -> bool {
        matches!(self, Self::Colour | Self::NoColour)
    }
}

async fn run(look: Look, command: Command) -> Result<Output> {
    if look.is_terminal() {
        // Whoever is asked whether to log in says no.
        return terminal::run(&command, &[("[Y/n] ", "n\n")], LIMIT).await;
    }
    process::run(command, LIMIT).await
}

/// All that was seen so far.
pub(super) struct Seen {
    pub(super) stand: Stand,
    pub(super) ada: Cli,
    pub(super) bob: Cli,
    /// The port of the service that is down.
    pub(super) dead: u16,
    /// The walk, and the directory of its files.
    name: &'static str,
    pages: Pages,
    /// By schema: what printed it, and the document.
    documents: BTreeMap<PathBuf, Vec<(String, Value)>>,
    logs: u32,
}

impl Seen {
    pub(super) fn new(name: &'static str, stand: Stand, dead: u16) -> Result<Self> {
        let (ada, bob) = (stand.cli("ada")?, stand.cli("bob")?);
        let (pages, documents) = (Pages::default(), BTreeMap::new());
        Ok(Self { stand, ada, bob, dead, name, pages, documents, logs: 0 })
    }

    /// Ada logs in, and nobody looks.
    pub(super) async fn ada_logs_in(&self) -> Result<()> {
        self.ada.login_device(&self.stand.issuer, "ada", &[]).await?.expect_code(0).map(drop)
    }

    /// A file for what a program says.
    pub(super) fn log(&mut self) -> PathBuf {
        self.logs += 1;
        self.stand.path(&format!("running-{}.log", self.logs))
    }

    /// Something that changes nothing, in every way.
    pub(super) async fn run(&mut self, who: Who, line: &str, code: i32) -> Result<()> {
        self.looks(&Look::ALL, who, line, code).await
    }

    /// The same of what has no JSON.
    pub(super) async fn text(&mut self, who: Who, line: &str, code: i32) -> Result<()> {
        self.looks(&Look::TEXT, who, line, code).await
    }

    /// What only one process can do at a time, in every way.
    pub(super) async fn alone(&mut self, who: Who, line: &str, code: i32) -> Result<()> {
        for look in Look::ALL {
            self.look(look, who, line, code).await?;
        }
        Ok(())
    }

    /// What makes this file, which is not there before, in every way.
    pub(super) async fn making(&mut self, file: &str, who: Who, line: &str, code: i32) -> Result<()> {
        for look in Look::ALL {
            match std::fs::remove_file(self.stand.path(file)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => self.look(look, who, line, code).await?,
            };
        }
        Ok(())
    }

    async fn looks(&mut self, looks: &[Look], who: Who, line: &str, code: i32) -> Result<()> {
        let commands: Vec<_> =
            looks.iter().map(|look| self.command(*look, who, line)).collect::<Result<_>>()?;
        // They change nothing, so that they may go on at once.
        let runs = looks.iter().zip(commands).map(|(look, command)| run(*look, command));
        for (look, output) in looks.iter().zip(join_all(runs).await) {
            self.judge(*look, who, line, code, &output.with_context(|| line.to_owned())?);
        }
        Ok(())
    }

    /// In one way; gives what was printed.
    pub(super) async fn look(&mut self, look: Look, who: Who, line: &str, code: i32) -> Result<Output> {
        let output = run(look, self.command(look, who, line)?).await.with_context(|| line.to_owned())?;
        self.judge(look, who, line, code, &output);
        Ok(output)
    }

    /// The command as it is run; `-c FILE` in front names another configuration of the stand's directory.
    pub(super) fn command(&self, look: Look, who: Who, line: &str) -> Result<Command> {
        let line = line.replace("RELAY", &format!("127.0.0.1:{}", self.stand.port));
        let line = line.replace("ISSUER", self.stand.issuer.iss());
        let line = line.replace("DIR/", &format!("{}/", self.stand.dir().display()));
        let mut words = shlex::split(&line).context("quotes")?;
        let mut file = format!("{}.toml", who.program().trim_start_matches("postern-"));
        if matches!(who, Who::Agent | Who::Relay) && words.first().is_some_and(|word| word == "-c") {
            file = words.drain(..2).next_back().unwrap_or_default();
        }
        if look == Look::Json {
            words.insert(0, "--json".to_owned());
        }
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = match who {
            Who::Ada => self.ada.command(&args)?,
            Who::Bob => self.bob.command(&args)?,
            Who::Agent | Who::Relay => self.stand.with_config(who.program(), &file, &args)?,
        };
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        if look == Look::Colour {
            command.env_remove("NO_COLOR");
        }
        Ok(command)
    }

    /// Keeps a run, and looks at its lines and its exit code.
    pub(super) fn judge(&mut self, look: Look, who: Who, line: &str, code: i32, output: &Output) {
        let relay = format!("127.0.0.1:{}", self.stand.port);
        // As wide as what it stands for.
        let issuer = self.stand.issuer.iss().trim_start_matches("https://").to_owned();
        let named = |text: &str| {
            let text =
                text.replace(&relay, "relay.local:443").replace(&relay.replace(':', "+"), "relay.local+443");
            same::words(&text.replace(&issuer, "id.example:8443"))
        };
        let words = pages::command_words(line);
        let name = words.first().copied().unwrap_or("alone");
        let json = if look == Look::Json { " --json" } else { "" };
        let who_else = if who == Who::Bob { "bob" } else { "" };
        let typed = format!("{who_else}$ {}{json} {line}", who.program()).replace("RELAY", "relay.local:443");
        let typed = named(typed.trim_end());
        let mut shown = output.clone();
        if look == Look::Json {
            shown.stdout = self.documents(who, &typed, &words, output);
        }
        shown.stdout = named(&shown.stdout);
        shown.stderr = named(&shown.stderr);
        if look.is_terminal() {
            self.pages.fits(&typed, &output.stdout);
        }
        let page = format!("{}/{}/{name}", self.name, who.program());
        self.pages.add(look, &page, &typed, &shown);
        if output.code != code {
            let found = output.code;
            let what = format!("exit code {found} instead of {code}: {typed}\n{output:?}");
            self.pages.complaints.push(what);
        }
    }

    /// The JSON documents that were printed, laid out for people; those that have a schema are kept to be held against it.
    fn documents(&mut self, who: Who, typed: &str, words: &[&str], output: &Output) -> String {
        let mut text = String::new();
        for document in serde_json::Deserializer::from_str(&output.stdout).into_iter::<Value>() {
            let mut document = match document {
                Ok(document) => document,
                Err(error) => {
                    self.pages.complaints.push(format!("not JSON ({error}): {typed}\n{}", output.stdout));
                    return output.stdout.clone();
                }
            };
            match schemas::of(who.program(), words, &document) {
                Ok(Some(schema)) => {
                    self.documents.entry(schema).or_default().push((typed.to_owned(), document.clone()));
                }
                Ok(None) => {}
                Err(missing) => self.pages.complaints.push(format!("{typed}: {missing}")),
            }
            same::document(&mut document);
            // Writing to a String does not fail.
            let _ = writeln!(text, "{document:#}");
        }
        text
    }

    /// Holds all of it against files and schemas, as far as the walk went.
    pub(super) async fn finish(mut self, walked: Result<()>) -> Result<()> {
        let begun = self.pages.complaints.len();
        if let Err(error) = walked {
            self.pages.complaints.push(format!("the walk ended here: {error:#}"));
        }
        let whole = self.pages.complaints.len() == begun;
        for (schema, documents) in std::mem::take(&mut self.documents) {
            let instances = self.stand.path("instances.json");
            std::fs::write(&instances, json!(documents).to_string())?;
            let job = json!({ "schema": schema, "instances": instances });
            let report = stacks::call("schema.py", &job, Duration::from_mins(1)).await?;
            for (name, mistake) in report.as_object().context("no report")? {
                if !mistake.is_null() {
                    self.pages.complaints.push(format!("{name}: not as {}: {mistake}", schema.display()));
                }
            }
        }
        if whole {
            self.stand.passed();
        }
        // Pages that a broken walk did not come to are no news.
        self.pages.finish(whole.then_some(self.name))
    }
}
