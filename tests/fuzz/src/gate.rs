//! The gate through its front door: takes headers and claims of any bytes, signs them, and has them judged as tokens and proofs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_base::config::Source;
use postern_gate::principal::Principal;
use postern_gate::token::settings::IssuerFile;
use postern_gate::token::{Accept, IssuerSettings, Issuers, Presented, ProofSettings, TokenError};
use tokio::runtime::{Builder, Runtime};

/// The time of all inputs, in seconds since the epoch.
pub const NOW: u64 = 1_800_000_000;
pub const ISSUER: &str = "https://id.example.com";
const ENTRY: &str = r#"
name = "corp"
issuer = "https://id.example.com"
audience = "postern"
algorithms = ["EdDSA"]
token_type = ["at+jwt", "JWT", ""]
jwks = { file = "jwks.json" }
"#;

pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// A key made of one byte.
pub struct Key(Ed25519KeyPair);

impl Key {
    /// The issuer's, which is in `jwks.json`.
    pub fn issuer() -> Self {
        Self::of(7)
    }

    /// The caller's, of which the corpus has the public half.
    pub fn caller() -> Self {
        Self::of(9)
    }

    fn of(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed"))
    }

    pub fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

pub struct Gate {
    runtime: Runtime,
    settings: IssuerSettings,
    issuers: Issuers,
}

impl Gate {
    #[expect(clippy::new_without_default, reason = "it reads a file")]
    pub fn new() -> Self {
        let file: IssuerFile = Source::from_text("entry.toml", ENTRY).parse().expect("the entry is good");
        let settings = file.settings(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the entry is good");
        let issuers = Issuers::new(vec![settings.clone()]).expect("one issuer");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let gate = Self { runtime, settings, issuers };
        // Without it everything would be refused, and nothing tested.
        let good = Key::issuer().sign(br#"{"alg":"EdDSA","kid":"k","typ":"at+jwt"}"#, &good_claims(""));
        gate.judge(&Presented::bearer(&good)).expect("a good token is accepted");
        gate
    }

    pub fn judge(&self, presented: &Presented<'_>) -> Result<Arc<Principal>, TokenError> {
        self.judge_by(&self.issuers, presented)
    }

    pub fn judge_by(
        &self,
        issuers: &Issuers,
        presented: &Presented<'_>,
    ) -> Result<Arc<Principal>, TokenError> {
        self.runtime.block_on(issuers.authenticate(presented, Accept::default(), now()))
    }

    /// The same keys, and no memory of proofs.
    pub fn taking_proofs(&self) -> Issuers {
        let issuers = self.issuers.rebuild(vec![self.settings.clone()]).expect("the same issuer");
        issuers.taking_proofs(ProofSettings::without_nonces(), now() - Duration::from_secs(100))
    }
}

/// Claims of a good token, with `more` members.
pub fn good_claims(more: &str) -> Vec<u8> {
    format!(
        r#"{{"iss":"{ISSUER}","sub":"ada","aud":"postern","exp":{},"iat":{NOW},"client_id":"cli","scope":"a b"{more}}}"#,
        NOW + 300
    )
    .into_bytes()
}

/// The input as header and claims, which a line feed parts.
pub fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n');
    at.map_or((data, &[]), |at| (&data[..at], &data[at + 1..]))
}
