//! What a log finds at its start: takes the end of its file and where its chain stands; takes half a line away, and gives what is missing,
//! to be told. A chain that is behind its file, as after a loss of power, is led on by lines that are its own.

use std::io::{self, BufRead, BufReader};

use super::chain::{Chain, Sealed};
use super::disk::Disk;

/// Lines that are not there, or not the log's own.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) reason: &'static str,
    /// Their sequence numbers.
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    /// Of half a line that was taken away.
    pub(super) torn_bytes: Option<u64>,
}

/// The process or the machine died before they were written.
const CRASH: &str = "crash";
/// Nobody who had the key wrote them.
const UNPROVED: &str = "unproved";

impl Missing {
    /// How many there would have been.
    pub(super) fn lost(&self) -> Option<u64> {
        let range = self.first.zip(self.last).filter(|_| self.reason == CRASH);
        range.map(|(first, last)| last - first + 1)
    }
}

pub(super) fn recover(disk: &mut Disk, chain: Option<&mut Chain>) -> io::Result<Option<Missing>> {
    let is_new = disk.is_empty();
    let tail = disk.tail()?;
    // Of a file that was put aside only the last line is looked at.
    let torn_bytes = Some(tail.torn).filter(|torn| *torn > 0 && !is_new);
    disk.take_back(torn_bytes.unwrap_or(0))?;
    let missing = |reason, first, last| Some(Missing { reason, first, last, torn_bytes });
    let only_torn = || torn_bytes.and_then(|_| missing(CRASH, None, None));
    let Some(chain) = chain.filter(|_| disk.is_kept()) else { return Ok(only_torn()) };
    let stands = chain.stands().0;
    let last = tail.line.as_deref().map(|line| Sealed::parse(line).map(|line| line.sequence));
    Ok(match last {
        Some(Some(last)) if last < stands => missing(CRASH, Some(last + 1), Some(stands)),
        Some(Some(last)) if last > stands => match disk.read()? {
            Some(file) if follow(chain, BufReader::new(&file)) == Some(last) => only_torn(),
            _ => missing(UNPROVED, Some(chain.stands().0 + 1), Some(last)),
        },
        Some(None) if stands > 0 => missing(UNPROVED, None, None),
        None if stands > 0 => missing(CRASH, Some(1), Some(stands)),
        Some(_) | None => only_torn(),
    })
}

/// Follows the file's lines as far as they are the chain's own; gives the last one's number.
fn follow(chain: &mut Chain, file: impl BufRead) -> Option<u64> {
    for line in file.split(b'\n') {
        let line = line.ok()?;
        let Some(sealed) = Sealed::parse(&line) else { continue };
        if sealed.sequence > chain.stands().0 && !chain.follow(&sealed) {
            return None;
        }
    }
    Some(chain.stands().0)
}
