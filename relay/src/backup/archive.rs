//! The file of a backup: a `.tar.gz` whose first entry says what the others are. Takes files; gives bytes, and files again; refuses whatever
//! is cut, changed, too large or does not belong.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use postern_wire::tls::hex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{DATABASE, Files};

/// Raised when files mean something else than they did.
const FORMAT: u32 = 1;
const TOP: &str = "postern-backup";
const MANIFEST: &str = "manifest.json";
/// All files together: the database of a million agents.
const LIMIT: u64 = 1024 * 1024 * 1024;
const MANIFEST_LIMIT: u64 = 1024 * 1024;

/// Why these bytes are no backup.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("this is not a backup of a relay, or it was cut: {0}")]
    Damaged(io::Error),
    #[error("this is not a backup of a relay: {0}")]
    Foreign(String),
    #[error("the backup is not whole: {0} is missing or was changed; take another one")]
    Incomplete(String),
    #[error("the backup has format {0}, which this version does not know: use the version that wrote it")]
    Format(u32),
    #[error("the backup could not be made: {0}")]
    Writing(io::Error),
}

/// What is in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Seconds since the epoch.
    pub made: u64,
    pub version: String,
    pub url: String,
    pub trust_domain: String,
    /// SHA-256 of each file.
    files: BTreeMap<String, String>,
}

/// A backup in memory.
#[derive(Debug)]
pub struct Archive {
    manifest: Manifest,
    files: Files,
}

/// Whether a file of the state directory belongs into a backup, by its name there. Of the authority's keys the issuing CA's alone does.
pub(super) fn belongs(name: &str) -> bool {
    let is_plain = |name: &str| {
        !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let ending = |name: &str| Path::new(name).extension().and_then(|end| end.to_str()).map(str::to_owned);
    match name.split_once('/') {
        None => [DATABASE, "audit.pseudonyms"].contains(&name),
        Some((_, file)) if !is_plain(file) => false,
        Some(("ca", file)) => match ending(file).as_deref() {
            Some("pem") => true,
            // The issuing CA's, and what the relay derives its own secrets from.
            Some("key") => ["issuing.key", "seed.key"].contains(&file),
            _ => false,
        },
        Some(("assertion" | "tls", file)) => ending(file).as_deref() == Some("pem"),
        Some(_) => false,
    }
}

/// Whether nobody else may read it: everything but certificates.
pub(super) fn is_secret(name: &str) -> bool {
    let is_certificate = |file: &str| ["cert.pem", "root.pem", "issuing.pem", "overlap.pem"].contains(&file);
    !name.split_once('/').is_some_and(|(dir, file)| ["ca", "tls"].contains(&dir) && is_certificate(file))
}

fn sum(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

impl Archive {
    pub(super) fn new(url: &str, trust_domain: &str, files: Files, now: SystemTime) -> Self {
        let made = postern_base::clock::seconds(now);
        let manifest = Manifest {
            format: FORMAT,
            made,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            url: url.to_owned(),
            trust_domain: trust_domain.to_owned(),
            files: files.iter().map(|(name, bytes)| (name.clone(), sum(bytes))).collect(),
        };
        Self { manifest, files }
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// As bytes for a file.
    pub fn write(&self) -> Result<Vec<u8>, ArchiveError> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let manifest = serde_json::to_vec_pretty(&self.manifest).map_err(io::Error::from);
        let manifest = Zeroizing::new(manifest.map_err(ArchiveError::Writing)?);
        let manifest = (MANIFEST.to_owned(), manifest);
        for (name, bytes) in std::iter::once((&manifest.0, &manifest.1)).chain(&self.files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(self.manifest.made);
            archive
                .append_data(&mut header, format!("{TOP}/{name}"), bytes.as_slice())
                .map_err(ArchiveError::Writing)?;
        }
        archive.into_inner().and_then(GzEncoder::finish).map_err(ArchiveError::Writing)
    }

    /// All of it, or nothing.
    pub fn read(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let mut archive = tar::Archive::new(GzDecoder::new(bytes).take(LIMIT));
        let mut manifest: Option<Manifest> = None;
        let mut files = Files::new();
        for entry in archive.entries().map_err(ArchiveError::Damaged)? {
            let mut entry = entry.map_err(ArchiveError::Damaged)?;
            let path = entry.path().map_err(ArchiveError::Damaged)?.into_owned();
            let name = path.strip_prefix(TOP).ok().and_then(Path::to_str).map(str::to_owned);
            let foreign = || ArchiveError::Foreign(format!("it holds {}", path.display()));
            let name = name.filter(|_| entry.header().entry_type().is_file()).ok_or_else(foreign)?;
            let Some(manifest) = &manifest else {
                if name != MANIFEST || entry.size() > MANIFEST_LIMIT {
                    return Err(foreign());
                }
                let mut text = Vec::new();
                entry.read_to_end(&mut text).map_err(ArchiveError::Damaged)?;
                let read: Manifest =
                    serde_json::from_slice(&text).map_err(|e| ArchiveError::Foreign(e.to_string()))?;
                if read.format != FORMAT {
                    return Err(ArchiveError::Format(read.format));
                }
                manifest = Some(read);
                continue;
            };
            if !belongs(&name) {
                return Err(foreign());
            }
            let mut bytes = Zeroizing::new(Vec::new());
            entry.read_to_end(&mut bytes).map_err(ArchiveError::Damaged)?;
            if manifest.files.get(&name) != Some(&sum(&bytes)) {
                return Err(ArchiveError::Incomplete(name));
            }
            files.insert(name, bytes);
        }
        // The end of a file that was cut there is behind all that it holds.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Damaged)?;
        let manifest = manifest.ok_or_else(|| ArchiveError::Foreign("it is empty".to_owned()))?;
        if let Some(missing) = manifest.files.keys().find(|name| !files.contains_key(*name)) {
            return Err(ArchiveError::Incomplete(missing.clone()));
        }
        if !files.contains_key(DATABASE) {
            return Err(ArchiveError::Incomplete(DATABASE.to_owned()));
        }
        Ok(Self { manifest, files })
    }
}
