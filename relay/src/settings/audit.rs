//! `[audit]`: takes what the file says, gives where lines go, for how long, whom they name and what happens when nothing more fits.

use std::path::Path;

use postern_base::audit::{Destination, LogSettings, Rotate};
use postern_base::config::Problem;
use postern_base::value::{OrOff, Size};

use crate::config::file::{AuditFile, RedactFile};

/// Minutes of lines at full speed, and hours at a usual one.
const RESERVE: Size = Size(64 * 1024 * 1024);
/// Smaller files would be many.
const LEAST_SIZE: u64 = 16 * 1024;

/// What lines give a pseudonym for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Redact {
    /// Subject and user.
    pub subject: bool,
    pub address: bool,
    pub path: bool,
}

impl From<&[RedactFile]> for Redact {
    fn from(kinds: &[RedactFile]) -> Self {
        let has = |kind| kinds.contains(&kind);
        Self {
            subject: has(RedactFile::Subject),
            address: has(RedactFile::Address),
            path: has(RedactFile::Path),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    pub log: LogSettings,
    pub redact: Redact,
}

impl AuditSettings {
    pub(super) fn new(file: &AuditFile, dir: &Path) -> Result<Self, Problem> {
        let redact = Redact::from(&*file.redact);
        let to = if file.file == Path::new("-") {
            let keys = [("rotate", file.rotate.is_some()), ("reserve", file.reserve.is_some())];
            if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
                return Err(Problem::new(key, "means nothing for stdout (file = \"-\"): leave it out"));
            }
            Destination::Stdout
        } else {
            Destination::File(dir.join(&file.file))
        };
        let rotate = Rotate::from(file.rotate.unwrap_or_default());
        if rotate.size.is_some_and(|size| size < LEAST_SIZE) {
            return Err(Problem::new("rotate.size", "must be at least \"16KiB\""));
        }
        let reserve = file.reserve.unwrap_or(OrOff::At(RESERVE)).limit().map_or(0, |size| size.0);
        Ok(Self { log: LogSettings { to, rotate, reserve, full: file.full }, redact })
    }
}
