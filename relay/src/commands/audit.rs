//! `audit tail`, `audit find`, `audit verify`: read the log's files, whether or not a relay runs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use postern_base::audit::chain::ChainKey;
use postern_base::config::Source;
use postern_base::console::{self, Done, Exit, Failure, fold};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Context, block_on};
use crate::audit::files::{self, Follow};
use crate::audit::reconcile::{self, AgentSide, Reconciled, RelaySide};
use crate::audit::verify::{Report, Verifier};
use crate::audit::{Asked, Finder, Pseudonyms};
use crate::cli;
use crate::config::file::{AuditFile, StateFile};

use self::verdict::Given;

mod show;
mod verdict;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Findings that a person gets to read: the first are those to look at; `--json` has more.
const SHOWN: usize = 10;
/// Lines that `tail` begins with.
const LAST: usize = 10;

pub(super) fn run(context: &Context, command: &cli::Audit) -> Done {
    match command {
        cli::Audit::Tail { denied } => tail(context, *denied),
        cli::Audit::Find(asked) => find(context, asked),
        cli::Audit::Verify(what) => verify(context, what),
    }
}

/// Where the log is, by no more of the configuration than that takes, so that a file that is being edited keeps nobody from it.
struct Log {
    file: PathBuf,
    pseudonyms: Option<Pseudonyms>,
}

impl Log {
    fn of(context: &Context) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Where {
            #[serde(default)]
            audit: AuditFile,
            state: StateFile,
        }
        let invalid = |e| context.invalid(&[e]);
        let source = Source::read(&context.config).map_err(invalid)?;
        let Where { audit, state } = source.parse().map_err(invalid)?;
        if audit.file == Path::new("-") {
            let text = "the audit log goes to stdout: look where the relay's output is kept, or set audit.file in relay.toml";
            return Err(Failure::new(Exit::Failed, text));
        }
        let redact = crate::settings::Redact::from(&*audit.redact);
        // Whoever may not read the key can still look for what needs none.
        let pseudonyms = Pseudonyms::read(redact, &source.dir().join(state.dir)).ok();
        Ok(Self { file: source.dir().join(audit.file), pseudonyms })
    }
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |e| Failure::new(Exit::Failed, format!("{}: {e}", path.display()))
}

fn tail(context: &Context, denied: bool) -> Done {
    let log = Log::of(context)?;
    let finder = Finder::new(Asked { denied, ..Asked::default() }, None);
    let mut follow = Follow::open(&log.file).map_err(unreadable(&log.file))?;
    let chosen = |lines: Vec<Vec<u8>>| {
        let read = lines.into_iter().filter_map(|line| Some((serde_json::from_slice(&line).ok()?, line)));
        read.filter(|(line, _): &(Value, _)| finder.chooses(line)).collect::<Vec<_>>()
    };
    block_on(async {
        let mut skip = None;
        loop {
            let lines = chosen(follow.more().map_err(unreadable(&log.file))?);
            let first = skip.unwrap_or(lines.len().saturating_sub(LAST));
            skip = Some(0);
            for (line, raw) in lines.iter().skip(first) {
                if !put(context, line, raw)? {
                    return Ok(());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                stopped = tokio::signal::ctrl_c() => return Ok(stopped?),
            }
        }
    })?
}

fn find(context: &Context, args: &cli::FindAudit) -> Done {
    let log = Log::of(context)?;
    let since = args.since.map(|span| Timestamp::now() - span.0);
    let asked = Asked {
        request: args.request.clone(),
        token: args.token.clone(),
        user: args.user.clone(),
        service: args.service.as_ref().map(ToString::to_string),
        agent: args.agent.as_ref().map(ToString::to_string),
        status: args.status,
        since,
        denied: false,
    };
    let mut finder = Finder::new(asked, log.pseudonyms.as_ref());
    let all = files::all(&log.file).map_err(unreadable(&log.file))?;
    for file in &all {
        let noted = files::each_line(file, |line| {
            if let Ok(line) = serde_json::from_slice(line) {
                finder.note(&line);
            }
        });
        noted.map_err(unreadable(file))?;
    }
    let (mut count, mut out) = (0, Ok(true));
    for file in &all {
        let read = files::each_line(file, |raw| {
            if let Ok(true) = out
                && let Ok(line) = serde_json::from_slice(raw)
                && finder.chooses(&line)
            {
                count += 1;
                out = put(context, &line, raw);
            }
        });
        read.map_err(unreadable(file))?;
    }
    out?;
    if count == 0 {
        context.output.note("nothing found");
    }
    Ok(())
}

/// One line, for people or as it is; false when nobody reads any more.
fn put(context: &Context, line: &Value, raw: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let written = if context.output.json {
        out.write_all(raw).and_then(|()| out.write_all(b"\n"))
    } else {
        let shown = fold::suited(&out, show::line(line));
        writeln!(out, "{shown}")
    };
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn verify(context: &Context, args: &cli::VerifyAudit) -> Done {
    let key = args.key_file.as_deref().map(read_key).transpose()?;
    let files = in_order(&args.files)?;
    let mut agent = AgentSide::default();
    for path in &args.against {
        files::each_line(path, |line| agent.line(line)).map_err(unreadable(path))?;
    }
    let mut relay = RelaySide::default();
    let mut held = std::collections::BTreeMap::new();
    if !args.against.is_empty() {
        if agent.is_empty() {
            let text = "--against: there is no request and no head in it: give an agent's audit log (audit.file in agent.toml)";
            return Err(Failure::new(Exit::Usage, text));
        }
        for path in &files {
            files::each_line(path, |line| relay.line(line)).map_err(unreadable(path))?;
        }
        held = agent.heads(&relay);
    }
    let given =
        Given { key: key.is_some(), agents: !args.against.is_empty(), numbers_only: args.numbers_only };
    let mut verifier = Verifier::new(key, held);
    for path in &files {
        verifier.file(&path.display().to_string());
        let half = files::each_line(path, |line| verifier.line(line)).map_err(unreadable(path))?;
        if half > 0 {
            let file = path.display();
            context
                .output
                .note(format!("! {file} ends with half a line, left out: a relay may be writing it"));
        }
    }
    let mut report = verifier.finish();
    if report.lines == 0 {
        return Err(Failure::new(Exit::Failed, "there is no line in what was given: nothing was verified"));
    }
    let Reconciled { shared, findings, notes } = reconcile::reconcile(&relay, &agent);
    report.notes.extend(notes);
    for finding in findings {
        report.find(finding);
    }
    report.notes.extend(given.notes(&report));
    tell(context, &report, given, given.agents.then_some(shared))
}

/// `audit verify --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Verified<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// None: nothing wrong was found, and nothing was proved either.
    ok: Option<bool>,
    /// Whether it was held against a key.
    key: bool,
    /// Requests that both the relay's log and the agents' have, where there are agents'.
    requests_shared: Option<u64>,
}

fn tell(context: &Context, report: &Report, given: Given, shared: Option<u64>) -> Done {
    let ok = verdict::ok(report);
    if context.output.json {
        console::json(&Verified { report, ok, key: given.key, requests_shared: shared })?;
    } else {
        for finding in report.findings.iter().take(SHOWN) {
            let at = finding.file.as_deref().zip(finding.line);
            console::line(
                at.map_or(finding.text.clone(), |(file, line)| format!("{file}:{line}: {}", finding.text)),
            )?;
        }
        let more = report.more + report.findings.len().saturating_sub(SHOWN) as u64;
        if more > 0 {
            console::line(format!("and {more} more"))?;
        }
        for note in &report.notes {
            context.output.note(note);
        }
        let seen = format!(
            "{} line(s), seq {} to {}",
            report.lines,
            report.first.unwrap_or(0),
            report.last.unwrap_or(0)
        );
        let shared = shared.map_or(String::new(), |n| {
            format!(", {n} request(s) in both logs, {} head(s) of the agent's met", report.heads_met)
        });
        context.output.note(format!("{seen}{shared}: {}", given.verdict(report)));
    }
    if ok.unwrap_or(given.numbers_only) { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn read_key(path: &Path) -> Result<ChainKey, Failure> {
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable(path))?);
    let bad = || {
        Failure::new(
            Exit::Usage,
            format!("{}: no key of an audit log: the one that init showed begins with pak1_", path.display()),
        )
    };
    ChainKey::parse(&text).ok_or_else(bad)
}

/// The files by the number of their first line, in whatever order they were given.
fn in_order(files: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut numbered = Vec::new();
    for path in files {
        let mut first = None;
        files::each_line(path, |line| {
            if first.is_none() {
                first = postern_base::audit::chain::Sealed::parse(line).map(|line| line.sequence);
            }
        })
        .map_err(unreadable(path))?;
        numbered.push((first, path.clone()));
    }
    numbered.sort_by_key(|(first, _)| *first);
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}
