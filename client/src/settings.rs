//! Takes the global options and the environment; gives what they mean: which relay, which certificates, where sessions are kept.
//! Refuses values that mean nothing.

use std::path::{Path, PathBuf};

use postern_base::http_client::{HttpClient, HttpClientOptions};
use postern_base::proxy::Proxy;
use postern_base::secret::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::relay_api::address::{AddressError, RelayUrl};
use crate::session::profile::{BadName, ProfileName};

/// Where sessions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The OS keyring, and a file where there is none.
    Best,
    /// The OS keyring or nothing.
    Os,
    /// A file, 0600.
    File,
    /// Nowhere.
    Nowhere,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The relay that was named; none: the profile's.
    pub(crate) relay: Option<RelayUrl>,
    /// The profile that was named; none: the relay's, or the one in use.
    pub(crate) profile: Option<ProfileName>,
    /// Certificates trusted besides the system's (PEM).
    pub(crate) roots: Option<Vec<u8>>,
    /// The directory of sessions and locks.
    pub(crate) dir: PathBuf,
    /// Whether `dir` was chosen by `POSTERN_CONFIG_DIR`: keyring entries then belong to that directory alone.
    pub(crate) own_dir: bool,
    pub(crate) keep: Keep,
    /// `POSTERN_TOKEN`: used instead of any session.
    pub(crate) token: Option<Secret>,
    /// The client that a program is, and where its secret is: `POSTERN_CLIENT_ID`, `POSTERN_CLIENT_SECRET_FILE`.
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret_file: Option<PathBuf>,
    /// The way to relay and issuers: `HTTPS_PROXY` and `NO_PROXY`.
    pub(crate) proxy: Proxy,
}

impl Settings {
    /// `env` gives a variable's value; empty ones count as absent.
    pub(crate) fn new(globals: &Globals, env: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let bad = |message: String| Failure::new(Exit::Config, message);
        let relay = match (&globals.relay, env("POSTERN_RELAY")) {
            (Some(relay), _) => Some(relay.clone()),
            (None, Some(text)) => Some(
                text.parse().map_err(|e: AddressError| bad(e.to_string()).fix("correct POSTERN_RELAY"))?,
            ),
            (None, None) => None,
        };
        let profile = match (&globals.profile, env("POSTERN_PROFILE")) {
            (Some(profile), _) => Some(profile.clone()),
            (None, Some(text)) => {
                Some(text.parse().map_err(|e: BadName| bad(e.to_string()).fix("correct POSTERN_PROFILE"))?)
            }
            (None, None) => None,
        };
        let roots = match globals.ca.clone().or_else(|| env("POSTERN_CA").map(PathBuf::from)) {
            Some(path) => Some(certificates(&path).map_err(|reason| {
                bad(format!("{}: {reason}", path.display())).fix("name a PEM file with --ca or POSTERN_CA")
            })?),
            None => None,
        };
        let keep = match env("POSTERN_KEYRING").as_deref() {
            None => Keep::Best,
            Some("os") => Keep::Os,
            Some("file") => Keep::File,
            Some("none") => Keep::Nowhere,
            Some(other) => {
                return Err(bad(format!("POSTERN_KEYRING={other:?} names no place for sessions"))
                    .fix("use os, file or none"));
            }
        };
        let own = env("POSTERN_CONFIG_DIR").map(PathBuf::from);
        let own_dir = own.is_some();
        let dir = own
            .or_else(|| env("XDG_STATE_HOME").map(|dir| PathBuf::from(dir).join("postern")))
            .or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".local/state/postern")))
            .ok_or_else(|| {
                bad("no place for sessions: HOME is not set".into()).fix("set HOME or POSTERN_CONFIG_DIR")
            })?;
        let token = env("POSTERN_TOKEN").map(Secret::new);
        let client_id = env("POSTERN_CLIENT_ID");
        let client_secret_file = env("POSTERN_CLIENT_SECRET_FILE").map(PathBuf::from);
        let proxy = Proxy::from_env(env).map_err(|e| bad(e.to_string()).fix("correct HTTPS_PROXY"))?;
        Ok(Self { relay, profile, roots, dir, own_dir, keep, token, client_id, client_secret_file, proxy })
    }

    /// The bounded client for issuers and for the relay's own addresses. Both may well be on a private network.
    pub(crate) fn http(&self) -> Result<HttpClient, Failure> {
        let options = HttpClientOptions {
            extra_roots_pem: self.roots.clone(),
            allow_private: true,
            proxy: self.proxy.clone(),
            ..HttpClientOptions::default()
        };
        HttpClient::new(options).map_err(|e| {
            Failure::new(Exit::Config, e.to_string()).fix("name a PEM file with --ca or POSTERN_CA")
        })
    }
}

/// The PEM file's text, which must hold a certificate: without one it would be trusted to add nothing.
fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(pem),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("there is no certificate in it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, Failure> {
        let globals = Globals { relay: None, profile: None, json: false, quiet: false, verbose: 0, ca: None };
        Settings::new(&globals, |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn directories_come_from_the_most_specific_variable() {
        let home = ("HOME", "/h");
        let dir = |pairs: &[(&str, &str)]| settings(pairs).unwrap().dir.display().to_string();
        assert_eq!(dir(&[home]), "/h/.local/state/postern");
        assert_eq!(dir(&[home, ("XDG_STATE_HOME", "/s")]), "/s/postern");
        assert_eq!(dir(&[home, ("XDG_STATE_HOME", "/s"), ("POSTERN_CONFIG_DIR", "/c")]), "/c");
        assert_eq!(settings(&[]).unwrap_err().exit, Exit::Config);
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (text, good) in
            [(String::new(), false), ("no PEM".into(), false), (crate::testing::Pki::new().certificate, true)]
        {
            std::fs::write(path, &text).unwrap();
            let made = settings(&[("HOME", "/h"), ("POSTERN_CA", path)]);
            assert_eq!(made.is_ok(), good, "{text}");
            assert!(made.err().is_none_or(|failure| failure.exit == Exit::Config));
        }
    }

    #[test]
    fn a_proxy_comes_from_the_environment() {
        let with = |proxy| settings(&[("HOME", "/h"), ("HTTPS_PROXY", proxy), ("NO_PROXY", "example.com")]);
        let proxy = with("http://proxy.example.com:3128").unwrap().proxy;
        assert!(
            proxy.towards("relay.example.org", 443).is_some()
                && proxy.towards("a.example.com", 443).is_none()
        );
        assert_eq!(with("socks5://proxy.example.com").unwrap_err().exit, Exit::Config);
    }

    #[test]
    fn an_unknown_keyring_is_refused_and_empty_means_absent() {
        assert_eq!(settings(&[("HOME", "/h"), ("POSTERN_KEYRING", "")]).unwrap().keep, Keep::Best);
        assert_eq!(settings(&[("HOME", "/h"), ("POSTERN_KEYRING", "gnome")]).unwrap_err().exit, Exit::Config);
        assert!(settings(&[("HOME", "/h"), ("POSTERN_TOKEN", "t")]).unwrap().token.is_some());
        let relay = |text| {
            settings(&[("HOME", "/h"), ("POSTERN_RELAY", text)]).map(|s| s.relay.map(|r| r.to_string()))
        };
        assert_eq!(relay("relay.example.com:1").unwrap().unwrap(), "relay.example.com:1");
        assert_eq!(relay("").unwrap(), None);
        assert_eq!(relay("a b").unwrap_err().exit, Exit::Config);
    }
}
