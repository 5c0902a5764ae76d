//! Takes the relay's audit log; gives how many lines it holds, and empties it between measurements: at full speed it grows by some
//! 30 MB a second.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use postern_tests::wait;

/// A decision and an end for each request.
pub(crate) const LINES_PER_REQUEST: usize = 2;

pub(crate) struct AuditLines {
    file: File,
    lines: usize,
}

impl AuditLines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, lines: 0 })
    }

    /// Waits until `requests` are written down: only then all their work is done.
    pub(crate) async fn wait(&mut self, requests: u64) -> Result<()> {
        let count = usize::try_from(requests)? * LINES_PER_REQUEST;
        let mut buffer = vec![0; 256 * 1024];
        let found = wait::until("audit lines", wait::SOON, async || {
            while let Ok(read @ 1..) = self.file.read(&mut buffer) {
                self.lines += buffer[..read].split(|byte| *byte == b'\n').skip(1).count();
            }
            (self.lines >= count).then_some(())
        })
        .await;
        found.with_context(|| format!("{count} audit lines were expected, {} came", self.lines))
    }

    /// Empties the file; the relay appends, so it goes on from the start.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.lines = 0;
        Ok(())
    }
}
