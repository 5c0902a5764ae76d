//! Takes where the site's nginx serves; gives the issuer of a measurement: the tests' mint, which has no users and refuses nobody, and one
//! opaque token that it vouches for whenever it is asked (RFC 7662). For measuring only.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use postern_tests::mint::Mint;
use serde_json::{Value, json};

/// Longer than any run, shorter than a relay's default `max_lifetime`.
const LIFE: Duration = Duration::from_hours(4);
/// As long as opaque tokens usually are.
pub(crate) const OPAQUE: &str = "Vb3hWm0o2yT5kqgqS1n8uQd7xZcL4eRj9fPaYtIw6M";
/// Below the issuer's address, what it says of tokens.
pub(crate) const ASKED: &str = "/introspection";

pub(crate) struct Issuer {
    mint: Mint,
}

impl Issuer {
    /// Writes its documents below `root`, from where `iss` is served; tokens will be for `audience`, opaque ones have this scope.
    pub(crate) fn publish(root: &Path, iss: &str, audience: &str, scope: &str) -> Result<Self> {
        let issuer = Self { mint: Mint::at(root, iss, audience)? };
        let mut answer = issuer.mint.claims("ada", LIFE, &usual(scope))?;
        answer["active"] = json!(true);
        std::fs::write(root.join(ASKED.trim_start_matches('/')), answer.to_string())?;
        Ok(issuer)
    }

    pub(crate) fn name(&self) -> &str {
        self.mint.iss()
    }

    pub(crate) fn audience(&self) -> &str {
        self.mint.audience()
    }

    /// `count` tokens with this scope, no two alike.
    pub(crate) fn tokens(&self, scope: &str, count: u32) -> Result<Vec<String>> {
        (0..count).map(|_| self.token(scope)).collect()
    }

    /// An access token as RFC 9068 has it, with a scope and as many claims as usual.
    pub(crate) fn token(&self, scope: &str) -> Result<String> {
        self.mint.token("ada", LIFE, &usual(scope))
    }
}

fn usual(scope: &str) -> Value {
    json!({ "scope": scope, "groups": ["finance", "staff"] })
}
