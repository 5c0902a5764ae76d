//! Takes `[dpop]` as typed in relay.toml; gives what proofs are judged by. Alike for all issuers: a proof is its caller's own.

use postern_base::config::Problem;
use postern_base::value::OneOrMany;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::token::key::Algorithm;

/// Proofs of possession for bound tokens (DPoP, RFC 9449).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DpopFile {
    /// Signature algorithms accepted. Default: `ES256`, `EdDSA`, `RS256`, `PS256`.
    pub algorithms: Option<OneOrMany<Algorithm>>,
    /// Whether each proof must carry a nonce of ours, so that none can be made long before it is used. Default: optional, which asks
    /// for one only of proofs made before the relay started.
    #[serde(default)]
    pub nonce: NonceUse,
}

/// Who needs a nonce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NonceUse {
    /// Nobody: whoever judges here does not answer the caller, and so cannot give one.
    #[serde(skip)]
    Never,
    /// Proofs that were made before this process started, and may have been sent to the last one.
    #[default]
    Optional,
    /// Every proof.
    Required,
}

/// What proofs are judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofSettings {
    pub algorithms: Vec<Algorithm>,
    pub nonce: NonceUse,
}

impl ProofSettings {
    /// For an agent: the defaults, and no nonces.
    pub fn without_nonces() -> Self {
        Self { algorithms: DEFAULT_ALGORITHMS.to_vec(), nonce: NonceUse::Never }
    }
}

const DEFAULT_ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256, Algorithm::Ps256];

impl DpopFile {
    /// What the table means. Problems are located from the table on.
    ///
    /// # Errors
    /// No algorithm at all.
    pub fn settings(&self) -> Result<ProofSettings, Problem> {
        let given = self.algorithms.as_ref().map(|many| many.0.clone());
        let algorithms = given.unwrap_or_else(|| DEFAULT_ALGORITHMS.to_vec());
        if algorithms.is_empty() {
            return Err(Problem::new("algorithms", "name at least one algorithm, or leave the key out"));
        }
        Ok(ProofSettings { algorithms, nonce: self.nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_base::config::Source;

    fn parsed(text: &str) -> Result<ProofSettings, String> {
        let file: DpopFile =
            Source::from_text("relay.toml", text.to_owned()).parse().map_err(|e| e.to_string())?;
        file.settings().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_typed_is_what_is_meant() {
        let default = parsed("").unwrap();
        assert_eq!(default.algorithms, DEFAULT_ALGORITHMS);
        assert_eq!(default.nonce, NonceUse::Optional);
        let set = parsed("algorithms = \"ES384\"\nnonce = \"required\"").unwrap();
        assert_eq!((set.algorithms, set.nonce), (vec![Algorithm::Es384], NonceUse::Required));
        for bad in [
            "algorithms = []",
            "algorithms = [\"HS256\"]",
            "algorithms = \"none\"",
            "nonce = \"never\"",
            "x = 1",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
