//! Takes command lines; runs each of them as a person sees it on a terminal, with colour and without, as it is where its output goes to a
//! file, and as JSON; keeps all of it as files under `tests/golden/terminal`. Complains, at the end and at once, of what is not as its
//! file has it, of exit codes, of lines wider than a terminal, of JSON that is none or not as its schema says.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::golden;
use postern_tests::process::{self, Output};
use postern_tests::stacks;
use postern_tests::stand::Stand;
use postern_tests::terminal;
use serde_json::{Value, json};

use super::same;

const LIMIT: Duration = Duration::from_secs(40);
/// What a terminal has.
const WIDTH: usize = 80;
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

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

    fn ending(self) -> &'static str {
        match self {
            Self::Piped => "txt",
            Self::Colour | Self::NoColour => "colour.txt",
            Self::Json => "json.txt",
        }
    }
}

/// All that was seen so far.
pub(super) struct Seen {
    pub(super) stand: Stand,
    pub(super) ada: Cli,
    pub(super) bob: Cli,
    pages: Pages,
    /// By schema: what printed it, and the document.
    documents: BTreeMap<&'static str, Vec<(String, Value)>>,
}

impl Seen {
    pub(super) fn new(stand: Stand) -> Result<Self> {
        let (ada, bob) = (stand.cli("ada")?, stand.cli("bob")?);
        Ok(Self { stand, ada, bob, pages: Pages::default(), documents: BTreeMap::new() })
    }

    /// Something that changes nothing, in every way.
    pub(super) async fn run(&mut self, who: Who, line: &str, code: i32) -> Result<()> {
        self.looks(&Look::ALL, who, line, code).await
    }

    /// The same of what has no JSON.
    pub(super) async fn text(&mut self, who: Who, line: &str, code: i32) -> Result<()> {
        self.looks(&Look::TEXT, who, line, code).await
    }

    async fn looks(&mut self, looks: &[Look], who: Who, line: &str, code: i32) -> Result<()> {
        for look in looks {
            self.look(*look, who, line, code).await?;
        }
        Ok(())
    }

    /// In one way; gives what was printed.
    pub(super) async fn look(&mut self, look: Look, who: Who, line: &str, code: i32) -> Result<Output> {
        let command = self.command(look, who, line)?;
        let output = if matches!(look, Look::Colour | Look::NoColour) {
            terminal::run(&command, &[("[Y/n] ", "n\n")], LIMIT).await
        } else {
            process::run(command, LIMIT).await
        };
        let output = output.with_context(|| format!("{} {line}", who.program()))?;
        self.note(look, who, line, &output);
        if output.code != code {
            let what =
                format!("exit code {} instead of {code}: {} {line}\n{output:?}", output.code, who.program());
            self.pages.complaints.push(what);
        }
        Ok(output)
    }

    /// The command as it is run; `-c FILE` in front names another configuration of the stand's directory.
    pub(super) fn command(&self, look: Look, who: Who, line: &str) -> Result<Command> {
        let line = line.replace("RELAY", &format!("127.0.0.1:{}", self.stand.port));
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

    /// Keeps a run, and looks at its lines.
    pub(super) fn note(&mut self, look: Look, who: Who, line: &str, output: &Output) {
        let relay = format!("127.0.0.1:{}", self.stand.port);
        // As wide as what it stands for.
        let issuer = self.stand.issuer.iss().trim_start_matches("https://").to_owned();
        let named = |text: &str| {
            let text =
                text.replace(&relay, "relay.local:443").replace(&relay.replace(':', "+"), "relay.local+443");
            same::words(&text.replace(&issuer, &"issuer.example.com.".repeat(3)[..issuer.len()]))
        };
        let name = line.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
        let name = if line.starts_with("-c ") { line.split(' ').nth(2) } else { name }.unwrap_or("alone");
        let json = if look == Look::Json { " --json" } else { "" };
        let who_else = if who == Who::Bob { "bob" } else { "" };
        let typed = format!("{who_else}$ {}{json} {line}", who.program()).replace("RELAY", "relay.local:443");
        let mut shown = output.clone();
        if look == Look::Json {
            shown.stdout = self.documents(who, &typed, name, output);
        }
        shown.stdout = named(&shown.stdout);
        shown.stderr = named(&shown.stderr);
        let page = format!("{}/{name}", who.program());
        self.pages.add(look, &page, typed.trim_end(), &shown);
    }

    /// The JSON documents that were printed, laid out for people; those that have a schema are kept to be held against it.
    fn documents(&mut self, who: Who, typed: &str, name: &str, output: &Output) -> String {
        let mut text = String::new();
        for document in serde_json::Deserializer::from_str(&output.stdout).into_iter::<Value>() {
            let document = match document {
                Ok(document) => document,
                Err(error) => {
                    self.pages.complaints.push(format!("not JSON ({error}): {typed}\n{}", output.stdout));
                    return output.stdout.clone();
                }
            };
            let schema = match (who, name) {
                (Who::Relay, "status") => Some("relay-status"),
                (Who::Agent, "status") => Some("agent-status"),
                (Who::Relay, "issuer") => Some("relay-issuer-test"),
                (_, "doctor") => Some("doctor"),
                _ => None,
            };
            if let Some(schema) = schema.filter(|_| document.get("error").is_none()) {
                self.documents.entry(schema).or_default().push((typed.to_owned(), document.clone()));
            }
            // Writing to a String does not fail.
            let _ = writeln!(text, "{document:#}");
        }
        text
    }

    /// Holds all of it against files and schemas.
    pub(super) async fn finish(mut self) -> Result<()> {
        for (schema, documents) in std::mem::take(&mut self.documents) {
            let instances = self.stand.path("instances.json");
            std::fs::write(&instances, json!(documents).to_string())?;
            let schema = Path::new(ROOT).join(format!("docs/schema/{schema}.schema.json"));
            let job = json!({ "schema": schema, "instances": instances });
            let report = stacks::call("schema.py", &job, Duration::from_mins(1)).await?;
            for (name, mistake) in report.as_object().context("no report")? {
                if !mistake.is_null() {
                    self.pages.complaints.push(format!("{name}: not as {}: {mistake}", schema.display()));
                }
            }
        }
        self.pages.finish(&["postern", "postern-agent", "postern-relay"])?;
        self.stand.passed();
        Ok(())
    }
}

/// Pages of transcripts, by name.
#[derive(Debug, Default)]
pub(super) struct Pages {
    texts: BTreeMap<String, String>,
    pub(super) complaints: Vec<String>,
    /// The last one in colour, without its colours.
    stripped: String,
}

impl Pages {
    /// Adds a run to a page; what it printed has its fixed words by now.
    pub(super) fn add(&mut self, look: Look, page: &str, typed: &str, output: &Output) {
        let mut text = format!("{typed}\n");
        for (name, shown) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let lines =
                if look == Look::Piped || look == Look::Json { format!("[{name}]\n") } else { String::new() };
            if !shown.is_empty() {
                text.push_str(&(lines + shown));
                text.push_str(if shown.ends_with('\n') { "" } else { "\n" });
            }
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "[exit {}]", output.code);
        let plain = stripped(&text);
        match look {
            Look::Piped | Look::Json if plain != text => {
                self.complaints.push(format!("colours where there is no terminal:\n{text}"));
            }
            Look::Colour => self.stripped.clone_from(&plain),
            Look::NoColour if plain != text => {
                self.complaints.push(format!("colours in spite of NO_COLOR:\n{text}"))
            }
            Look::NoColour if plain != self.stripped => {
                let what = format!(
                    "colour changes more than colour: {typed}\n{}",
                    difference(&self.stripped, &plain)
                );
                self.complaints.push(what);
            }
            Look::Piped | Look::Json | Look::NoColour => {}
        }
        if look == Look::NoColour {
            return;
        }
        for line in plain.lines().filter(|line| look != Look::Json && !line.starts_with(typed)) {
            let url = line.trim().starts_with("http") && !line.trim().contains(' ');
            if line.chars().count() > WIDTH && !url {
                let width = line.chars().count();
                self.complaints.push(format!("{page}.{}: {width} columns: {line}", look.ending()));
            }
        }
        let shown = text.replace('\u{1b}', "␛").replace('\r', "␍");
        self.texts.entry(format!("{page}.{}", look.ending())).or_default().push_str(&shown);
    }

    /// Holds all pages against their files; files of these directories that nothing was seen for are a mistake as well.
    pub(super) fn finish(mut self, dirs: &[&str]) -> Result<()> {
        for (page, text) in &self.texts {
            if let Err(error) = golden::check(&format!("terminal/{page}"), text) {
                self.complaints.push(format!("{error:#}"));
            }
        }
        for dir in dirs {
            let files = std::fs::read_dir(Path::new(ROOT).join("tests/golden/terminal").join(dir))?;
            for file in files.flatten() {
                let name = format!("{dir}/{}", file.file_name().to_string_lossy());
                if file.path().is_file() && !self.texts.contains_key(&name) {
                    self.complaints
                        .push(format!("tests/golden/terminal/{name}: nothing prints it: delete it"));
                }
            }
        }
        ensure!(self.complaints.is_empty(), "{}", self.complaints.join("\n\n"));
        Ok(())
    }
}

/// Without escape sequences that choose colours and weights.
fn stripped(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('m').filter(|(codes, _)| codes.bytes().all(|b| b.is_ascii_digit() || b == b';'))
        {
            Some((_, rest)) => plain.push_str(rest),
            None => {
                plain.push_str("\u{1b}[");
                plain.push_str(part);
            }
        }
    }
    plain
}

/// The first line that differs.
fn difference(one: &str, other: &str) -> String {
    let (mut ones, mut others) = (one.lines(), other.lines());
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return "nothing but line ends".to_owned(),
            (one, other) if one != other => {
                return format!("- {}\n+ {}", one.unwrap_or("(the end)"), other.unwrap_or("(the end)"));
            }
            _ => {}
        }
    }
}
