//! How an audit log names people: takes names, addresses and paths; gives them as they are, or, where `[audit] redact` says so, a
//! pseudonym under a key that never leaves the state directory. The same name has the same pseudonym as long as the key stays.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_base::file::{self, Access};
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::AuditError;
use crate::settings::Redact;

/// The key's file in the state directory.
const KEY: &str = "audit.pseudonyms";
/// Bytes of a pseudonym: two of a million people share one with a chance of 1 in 10^17.
const BYTES: usize = 12;

/// What pseudonyms are made of; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pseudonyms {
    redact: Redact,
    key: Option<Arc<hmac::Key>>,
}

/// A caller's address in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Address {
    Plain(IpAddr),
    Veiled(String),
}

impl Pseudonyms {
    /// Reads the key, or makes it where one is needed for the first time.
    pub fn open(redact: Redact, state: &Path) -> Result<Self, AuditError> {
        if redact == Redact::default() {
            return Ok(Self { redact, key: None });
        }
        let path = state.join(KEY);
        let io = |source| AuditError::Io { path: path.display().to_string(), source };
        if !path.try_exists().map_err(io)? {
            let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
            file::write_atomic(&path, &*bytes, Access::Private).map_err(io)?;
        }
        file::check_private(&path).map_err(io)?;
        Self::read(redact, state).map_err(io)
    }

    /// With the key as it is.
    pub fn read(redact: Redact, state: &Path) -> std::io::Result<Self> {
        let bytes = Zeroizing::new(std::fs::read(state.join(KEY))?);
        Ok(Self { redact, key: Some(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes))) })
    }

    fn of<'a>(&self, kind: &str, is_redacted: bool, text: &'a str) -> Cow<'a, str> {
        match &self.key {
            Some(key) if is_redacted && !text.is_empty() => {
                let tag = hmac::sign(key, format!("{kind}\n{text}").as_bytes());
                format!("~{}", URL_SAFE_NO_PAD.encode(&tag.as_ref()[..BYTES])).into()
            }
            _ => text.into(),
        }
    }

    /// A person's name, as issuer or configuration give it.
    pub fn person<'a>(&self, name: &'a str) -> Cow<'a, str> {
        self.of("person", self.redact.subject, name)
    }

    pub fn address(&self, address: IpAddr) -> Address {
        if self.redact.address {
            let text = address.to_canonical().to_string();
            Address::Veiled(self.of("address", true, &text).into_owned())
        } else {
            Address::Plain(address.to_canonical())
        }
    }

    /// `pattern` is the rule's, for what one allowed.
    pub fn path<'a>(&self, path: &'a str, pattern: impl FnOnce() -> Option<String>) -> Cow<'a, str> {
        if !self.redact.path {
            return path.into();
        }
        pattern().map_or_else(|| self.of("path", true, path), Cow::Owned)
    }

    /// What an event says of people and addresses.
    pub(super) fn veil(&self, detail: &mut Value) {
        let (Some(_), Value::Object(members)) = (&self.key, detail) else { return };
        for (name, value) in members {
            match (name.as_str(), &mut *value) {
                ("user" | "subject", Value::String(name)) => *name = self.person(name).into_owned(),
                ("address", Value::String(address)) => {
                    *address = self.of("address", self.redact.address, address).into_owned();
                }
                ("path", Value::String(path)) => *path = self.path(path, || None).into_owned(),
                // As locks name one.
                ("user", Value::Object(user)) => {
                    if let Some(Value::String(name)) = user.get_mut("name") {
                        *name = self.person(name).into_owned();
                    }
                }
                (_, nested @ Value::Object(_)) => self.veil(nested),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pseudonyms_are_stable_and_show_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let all = Redact { subject: true, address: true, path: true };
        let names = Pseudonyms::open(all, dir.path()).unwrap();
        let ada = names.person("ada").into_owned();
        assert!(ada.len() == 17 && ada.starts_with('~') && !ada.contains("ada"), "{ada}");
        assert_eq!(Pseudonyms::open(all, dir.path()).unwrap().person("ada"), ada, "the key stays");
        assert_ne!(names.person("bob"), ada);
        assert_ne!(names.path("ada", || None), ada, "a path is not a person");
        assert_eq!(names.path("/v1/7", || Some("/v1/*".into())), "/v1/*");
        let v4 = names.address("192.0.2.1".parse().unwrap());
        assert_eq!(names.address("::ffff:192.0.2.1".parse().unwrap()), v4);
        let mut event = json!({ "address": "192.0.2.1", "on": { "user": { "issuer": "corp", "name": "ada" } }, "service": "wiki" });
        names.veil(&mut event);
        assert_eq!(
            event,
            json!({ "address": v4.clone(), "on": { "user": { "issuer": "corp", "name": ada } }, "service": "wiki" })
        );

        let none = Pseudonyms::open(Redact::default(), dir.path()).unwrap();
        assert_eq!((none.person("ada"), none.path("/x", || None)), ("ada".into(), "/x".into()));
    }
}
