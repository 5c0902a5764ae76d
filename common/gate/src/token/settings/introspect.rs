//! Takes `introspect` as typed; gives whom to ask about tokens, as whom, and how long answers are believed; refuses ways to prove who
//! asks that lack a piece or have one too many.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use postern_base::config::Problem;
use postern_base::secret::SecretRef;

use super::file::{IntrospectAuth, IntrospectFile};
use super::{Reach, address};

/// Whom to ask about tokens (RFC 7662). Secrets and keys are read by whoever asks, not here.
#[derive(Debug, Clone, PartialEq)]
pub struct IntrospectSettings {
    pub reach: Reach,
    /// None: as discovery says.
    pub endpoint: Option<Uri>,
    pub auth: Authentication,
    /// How long a good answer is believed; the token's expiry ends it sooner.
    pub cache: Duration,
    /// How long it is believed that a token is not good.
    pub negative: Duration,
}

/// How the relay proves to an issuer who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// RFC 6749 2.3.1: both form-urlencoded before they are joined.
    Basic { client_id: String, secret: SecretRef },
    /// In the body.
    Post { client_id: String, secret: SecretRef },
    /// RFC 7523 2.2; `key` is a PEM file.
    PrivateKeyJwt { client_id: String, key: PathBuf, kid: Option<String> },
    /// RFC 8705 2; PEM files.
    Mtls { client_id: String, cert: PathBuf, key: PathBuf },
    /// A token of the relay's own.
    Bearer { token: SecretRef },
}

/// What a revocation at the issuer may go unnoticed at most, whatever is configured.
const MAX_CACHE: Duration = Duration::from_mins(5);

impl IntrospectFile {
    /// `self` is filled in. Problems are located from `introspect` on.
    pub(super) fn settings(self, reach: Reach, dir: &Path) -> Result<IntrospectSettings, Problem> {
        let endpoint = self.endpoint.as_deref().map(|text| address::uri(text, "endpoint")).transpose()?;
        let span = |given: Option<postern_base::value::Span>, at: &str| {
            let span = given.map_or(Duration::ZERO, |span| span.0);
            if span > MAX_CACHE {
                return Err(Problem::new(at, "at most 5m: for so long a revoked token would be accepted"));
            }
            Ok(span)
        };
        let (cache, negative) = (span(self.cache, "cache")?, span(self.negative, "negative")?);
        Ok(IntrospectSettings { reach, endpoint, auth: self.authentication(dir)?, cache, negative })
    }

    pub(super) fn authentication(self, dir: &Path) -> Result<Authentication, Problem> {
        let auth = self.auth.unwrap_or(IntrospectAuth::Basic);
        let given = [
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("key", self.key.is_some()),
            ("kid", self.kid.is_some()),
            ("cert", self.cert.is_some()),
            ("token", self.token.is_some()),
        ];
        let (named, needed, optional): (_, &[&str], &[&str]) = match auth {
            IntrospectAuth::Basic => ("basic", &["client_id", "client_secret"], &[]),
            IntrospectAuth::Post => ("post", &["client_id", "client_secret"], &[]),
            IntrospectAuth::PrivateKeyJwt => ("private_key_jwt", &["client_id", "key"], &["kid"]),
            IntrospectAuth::Mtls => ("mtls", &["client_id", "cert", "key"], &[]),
            IntrospectAuth::Bearer => ("bearer", &["token"], &[]),
        };
        for (key, is_given) in given {
            if is_given && !needed.contains(&key) && !optional.contains(&key) {
                return Err(Problem::new(key, format!("auth = {named:?} does not use it: leave it out")));
            }
            if !is_given && needed.contains(&key) {
                return Err(Problem::new("", format!("auth = {named:?} needs {}", needed.join(", "))));
            }
        }
        let client_id = self.client_id.unwrap_or_default();
        if client_id.is_empty() && auth != IntrospectAuth::Bearer {
            return Err(Problem::new("client_id", "write the relay's own client id at the issuer"));
        }
        let secret = |given: Option<SecretRef>| match given {
            Some(SecretRef::File(path)) => SecretRef::File(dir.join(path)),
            Some(other) => other,
            // Found to be there above; a secret that does not exist fails closed.
            None => SecretRef::File(PathBuf::new()),
        };
        let path = |given: Option<PathBuf>| dir.join(given.unwrap_or_default());
        Ok(match auth {
            IntrospectAuth::Basic => Authentication::Basic { client_id, secret: secret(self.client_secret) },
            IntrospectAuth::Post => Authentication::Post { client_id, secret: secret(self.client_secret) },
            IntrospectAuth::PrivateKeyJwt => {
                Authentication::PrivateKeyJwt { client_id, key: path(self.key), kid: self.kid }
            }
            IntrospectAuth::Mtls => {
                Authentication::Mtls { client_id, cert: path(self.cert), key: path(self.key) }
            }
            IntrospectAuth::Bearer => Authentication::Bearer { token: secret(self.token) },
        })
    }
}
