//! What a new configuration would change: takes the one in force and a loaded one; gives the parts that changed and the calls that would
//! be decided otherwise.

use std::time::SystemTime;

use postern_base::config::ConfigError;
use postern_gate::policy::{Compared, Policy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Loaded;
use super::outline::Outline;

/// The difference between two configurations.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Diff {
    /// `service wiki added`
    pub changes: Vec<String>,
    /// Tests of the new one that fail: as it is, no relay would take it.
    #[serde(default)]
    pub failing: Vec<String>,
    #[serde(flatten)]
    pub decisions: Compared,
}

impl Diff {
    pub fn between(
        (outline, policy): (&Outline, &Policy),
        (new, failing): &(Loaded, Vec<ConfigError>),
        now: SystemTime,
    ) -> Self {
        Self {
            changes: new.outline.changes_since(outline),
            failing: failing.iter().map(ToString::to_string).collect(),
            decisions: new.policy.flips_since(policy, now),
        }
    }
}
