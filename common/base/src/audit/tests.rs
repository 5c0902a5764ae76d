use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::chain::{ChainKey, Mark, Sealed};
use super::*;

fn settings(path: &Path) -> LogSettings {
    let rotate = Rotate { size: None, keep_for: None };
    LogSettings { to: Destination::File(path.to_owned()), rotate, reserve: 0, full: WhenFull::Block }
}

fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A chained log; its key where this is its first opening.
fn chained(dir: &Path, settings: &LogSettings) -> (Log, Option<ChainKey>) {
    let path = dir.join("audit.key");
    let key = Chain::create(&path).unwrap();
    (Log::open(settings, Some(Chain::open(&path).unwrap())).unwrap(), key)
}

/// Every line of these files is proved by the key, one after the other, but for the numbers that are missing.
fn proved(files: &[&Path], mut key: ChainKey) -> Vec<u64> {
    let (mut mark, mut next, mut missing) = (Mark::START, 1, Vec::new());
    for file in files {
        for line in std::fs::read(file).unwrap().split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            let sealed = Sealed::parse(line).unwrap();
            let value: Value = serde_json::from_slice(line).unwrap();
            if let Some(told) = value["after"].as_str() {
                mark = Mark::parse(told).unwrap();
            }
            while next < sealed.sequence {
                missing.push(next);
                key.ratchet();
                next += 1;
            }
            assert!(sealed.is_proved_by(&key, mark.mac), "{value}");
            mark = Mark { head: sealed.head(mark.head), mac: sealed.mac };
            key.ratchet();
            next += 1;
        }
    }
    missing
}

#[test]
fn every_line_of_every_worker_is_written_whole_before_the_log_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let (log, key) = chained(dir.path(), &settings(&path));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let queue = log.queue();
            scope.spawn(move || {
                for n in 0..2000 {
                    queue.always(&json!({ "worker": worker, "n": n }));
                }
            });
        }
    });
    log.close();
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    for line in lines_of(&path) {
        let Some(worker) = line["worker"].as_u64() else { continue };
        let next = next.entry(worker).or_default();
        assert_eq!(line["n"], *next, "a worker's lines keep their order");
        *next += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [2000; 4]);
    assert_eq!(proved(&[&path], key.unwrap()), [0; 0]);
    assert_eq!(log.head().unwrap().0, 8001, "the file's own first line counts");
}

#[test]
fn a_disk_that_refuses_makes_decisions_fail_and_memory_stay_bounded() {
    let log = Log::open(&settings(Path::new("/dev/full")), None).unwrap();
    let queue = log.queue();
    log.record(&json!({}));
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.is_healthy() {
        assert!(Instant::now() < deadline, "the failure is noticed");
        std::thread::yield_now();
    }
    let before = log.shared.waiting.load(Ordering::Relaxed);
    for _ in 0..1000 {
        assert_eq!(queue.record(&json!({})), Err(LogFull));
    }
    assert_eq!(log.shared.waiting.load(Ordering::Relaxed), before);
    assert_eq!((log.lost(), log.room()), (1000, Room::Gone));
    log.close();
}

#[test]
fn a_chain_goes_on_over_restarts_and_tells_what_a_crash_took() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let settings = settings(&path);
    let (log, key) = chained(dir.path(), &settings);
    let key = key.unwrap();
    log.record(&json!({ "n": 1 }));
    log.record(&json!({ "n": 2 }));
    log.close();
    drop(log);
    chained(dir.path(), &settings).0.close();
    assert_eq!(lines_of(&path).len(), 3, "nothing is missing, and nothing is said");

    // The last line torn in its middle, as a power cut leaves it.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    let (log, none) = chained(dir.path(), &settings);
    assert!(none.is_none());
    log.record(&json!({ "n": 4 }));
    log.close();
    let lines = lines_of(&path);
    let gap = &lines[2];
    assert_eq!((&gap["event"], &gap["reason"]), (&json!("gap"), &json!("crash")));
    assert_eq!(
        (&gap["seq"], &gap["first"], &gap["last"], &gap["lost"]),
        (&json!(4), &json!(3), &json!(3), &json!(1))
    );
    assert!(gap["torn_bytes"].as_u64().unwrap() > 20, "{gap}");
    assert_eq!(lines[3]["n"], 4);
    assert_eq!(proved(&[&path], key), [3]);
}

#[test]
fn a_state_older_than_the_log_is_led_on_by_lines_that_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let settings = settings(&path);
    let (log, key) = chained(dir.path(), &settings);
    let old = std::fs::read(dir.path().join("audit.key")).unwrap();
    log.record(&json!({ "n": 1 }));
    log.record(&json!({ "n": 2 }));
    log.close();
    drop(log);
    std::fs::write(dir.path().join("audit.key"), &old).unwrap();
    let (log, _) = chained(dir.path(), &settings);
    log.record(&json!({ "n": 3 }));
    log.close();
    drop(log);
    assert_eq!(lines_of(&path).len(), 4);
    assert_eq!(proved(&[&path], key.unwrap()), [0; 0]);

    // Lines that somebody else put there are not taken for its own.
    std::fs::write(dir.path().join("audit.key"), &old).unwrap();
    let text = std::fs::read_to_string(&path).unwrap().replace("\"n\":2", "\"n\":9");
    std::fs::write(&path, text).unwrap();
    chained(dir.path(), &settings).0.close();
    let lines = lines_of(&path);
    assert_eq!(lines.last().unwrap()["reason"], "unproved", "{lines:?}");
}

#[test]
fn files_are_put_aside_by_size_and_removed_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let rotate = Rotate { size: Some(2000), keep_for: Some(Duration::from_hours(1)) };
    let settings = LogSettings { rotate, reserve: 1 << 20, ..settings(&path) };
    let (log, key) = chained(dir.path(), &settings);
    for n in 0..30 {
        log.record(&json!({ "n": n, "padding": "x".repeat(100) }));
        let written = Instant::now() + Duration::from_secs(10);
        while log.shared.waiting.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < written);
            std::thread::yield_now();
        }
    }
    log.close();
    drop(log);
    let aside = rotated(&path).unwrap();
    assert!((2..=5).contains(&aside.len()), "{aside:?}");
    let mut files: Vec<&Path> = aside.iter().map(PathBuf::as_path).collect();
    files.push(&path);
    assert_eq!(proved(&files, key.unwrap()), [0; 0]);
    let numbers: Vec<u64> =
        files.iter().flat_map(|file| lines_of(file)).filter_map(|l| l["n"].as_u64()).collect();
    assert_eq!(numbers, (0..30).collect::<Vec<_>>());
    for (file, previous) in files[1..].iter().zip(&files) {
        let first = &lines_of(file)[0];
        assert_eq!(
            (&first["event"], first["previous"].as_str()),
            (&json!("file"), previous.file_name().unwrap().to_str())
        );
    }
    let old = std::time::SystemTime::now() - Duration::from_hours(2);
    std::fs::File::options().write(true).open(&aside[0]).unwrap().set_modified(old).unwrap();
    let settings = LogSettings { rotate: Rotate { size: None, ..rotate }, ..settings };
    chained(dir.path(), &settings).0.close();
    assert_eq!(rotated(&path).unwrap(), aside[1..]);
    let said = lines_of(&path).into_iter().find(|line| line["event"] == "file-removed").unwrap();
    assert_eq!(said["file"].as_str(), aside[0].file_name().unwrap().to_str());
}
