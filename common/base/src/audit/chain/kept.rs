//! The chain as whoever writes a log holds it: its next key, and where it stands, in a file that is locked meanwhile. Takes lines and seals
//! them; refuses a file that another process holds, or that is not whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::FlockOperation;
use zeroize::Zeroizing;

use super::{ChainKey, DIGEST_CHARS, MAC, Mark, SEQUENCE, Sealed, decode};

/// Where a chain stands, on disk.
const RECORD: &str = "postern audit chain 1\n";

/// Why a chain cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error(
        "there is no {0}: the audit log's chain is made, and its first key shown, by: postern-relay init"
    )]
    Missing(PathBuf),
    #[error("{0} is held by another process: only one may write an audit log")]
    Held(PathBuf),
    #[error(
        "{0} is damaged: bring it back from a backup; or move it away and make a new chain with: postern-relay init"
    )]
    Damaged(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The chain of one log, as whoever writes the log holds it; its file is locked meanwhile.
#[derive(Debug)]
pub struct Chain {
    file: File,
    /// Of the last line.
    sequence: u64,
    mark: Mark,
    /// Of the next line.
    key: ChainKey,
}

impl Chain {
    /// Begins a chain and gives its first key; `None` where there is one.
    pub fn create(path: &Path) -> Result<Option<ChainKey>, ChainError> {
        let io = |source| ChainError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = match file {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            other => other.map_err(io)?,
        };
        let key = ChainKey::random();
        let chain = Self { file, sequence: 0, mark: Mark::START, key: key.clone() };
        chain.persist().and_then(|()| chain.file.sync_all()).map_err(io)?;
        Ok(Some(key))
    }

    /// Takes up a chain where it was left.
    pub fn open(path: &Path) -> Result<Self, ChainError> {
        let io = |source| ChainError::Io { path: path.to_owned(), source };
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ChainError::Missing(path.to_owned()));
            }
            other => other.map_err(io)?,
        };
        crate::file::check_private(path).map_err(io)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| ChainError::Held(path.to_owned()))?;
        let mut record = Zeroizing::new(Vec::new());
        io::copy(&mut &file, &mut *record).map_err(io)?;
        let (sequence, key, mark) = read(&record).ok_or_else(|| ChainError::Damaged(path.to_owned()))?;
        Ok(Self { file, sequence, mark, key })
    }

    /// Sequence number of the last line, and where the chain stands behind it.
    pub fn stands(&self) -> (u64, Mark) {
        (self.sequence, self.mark)
    }

    /// Adds one line, an object as JSON without its line's end, to `out`.
    pub(in crate::audit) fn seal(&mut self, line: &[u8], out: &mut Vec<u8>) {
        self.sequence += 1;
        let start = out.len();
        out.extend_from_slice(SEQUENCE);
        // Writing to a Vec does not fail.
        let _ = write!(out, "{},", self.sequence);
        out.extend_from_slice(line.strip_prefix(b"{").and_then(|l| l.strip_suffix(b"}")).unwrap_or_default());
        let digest = digest::digest(&digest::SHA256, &out[start..]);
        let mac = self.key.over(self.mark.mac, digest.as_ref());
        self.mark = Mark { head: self.mark.head.after(digest.as_ref(), &mac), mac };
        out.extend_from_slice(MAC);
        let mut text = [0; DIGEST_CHARS];
        // 32 bytes are 43 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(mac.0, &mut text);
        out.extend_from_slice(&text);
        out.extend_from_slice(b"\"}\n");
        self.key.ratchet();
    }

    /// Goes over a line that is in the log already, written before this chain's state was; false where it is not ours.
    pub(in crate::audit) fn follow(&mut self, line: &Sealed<'_>) -> bool {
        if line.sequence != self.sequence + 1 || !line.is_proved_by(&self.key, self.mark.mac) {
            return false;
        }
        self.sequence += 1;
        self.mark = Mark { head: line.head(self.mark.head), mac: line.mac };
        self.key.ratchet();
        true
    }

    /// Writes down where the chain stands, before the lines up to here go to the log: what was used once is never used again.
    pub(in crate::audit) fn persist(&self) -> io::Result<()> {
        let mut record = Zeroizing::new(Vec::with_capacity(256));
        let key = Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.key.0));
        write!(record, "{RECORD}{:020} {} {}", self.sequence, *key, self.mark)?;
        let check = digest::digest(&digest::SHA256, &record);
        writeln!(record, " {}", URL_SAFE_NO_PAD.encode(check.as_ref()))?;
        self.file.write_all_at(&record, 0)
    }
}

fn read(record: &[u8]) -> Option<(u64, ChainKey, Mark)> {
    let text = std::str::from_utf8(record).ok()?.strip_suffix('\n')?;
    let (checked, check) = text.rsplit_once(' ')?;
    let expected = digest::digest(&digest::SHA256, checked.as_bytes());
    if decode(check.as_bytes())? != expected.as_ref() {
        return None;
    }
    let mut fields = checked.strip_prefix(RECORD)?.split(' ');
    let sequence = fields.next()?.parse().ok()?;
    let key = decode(fields.next()?.as_bytes())?;
    Some((sequence, ChainKey(Zeroizing::new(key)), Mark::parse(fields.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_proved_by_the_first_key_and_the_state_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.key");
        let mut key = Chain::create(&path).unwrap().unwrap();
        assert!(Chain::create(&path).unwrap().is_none(), "one that is there stays");
        let (mut log, mut mark) = (Vec::new(), Mark::START);
        for n in 1..=3 {
            let mut chain = Chain::open(&path).unwrap();
            assert!(matches!(Chain::open(&path), Err(ChainError::Held(_))));
            chain.seal(format!("{{\"n\":{n}}}").as_bytes(), &mut log);
            chain.persist().unwrap();
        }
        for (line, n) in log.split_inclusive(|byte| *byte == b'\n').zip(1..) {
            let sealed = Sealed::parse(&line[..line.len() - 1]).unwrap();
            assert_eq!(sealed.sequence, n);
            assert!(sealed.is_proved_by(&key, mark.mac));
            key.ratchet();
            assert!(!sealed.is_proved_by(&key, mark.mac), "a later key proves nothing earlier");
            mark = Mark { head: sealed.head(mark.head), mac: sealed.mac };
        }
        assert_eq!(Chain::open(&path).unwrap().stands(), (3, mark));
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        assert_eq!(ChainKey::parse(&key.expose()).unwrap().0, key.0);
        let mut record = std::fs::read(&path).unwrap();
        record[30] ^= 1;
        std::fs::write(&path, record).unwrap();
        assert!(matches!(Chain::open(&path), Err(ChainError::Damaged(_))));
    }

    #[test]
    fn the_format_does_not_change() {
        let key = ChainKey(Zeroizing::new([7; 32]));
        let file = tempfile::tempfile().unwrap();
        let mut chain = Chain { file, sequence: 0, mark: Mark::START, key };
        let mut out = Vec::new();
        chain.seal(br#"{"event":"x"}"#, &mut out);
        let expected =
            "{\"seq\":1,\"event\":\"x\",\"mac\":\"zf7FcfXVMP5K7YSWBlLM0oRRh0Jg9E4VBqfn0-vVuGQ\"}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
