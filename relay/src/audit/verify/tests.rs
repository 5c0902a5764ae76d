use std::path::Path;

use postern_base::audit::chain::Chain;
use postern_base::audit::{Destination, Log, LogSettings, Rotate, WhenFull};
use serde_json::json;

use super::*;

/// A log of these many lines behind the file's own, its key, and its last head.
fn log(dir: &Path, count: usize) -> (Vec<String>, ChainKey, (u64, Head)) {
    let state = dir.join("audit.key");
    let key = Chain::create(&state).unwrap().unwrap();
    let path = dir.join("audit.jsonl");
    let rotate = Rotate { size: None, keep_for: None };
    let settings =
        LogSettings { to: Destination::File(path.clone()), rotate, reserve: 0, full: WhenFull::Block };
    let log = Log::open(&settings, Some(Chain::open(&state).unwrap())).unwrap();
    (0..count).for_each(|n| log.record(&json!({ "event": "x", "n": n })));
    log.close();
    let text = std::fs::read_to_string(&path).unwrap();
    (text.lines().map(str::to_owned).collect(), key, log.head().unwrap())
}

fn verified(lines: &[String], key: Option<&ChainKey>, held: &[(u64, Head)]) -> Report {
    let mut verifier = Verifier::new(key.cloned(), held.iter().copied().collect());
    verifier.file("audit.jsonl");
    for line in lines {
        verifier.line(line.as_bytes());
    }
    verifier.finish()
}

fn found(report: &Report) -> Vec<(Kind, Option<u64>)> {
    report.findings.iter().map(|finding| (finding.kind, finding.seq)).collect()
}

#[test]
fn a_log_as_it_was_written_has_no_finding() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, key, head) = log(dir.path(), 20);
    let report = verified(&lines, Some(&key), &[head]);
    assert_eq!((found(&report), report.lines, report.proved, report.heads_met), (vec![], 21, 21, 1));
    assert_eq!((report.first, report.last), (Some(1), Some(21)));
    let report = verified(&lines, None, &[head]);
    assert_eq!((found(&report), report.proved, report.heads_met), (vec![], 0, 1), "heads need no key");
}

#[test]
fn whatever_is_done_to_a_line_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, key, head) = log(dir.path(), 20);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        lines
    };
    let changed = with(&|lines| lines[7] = lines[7].replace("\"n\":6", "\"n\":9"));
    let removed = with(&|lines| drop(lines.remove(7)));
    let moved = with(&|lines| lines.swap(7, 8));
    let repeated = with(&|lines| lines.insert(9, lines[7].clone()));
    let other = with(&|lines| lines.insert(9, "{\"event\":\"x\"}".to_owned()));
    let forged = with(&|lines| lines.insert(9, lines[7].replace("\"seq\":8", "\"seq\":500")));
    let cut = with(&|lines| lines.truncate(15));
    for (lines, by_key) in [
        (&changed, vec![(Kind::Changed, Some(8))]),
        (&removed, vec![(Kind::Missing, Some(8))]),
        (&repeated, vec![(Kind::OutOfOrder, Some(8))]),
        (&other, vec![(Kind::Malformed, None)]),
        (&cut, vec![]),
    ] {
        assert_eq!(found(&verified(lines, Some(&key), &[])), by_key);
    }
    assert_eq!(found(&verified(&moved, Some(&key), &[]))[0], (Kind::OutOfOrder, Some(8)));
    assert_eq!(found(&verified(&forged, Some(&key), &[]))[0], (Kind::OutOfOrder, Some(10)));
    assert_eq!(found(&verified(&forged, Some(&key), &[])).len(), 1, "what comes behind it is as it was");
    assert_eq!(found(&verified(&cut, Some(&key), &[head])), [(Kind::Truncated, Some(16))]);
    assert_eq!(found(&verified(&changed, None, &[head])), [(Kind::Rewritten, Some(1))], "without a key");
    let report = verified(&changed, Some(&key), &[]);
    assert_eq!((report.findings[0].file.as_deref(), report.findings[0].line), (Some("audit.jsonl"), Some(8)));
    let wrong = Chain::create(&dir.path().join("other.key")).unwrap().unwrap();
    assert_eq!(verified(&lines, Some(&wrong), &[]).findings.len(), 21, "another log's key proves nothing");
}

#[test]
fn any_single_byte_that_is_changed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, key, _) = log(dir.path(), 3);
    for at in 0..lines[2].len() {
        let mut bytes: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
        bytes[2][at] ^= 1;
        let mut verifier = Verifier::new(Some(key.clone()), BTreeMap::new());
        for line in &bytes {
            verifier.line(line);
        }
        assert!(!verifier.finish().findings.is_empty(), "byte {at}");
    }
}
