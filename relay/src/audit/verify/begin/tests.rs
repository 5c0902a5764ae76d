use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postern_base::audit::chain::{Chain, ChainKey, Head};
use postern_base::audit::{Destination, Log, LogSettings, Rotate, WhenFull};
use serde_json::json;

use super::super::{Kind, Report, Verifier};

const KEEP: Duration = Duration::from_hours(1);

/// A log that was put aside at least twice.
struct Written {
    dir: tempfile::TempDir,
    key: ChainKey,
    /// Heads as agents are told them.
    heads: Vec<(u64, Head)>,
}

impl Written {
    fn settings(dir: &Path) -> LogSettings {
        let rotate = Rotate { size: Some(2048), keep_for: Some(KEEP) };
        let to = Destination::File(dir.join("audit.jsonl"));
        LogSettings { to, rotate, reserve: 0, full: WhenFull::Block }
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = Chain::create(&dir.path().join("audit.key")).unwrap().unwrap();
        let mut written = Self { dir, key, heads: Vec::new() };
        while written.files().len() < 4 {
            written.more(20);
        }
        written
    }

    /// A relay that starts, writes these many lines, and ends.
    fn more(&mut self, lines: usize) {
        let chain = Chain::open(&self.dir.path().join("audit.key")).unwrap();
        let log = Log::open(&Self::settings(self.dir.path()), Some(chain)).unwrap();
        (0..lines).for_each(|n| log.record(&json!({ "event": "x", "n": n })));
        log.close();
        self.heads.extend(log.head());
    }

    /// Oldest first.
    fn files(&self) -> Vec<PathBuf> {
        crate::audit::files::all(&self.dir.path().join("audit.jsonl")).unwrap()
    }

    /// Makes the oldest file so old that the next start removes it.
    fn age_oldest(&self) {
        let file = std::fs::File::options().append(true).open(&self.files()[0]).unwrap();
        file.set_modified(SystemTime::now() - KEEP * 2).unwrap();
    }

    fn verified(&self, with_key: bool, held: &[(u64, Head)]) -> Report {
        let mut verifier = Verifier::new(with_key.then(|| self.key.clone()), held.iter().copied().collect());
        for path in self.files() {
            verifier.file("audit.jsonl");
            crate::audit::files::each_line(&path, |line| verifier.line(line)).unwrap();
        }
        verifier.finish()
    }
}

fn kinds(report: &Report) -> Vec<(Kind, Option<u64>)> {
    report.findings.iter().map(|finding| (finding.kind, finding.seq)).collect()
}

#[test]
fn an_oldest_file_that_somebody_removed_is_missing() {
    let written = Written::new();
    assert_eq!(kinds(&written.verified(true, &written.heads)), []);
    std::fs::remove_file(&written.files()[0]).unwrap();
    for (with_key, held) in [(true, &*written.heads), (true, &[]), (false, &written.heads), (false, &[])] {
        let report = written.verified(with_key, held);
        assert_eq!(kinds(&report), [(Kind::Missing, Some(1))], "{with_key} {held:?}");
        assert!(report.findings[0].text.contains("no line says that rotation removed them"));
        assert!(report.notes.is_empty() && report.first > Some(1));
    }
    let before = written.verified(true, &[]).first.unwrap() - 2;
    let report = written.verified(true, &[(before, Head([1; 32]))]);
    assert!(report.findings[0].text.contains("1 line(s) whose heads the agent holds"), "{report:?}");
}

#[test]
fn what_the_relay_itself_removed_is_told_and_is_no_finding() {
    let mut written = Written::new();
    written.age_oldest();
    written.more(3);
    let report = written.verified(true, &[]);
    let first = report.first.unwrap();
    assert!(first > 1);
    assert_eq!(kinds(&report), []);
    let told = format!(
        "begins at line {first}; lines 1 to {} were removed by rotation (file-removed lines say so)",
        first - 1
    );
    assert_eq!(report.notes, [told]);
    assert_eq!(kinds(&written.verified(false, &written.heads)), [], "heads prove it without a key");
    // Without either anybody may have written that line.
    let report = written.verified(false, &[]);
    assert_eq!(kinds(&report), [(Kind::Missing, Some(1))]);
    let early: Vec<_> = written.heads.iter().copied().filter(|(at, _)| *at < first).collect();
    assert_eq!(kinds(&written.verified(false, &early)), [(Kind::Missing, Some(1))]);

    // One file more than the relay says.
    std::fs::remove_file(&written.files()[0]).unwrap();
    assert_eq!(kinds(&written.verified(true, &[])), [(Kind::Missing, Some(1))]);
}

#[test]
fn the_first_line_names_the_head_that_the_agent_holds() {
    let mut written = Written::new();
    let oldest = std::fs::read_to_string(&written.files()[0]).unwrap();
    let mut before = Head([0; 32]);
    for line in oldest.lines() {
        before = postern_base::audit::chain::Sealed::parse(line.as_bytes()).unwrap().head(before);
    }
    written.age_oldest();
    written.more(3);
    let at = written.verified(true, &[]).first.unwrap() - 1;
    let report = written.verified(true, &[(at, before)]);
    assert_eq!((kinds(&report), report.heads_met), (vec![], 1));
    let report = written.verified(true, &[(at, Head([1; 32]))]);
    assert_eq!(kinds(&report), [(Kind::Rewritten, Some(at))]);
}

#[test]
fn a_beginning_that_is_no_files_first_line_is_missing() {
    let written = Written::new();
    let text = std::fs::read_to_string(&written.files()[0]).unwrap();
    let mut verifier = Verifier::new(Some(written.key.clone()), written.heads.iter().copied().collect());
    text.lines().skip(1).for_each(|line| verifier.line(line.as_bytes()));
    assert_eq!(kinds(&verifier.finish())[0], (Kind::Missing, Some(1)));
}
