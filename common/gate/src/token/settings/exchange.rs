//! Takes an issuer's `exchange` as typed; gives where tokens are exchanged (RFC 8693) and as which client; refuses what `introspect`
//! refuses of a client, and one that cannot prove who it is.

use std::path::{Path, PathBuf};

use http::Uri;
use postern_base::config::Problem;
use postern_base::secret::SecretRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::introspect::Authentication;
use super::{IntrospectAuth, IntrospectFile, Reach, address};

/// The relay's client for exchanging callers' tokens (RFC 8693), for services with `caller_token = "exchange"`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeFile {
    /// The token endpoint, where discovery does not say.
    pub endpoint: Option<String>,
    /// The relay's own client id at the issuer.
    pub client_id: String,
    /// That client's secret, for `basic` and `post`.
    pub client_secret: Option<SecretRef>,
    /// How the relay proves that it is that client: `basic`, `post`, `private_key_jwt` or `mtls`. Default: basic.
    pub auth: Option<IntrospectAuth>,
    /// PEM of the private key, for `private_key_jwt` and `mtls`.
    pub key: Option<PathBuf>,
    /// The name under which the issuer knows that key, for `private_key_jwt`.
    pub kid: Option<String>,
    /// PEM of the certificate chain, for `mtls`.
    pub cert: Option<PathBuf>,
}

/// Where tokens are exchanged, and as whom.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangeSettings {
    pub reach: Reach,
    /// None: as discovery says.
    pub endpoint: Option<Uri>,
    pub auth: Authentication,
}

impl ExchangeFile {
    /// Problems are located from `exchange` on.
    pub(super) fn settings(self, reach: Reach, dir: &Path) -> Result<ExchangeSettings, Problem> {
        if self.auth == Some(IntrospectAuth::Bearer) {
            return Err(Problem::new("auth", "a token endpoint knows clients, not bearers: write another"));
        }
        let endpoint = self.endpoint.as_deref().map(|text| address::uri(text, "endpoint")).transpose()?;
        let client = IntrospectFile {
            client_id: Some(self.client_id),
            client_secret: self.client_secret,
            auth: self.auth,
            key: self.key,
            kid: self.kid,
            cert: self.cert,
            ..IntrospectFile::default()
        };
        Ok(ExchangeSettings { reach, endpoint, auth: client.authentication(dir)? })
    }
}
