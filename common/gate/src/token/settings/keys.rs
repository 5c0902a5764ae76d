//! Takes `jwks` as typed; gives where an issuer's keys are and how long they last; refuses two places at once, and times that would
//! ask an issuer too often or let a withdrawn key serve too long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use postern_base::config::Problem;
use postern_base::id::IssuerName;
use postern_base::value::Span;

use super::file::JwksFile;
use super::{Reach, address};
use crate::token::discovery;
use crate::token::key::Algorithm;
use crate::token::presets::MIN_TTL;

/// All that decides which keys are fetched and kept: while this stays the same, a reload keeps them.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::token) struct KeySource {
    pub(in crate::token) name: IssuerName,
    pub(in crate::token) reach: Reach,
    pub(in crate::token) place: KeyPlace,
    pub(in crate::token) algorithms: Vec<Algorithm>,
    /// How soon after a fetch that succeeded the next may begin.
    pub(in crate::token) min_ttl: Duration,
    /// How soon keys are fetched again without being asked for.
    pub(in crate::token) max_ttl: Duration,
    pub(in crate::token) stale: Duration,
}

/// Where keys are.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::token) enum KeyPlace {
    /// Where the issuer's own document says.
    Discovered,
    At(Uri),
    File(PathBuf),
}

/// A key file costs nothing to look at, so a change is seen soon; but not with every request.
const FILE_TTL: Duration = Duration::from_secs(1);
/// For so long a withdrawn key would serve on although the issuer answers.
const MAX_MAX_TTL: Duration = Duration::from_hours(24);

impl JwksFile {
    /// `self` is filled in. Problems are located from `jwks` on.
    pub(super) fn source(
        self,
        name: &IssuerName,
        reach: &Reach,
        algorithms: &[Algorithm],
        dir: &Path,
    ) -> Result<KeySource, Problem> {
        let place = match (self.uri, self.file) {
            (Some(_), Some(_)) => {
                return Err(Problem::new("file", "keys are at a uri or in a file, not both"));
            }
            (Some(uri), None) => KeyPlace::At(address::uri(&uri, "uri")?),
            (None, Some(file)) => {
                let file = dir.join(file);
                discovery::read(&file, algorithms).map_err(|e| Problem::new("file", e.to_string()))?;
                KeyPlace::File(file)
            }
            (None, None) => KeyPlace::Discovered,
        };
        let (min_ttl, max_ttl) = if let KeyPlace::File(_) = place {
            if self.min_ttl.is_some() || self.max_ttl.is_some() {
                return Err(Problem::new(
                    "file",
                    "a file is re-read when it changes: leave min_ttl and max_ttl out",
                ));
            }
            (FILE_TTL, FILE_TTL)
        } else {
            let span = |given: Option<Span>, default| given.map_or(default, |span| span.0);
            (span(self.min_ttl, MIN_TTL), span(self.max_ttl, MAX_MAX_TTL))
        };
        if !matches!(place, KeyPlace::File(_)) && min_ttl < MIN_TTL {
            return Err(Problem::new("min_ttl", "at least 5s: an issuer must not be asked more often"));
        }
        if max_ttl > MAX_MAX_TTL {
            return Err(Problem::new("max_ttl", "at most 24h: for so long a withdrawn key would serve on"));
        }
        if min_ttl > max_ttl {
            return Err(Problem::new("min_ttl", "cannot be longer than max_ttl"));
        }
        let stale = self.stale.map_or(Duration::ZERO, |span| span.0);
        let (name, reach, algorithms) = (name.clone(), reach.clone(), algorithms.to_vec());
        Ok(KeySource { name, reach, place, algorithms, min_ttl, max_ttl, stale })
    }
}
