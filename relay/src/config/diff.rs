//! What a new configuration would change: takes the one in force and a loaded one; gives the parts that changed and the calls that would
//! be decided otherwise.

use std::time::SystemTime;

use postern_gate::policy::{Compared, Policy};
use serde::{Deserialize, Serialize};

use super::Loaded;
use super::outline::Outline;

/// The difference between two configurations.
#[derive(Debug, Serialize, Deserialize)]
pub struct Diff {
    /// `service wiki added`
    pub changes: Vec<String>,
    #[serde(flatten)]
    pub decisions: Compared,
}

impl Diff {
    pub fn between((outline, policy): (&Outline, &Policy), new: &Loaded, now: SystemTime) -> Self {
        Self { changes: new.outline.changes_since(outline), decisions: new.policy.flips_since(policy, now) }
    }
}
