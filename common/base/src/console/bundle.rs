//! What a doctor hands on for others to read: a `.tar.gz` (0600) of texts from which everything that looks like a key, a token, an invite
//! or a password was taken. Takes only what the program says of itself and configurations that passed their checks (in which secrets are
//! references); files of keys and databases are never read for it. Refuses to replace a file.

use std::io;
use std::path::Path;
use std::sync::LazyLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use regex::{Captures, Regex};
use serde::Serialize;
use serde_json::{Value, json};
use url::{Position, Url};

use crate::file::{Access, write_atomic};

/// What is written in place of a secret.
const GONE: &str = "[redacted]";

/// Files of one archive, in memory: they are few and small.
#[derive(Debug)]
pub struct Bundle {
    program: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Bundle {
    /// Begins with `about.json`: which program this is, and where it runs.
    pub fn new(program: &str, version: &str) -> Self {
        let mut bundle = Self { program: program.to_owned(), files: Vec::new() };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        bundle.json(
            "about.json",
            &json!({
                "program": program, "version": version, "made": Timestamp::now(),
                "os": std::env::consts::OS, "arch": std::env::consts::ARCH, "kernel": kernel.trim(),
            }),
        );
        bundle
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.files.push((name.to_owned(), redacted(text).into_bytes()));
    }

    pub fn json(&mut self, name: &str, value: &impl Serialize) {
        // Only maps with keys that are no strings cannot be written, and we have none.
        let value = serde_json::to_value(value).unwrap_or_else(|e| Value::String(e.to_string()));
        self.text(name, &format!("{:#}", json_redacted(value, false)));
    }

    /// A configuration that passed its checks; comments, where anything may be written, are left out.
    pub fn toml(&mut self, name: &str, text: &str) {
        let parsed = toml::from_str::<toml::Table>(text).map(|table| toml_redacted(table.into(), false));
        match parsed.ok().and_then(|table| toml::to_string(&table).ok()) {
            Some(text) => self.text(name, &text),
            None => self.text(name, "# not written here: it is not TOML"),
        }
    }

    /// # Errors
    /// The file is there already, or cannot be written.
    pub fn write(self, path: &Path) -> io::Result<()> {
        if path.symlink_metadata().is_ok() {
            let text = format!("{}: it is there already; choose another name", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        for (name, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(now);
            archive.append_data(&mut header, format!("{}/{name}", self.program), bytes.as_slice())?;
        }
        write_atomic(path, &archive.into_inner()?.finish()?, Access::Private)
    }
}

/// Whether a value under this key is a secret, where it is not a reference to one.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace(['-', '_'], "");
    ["secret", "password", "passwd", "passphrase", "apikey", "token", "authorization", "cookie"]
        .iter()
        .any(|end| key.ends_with(end))
}

fn json_redacted(value: Value, secret: bool) -> Value {
    match value {
        Value::String(_) if secret => Value::String(GONE.to_owned()),
        Value::String(text) => Value::String(value_redacted(&text)),
        Value::Array(list) => list.into_iter().map(|value| json_redacted(value, secret)).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| {
                let secret = is_secret(&key);
                (key, json_redacted(value, secret))
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn toml_redacted(value: toml::Value, secret: bool) -> toml::Value {
    match value {
        toml::Value::String(_) if secret => GONE.into(),
        toml::Value::String(text) => value_redacted(&text).into(),
        toml::Value::Array(list) => {
            toml::Value::Array(list.into_iter().map(|value| toml_redacted(value, secret)).collect())
        }
        toml::Value::Table(table) => {
            let of = |(key, value): (String, _)| {
                let secret = is_secret(&key);
                (key, toml_redacted(value, secret))
            };
            toml::Value::Table(table.into_iter().map(of).collect())
        }
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => value,
    }
}

/// A whole value: where it is a URL it is known what its user and password are, where it only looks like one they end at the last @.
fn value_redacted(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            redacted(&format!("{}://{GONE}@{}", url.scheme(), &url[Position::BeforeHost..]))
        }
        Ok(_) => redacted(text),
        Err(_) => match (text.find("://"), text.rfind('@')) {
            (Some(begin), Some(end)) if begin < end => {
                redacted(&format!("{}://{GONE}{}", &text[..begin], &text[end..]))
            }
            _ => redacted(text),
        },
    }
}

/// One pass over the text for everything that has the form of a secret.
static SECRETS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let forms = [
        // A private key, also one that was cut off.
        r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z))",
        // JWTs, signed or encrypted, and single parts of them.
        r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*",
        // Invites.
        r"\bpst[0-9]\.[A-Za-z0-9_.-]+",
        // User and password of a URL, to the last @ before its path. A quote in it is one that nothing follows as behind a text's end.
        r#"(?P<url>://)(?:[^\s"/]|"[^\s"/,:}\])])+"?(?P<host>@)"#,
        r"(?i:\b(?P<scheme>Bearer|DPoP|Basic) +)[A-Za-z0-9._~+/=-]{16,}",
        r#"(?i:\b(?P<key>[a-z0-9_-]*(?:secret|password|passwd|passphrase|api[_-]?key|_token|authorization|cookie))(?P<is>"?\s*[=:]\s*))(?:"[^"\n]*"|'[^'\n]*'|(?i:(?:Bearer|DPoP|Basic) +)?[^\s,;{}\[\]"']+)"#,
    ];
    Regex::new(&forms.join("|")).ok()
});

/// The text without keys, tokens, invites and passwords.
pub fn redacted(text: &str) -> String {
    // Ours always compiles (a test sees to it); were it not so, nothing would be shown.
    let Some(secrets) = &*SECRETS else { return GONE.to_owned() };
    let replaced = secrets.replace_all(text, |found: &Captures<'_>| {
        let part = |name| found.name(name).map_or("", |part| part.as_str());
        let space = if found.name("scheme").is_some() { " " } else { "" };
        format!("{}{}{}{}{space}{GONE}{}", part("url"), part("scheme"), part("key"), part("is"), part("host"))
    });
    replaced.into_owned()
}

/// The text with every quoted part left out: errors of a configuration quote what was written in a wrong place, be it a secret.
pub fn unquoted(text: &str) -> String {
    let parts = text.split('"').enumerate();
    parts.map(|(index, part)| if index % 2 == 0 { part } else { "\"…\"" }).collect()
}

#[cfg(test)]
mod tests;
